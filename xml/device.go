package xml

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// validateFilesystems wants exactly one root and every other mount at a
// place of its own. There is no fallback: without a root the host's own
// would be the only thing left to run on.
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
	if !targets["/"] {
		return invalid("<filesystem>", "with <target dir='/'/> is missing: an environment needs a root, of type 'template' or 'mount'")
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
	have := "there is none yet: make one with 'virtvzd template import NAME FILE'"
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

var macPattern = regexp.MustCompile(`^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$`)

// validateDevices refuses what only a virtual machine can have.
func validateDevices(def *libvirtxml.Domain, _ HostFacts) error {
	d := def.Devices
	for _, c := range []struct {
		element string
		count   int
	}{
		{"<tpm>", len(d.TPMs)}, {"<rng>", len(d.RNGs)}, {"<smartcard>", len(d.Smartcards)}, {"<panic>", len(d.Panics)},
		{"<sound>", len(d.Sounds)}, {"<watchdog>", len(d.Watchdogs)}, {"<redirdev>", len(d.RedirDevs)}, {"<hub>", len(d.Hubs)},
		{"<parallel>", len(d.Parallels)}, {"<serial>", len(d.Serials)}, {"<channel>", len(d.Channels)}, {"<shmem>", len(d.Shmems)},
		{"<memory model=…>", len(d.Memorydevs)}, {"<iommu>", len(d.IOMMUs)}, {"<lease>", len(d.Leases)}, {"<crypto>", len(d.Crypto)},
	} {
		if c.count > 0 {
			return unsupported(c.element, "cannot be given to an environment: it is a container and has no such device")
		}
	}
	macs := map[string]bool{}
	for _, n := range d.Interfaces {
		mac := strings.ToLower(n.MAC.Address)
		if !macPattern.MatchString(mac) {
			return invalid("<mac>", "has address='%s': six hexadecimal bytes such as 52:54:00:12:34:56 are accepted", shorten(mac))
		}
		if mac[1]&1 == 1 && strings.ContainsRune("13579bdf", rune(mac[1])) {
			return invalid("<mac>", "has address='%s', a multicast address: the second digit must be even", mac)
		}
		if macs[mac] {
			return invalid("<mac>", "has address='%s' twice", mac)
		}
		macs[mac] = true
		if n.Source == nil {
			return invalid("<interface>", "needs a type and its <source>")
		}
	}
	for _, c := range d.Consoles {
		if c.Source == nil || c.Source.Pty == nil {
			return unsupported("<console>", "has another type than 'pty', the one an environment can have")
		}
	}
	return nil
}

// validateTune checks what is tuned, with the ranges of libvirt's lxc driver
// and the kernel.
func validateTune(def *libvirtxml.Domain, _ HostFacts) error {
	t := def.CPUTune
	if t == nil {
		return nil
	}
	if t.Shares != nil && (t.Shares.Value < 1 || t.Shares.Value > 262144) {
		return invalid("<shares>", "is %d: 1 to 10000 is accepted, or the 2 to 262144 of cgroup v1", t.Shares.Value)
	}
	for element, p := range map[string]*libvirtxml.DomainCPUTunePeriod{"<period>": t.Period, "<global_period>": t.GlobalPeriod} {
		if p != nil && (p.Value < 1000 || p.Value > 1_000_000) {
			return invalid(element, "is %d µs: 1000 to 1000000 are accepted", p.Value)
		}
	}
	for element, q := range map[string]*libvirtxml.DomainCPUTuneQuota{"<quota>": t.Quota, "<global_quota>": t.GlobalQuota} {
		if q != nil && q.Value > 0 && q.Value < 1000 {
			return invalid(element, "is %d µs: 1000 and more are accepted, or a negative number for none", q.Value)
		}
	}
	return nil
}
