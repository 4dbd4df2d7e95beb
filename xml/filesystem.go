package xml

import (
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
	if !slices.Contains([]string{"passthrough", "mapped", "squash"}, f.AccessMode) {
		return invalid("<filesystem>", "has accessmode='%s': passthrough, mapped and squash are accepted", shorten(f.AccessMode))
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
