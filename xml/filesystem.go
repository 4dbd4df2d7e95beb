package xml

import (
	"cmp"
	"math"
	"path"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// validateFilesystems wants exactly one root and every other mount at a
// place of its own. Without a root the host's own is the only thing left to run
// on, which the host's configuration must allow.
func validateFilesystems(def *libvirtxml.Domain, host HostFacts) error {
	targets := map[string]bool{}
	for _, f := range def.Devices.Filesystems {
		if f.Target == nil || !strings.HasPrefix(f.Target.Dir, "/") {
			return invalid("<filesystem>", "needs a <target dir=…/> with an absolute path inside the environment")
		}
		target := path.Clean(f.Target.Dir)
		if targets[target] {
			return invalid("<filesystem>", "has the target '%s' twice", shorten(target))
		}
		targets[target] = true
		if err := validateFilesystem(f, host); err != nil {
			return err
		}
	}
	if targets["/"] {
		return nil
	}
	if !host.HostRoot {
		return invalid("<filesystem>", "with <target dir='/'/> is missing: an environment needs a root, of type 'template' or 'mount' (or set host_root = true in virtvzd.conf to run programs on the host's, read-only)")
	}
	if def.OS.Init == "" {
		return invalid("<init>", "is missing: without a root of its own an environment runs one program of the host's, not its init")
	}
	if idMap(def).Mode != Auto {
		return invalid("<idmap>", "cannot be chosen without a root: on the host's an environment has ids that own nothing there")
	}
	return nil
}

func validateFilesystem(f libvirtxml.DomainFilesystem, host HostFacts) error {
	kind, source := filesystemSource(f)
	if kind == "" {
		return invalid("<filesystem>", "needs a type (template, mount, bind, file, block, ram, volume) and its <source>")
	}
	if source == "" {
		return invalid("<filesystem>", "of type '%s' at '%s' needs a <source>", kind, shorten(f.Target.Dir))
	}
	if err := validateAccess(f.AccessMode); err != nil {
		return err
	}
	if err := validateSpace(f); err != nil {
		return err
	}
	switch kind {
	case "mount", "bind", "file", "block":
		if !strings.HasPrefix(source, "/") {
			return invalid("<filesystem>", "has the source '%s': an absolute path on the host is needed", shorten(source))
		}
	case "template":
		return validateTemplate(source, f.Target.Dir, host)
	}
	return nil
}

// validateAccess: the ids of files are those that there are inside, on disk as
// well, whatever ids of the host the environment has. That is passthrough; and
// mapped, which virt-manager asks for with every container, is that its ids are
// not the host's, which <idmap> says. squash is passthrough by a server that
// lacks the right to chown and says that it has done so: a mount has nobody who
// could say that, and an idmapped one gives no two ids the same owner.
func validateAccess(mode string) error {
	switch mode {
	case "passthrough", "mapped":
		return nil
	case "squash":
		return unsupported("<filesystem>", "with accessmode='squash' is not realised: it would tell programs inside that a chown has succeeded which has not. Use passthrough, where it does succeed")
	}
	return invalid("<filesystem>", "has accessmode='%s': passthrough and mapped are accepted", shorten(mode))
}

func validateTemplate(name, target string, host HostFacts) error {
	if path.Clean(target) != "/" {
		return unsupported("<filesystem>", "of type 'template' can only be the root, not '%s'", shorten(target))
	}
	if host.Templates == nil {
		return nil
	}
	names := host.Templates()
	if slices.Contains(names, name) {
		return nil
	}
	have := "there is none yet: make one with 'virtvzd template import NAME SOURCE'"
	if len(names) > 0 {
		have = "there are " + strings.Join(names, ", ")
	}
	return invalid("<filesystem>", "names the template '%s', which does not exist; %s", shorten(name), have)
}

func validateSpace(f libvirtxml.DomainFilesystem) error {
	for _, l := range []*libvirtxml.DomainFilesystemSpaceHardLimit{f.SpaceHardLimit, (*libvirtxml.DomainFilesystemSpaceHardLimit)(f.SpaceSoftLimit)} {
		if l != nil {
			if _, err := toKiB("<space_hard_limit>", uint64(l.Value), cmp.Or(l.Unit, "bytes")); err != nil {
				return err
			}
		}
	}
	if hard, soft := spaceLimits(f); hard != 0 && soft > hard {
		return invalid("<space_soft_limit>", "of the filesystem at '%s' must not be above its <space_hard_limit>", shorten(f.Target.Dir))
	}
	return nil
}

// maxSpace is more than any file system has, in KiB.
const maxSpace = math.MaxInt64 >> 10

// spaceLimits are bytes; 0 is none, as in libvirt's XML.
func spaceLimits(f libvirtxml.DomainFilesystem) (hard, soft uint64) {
	limit := func(l *libvirtxml.DomainFilesystemSpaceHardLimit) uint64 {
		if l == nil {
			return 0
		}
		kib, _ := toKiB("<space_hard_limit>", uint64(l.Value), cmp.Or(l.Unit, "bytes"))
		return min(kib, maxSpace) << 10
	}
	return limit(f.SpaceHardLimit), limit((*libvirtxml.DomainFilesystemSpaceHardLimit)(f.SpaceSoftLimit))
}

// limitable tells whether a filesystem can have a limit of space: the root, of
// what is a part of a file system of the host's, or an image.
func limitable(f libvirtxml.DomainFilesystem) bool {
	kind, _ := filesystemSource(f)
	_, soft := spaceLimits(f)
	return path.Clean(f.Target.Dir) == "/" && (kind == "template" || kind == "mount" || kind == "file" && soft == 0)
}

// RootSpace is the hard limit of the root in bytes; 0 is none.
func RootSpace(def *libvirtxml.Domain) uint64 {
	for _, f := range def.Devices.Filesystems {
		if path.Clean(f.Target.Dir) == "/" {
			hard, _ := spaceLimits(f)
			return hard
		}
	}
	return 0
}

// SetRootSpace makes the root's hard limit a number of bytes, and its soft
// limit no more than that.
func SetRootSpace(def *libvirtxml.Domain, size uint64) error {
	for n := range def.Devices.Filesystems {
		f := &def.Devices.Filesystems[n]
		if path.Clean(f.Target.Dir) != "/" {
			continue
		}
		if kind, _ := filesystemSource(*f); !limitable(*f) {
			return unsupported("<filesystem>", "of type '%s' at '/' has the size that its source has: only a template's layer, a directory or an image has a limit", kind)
		}
		f.SpaceHardLimit = &libvirtxml.DomainFilesystemSpaceHardLimit{Value: uint(size), Unit: "bytes"}
		if _, soft := spaceLimits(*f); soft > size {
			f.SpaceSoftLimit = &libvirtxml.DomainFilesystemSpaceSoftLimit{Value: uint(size), Unit: "bytes"}
		}
	}
	return nil
}

// filesystemSource gives the type of a <filesystem> and what it names.
func filesystemSource(f libvirtxml.DomainFilesystem) (kind, source string) {
	switch s := f.Source; {
	case s == nil:
		return "", ""
	case s.Template != nil:
		return "template", s.Template.Name
	case s.Mount != nil:
		return "mount", s.Mount.Dir
	case s.Bind != nil:
		return "bind", s.Bind.Dir
	case s.File != nil:
		return "file", s.File.File
	case s.Block != nil:
		return "block", s.Block.Dev
	case s.RAM != nil:
		return "ram", "tmpfs"
	case s.Volume != nil:
		return "volume", s.Volume.Pool + "/" + s.Volume.Volume
	}
	return "", ""
}

// withHostRoot gives a definition without a root the host's, and places to
// write to.
func withHostRoot(list []Filesystem) []Filesystem {
	has := func(target string) bool {
		return slices.ContainsFunc(list, func(f Filesystem) bool { return f.Target == target })
	}
	if has("/") {
		return list
	}
	root := []Filesystem{{Type: "host", Source: "/", Target: "/", ReadOnly: true}}
	for _, target := range []string{"/tmp", "/var/tmp"} {
		if !has(target) {
			root = append(root, Filesystem{Type: "tmp", Target: target})
		}
	}
	return append(root, list...)
}
