package xml

import (
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"libvirt.org/go/libvirtxml"
)

// validate checks that an environment can be what the definition says.
func validate(def *libvirtxml.Domain, host HostFacts) error {
	checks := []func(*libvirtxml.Domain, HostFacts) error{
		validateType, validateName, validateMemory, validateCPU, validateOS, validateIDMap,
		validateFeatures, validateClock, validateActions, validateFilesystems, validateDevices, validateInterfaces,
		validateHostdevs, validateDisks, validateConsoles, validateCPUTune, validateBlockTune, validateNUMA, validatePartition,
		validateNamespaces, validateSecLabel, validateVE,
	}
	for _, check := range checks {
		if err := check(def, host); err != nil {
			return err
		}
	}
	return nil
}

func validateType(def *libvirtxml.Domain, _ HostFacts) error {
	if !slices.Contains([]string{"vz", "lxc", "openvz"}, def.Type) {
		return unsupported("<domain>", "has the type '%s': vz, lxc and openvz are accepted", shorten(def.Type))
	}
	return nil
}

func validateName(def *libvirtxml.Domain, _ HostFacts) error {
	if err := CheckName(def.Name); err != nil {
		return err
	}
	return CheckTitle(def.Title)
}

// maxName leaves room for what is put around a name in file and unit names,
// of which the kernel allows 255 bytes.
const maxName = 200

// CheckName tells whether a domain may be called so.
func CheckName(name string) error {
	switch {
	case name == "":
		return invalid("<name>", "is missing or empty: a domain needs a name")
	case len(name) > maxName:
		return invalid("<name>", "has %d bytes, the limit is %d", len(name), maxName)
	case strings.Contains(name, "/"):
		return invalid("<name>", "'%s' contains '/', which a name may not: it is a file name", shorten(name))
	case name == "." || name == "..":
		return invalid("<name>", "may not be '%s'", name)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
		return invalid("<name>", "contains control characters or is not UTF-8")
	case strings.HasPrefix(name, "."):
		return invalid("<name>", "'%s' may not begin with '.': the file of its definition would be hidden", shorten(name))
	case strings.TrimSpace(name) == "":
		return invalid("<name>", "must not consist of white space only")
	}
	return nil
}

// CheckTitle tells whether a domain may have this title.
func CheckTitle(title string) error {
	if strings.Contains(title, "\n") {
		return invalid("<title>", "must be one line")
	}
	return nil
}

// minMemory is below what any init needs; less is a mistaken unit.
const minMemory = 1024 // KiB

func validateMemory(def *libvirtxml.Domain, _ HostFacts) error {
	if def.Memory.Value < minMemory {
		return invalid("<memory>", "is %d KiB, at least %d KiB are needed", def.Memory.Value, minMemory)
	}
	if def.CurrentMemory.Value < minMemory {
		return invalid("<currentMemory>", "is %d KiB, at least %d KiB are needed", def.CurrentMemory.Value, minMemory)
	}
	t := def.MemoryTune
	if t == nil {
		return nil
	}
	for _, l := range []struct {
		element string
		limit   *libvirtxml.DomainMemoryTuneLimit
	}{{"<hard_limit>", t.HardLimit}, {"<soft_limit>", t.SoftLimit}} {
		if l.limit != nil && l.limit.Value < minMemory {
			return invalid(l.element, "is %d KiB, at least %d KiB are needed (%d is no limit)", l.limit.Value, minMemory, uint64(Unlimited))
		}
	}
	if t.HardLimit != nil && t.SwapHardLimit != nil && t.SwapHardLimit.Value < t.HardLimit.Value {
		return invalid("<swap_hard_limit>", "(%d KiB) counts memory and swap together and must not be below <hard_limit> (%d KiB)",
			t.SwapHardLimit.Value, t.HardLimit.Value)
	}
	return nil
}

func validateCPU(def *libvirtxml.Domain, _ HostFacts) error {
	v := def.VCPU
	if v.Value < 1 || v.Value > 16384 {
		return invalid("<vcpu>", "is %d: 1 to 16384 are accepted", v.Value)
	}
	if v.Current > v.Value {
		return invalid("<vcpu>", "has current='%d', more than its maximum %d", v.Current, v.Value)
	}
	if v.CPUSet != "" {
		if _, err := ParseCPUSet(v.CPUSet); err != nil {
			return invalid("<vcpu>", "has cpuset='%s': a list such as 0-3,^2,8 is accepted", shorten(v.CPUSet))
		}
	}
	return nil
}

// compatible are the 32-bit programs a 64-bit kernel runs.
var compatible = map[string]string{"x86_64": "i686", "aarch64": "armv7l", "ppc64": "ppc", "s390x": "s390"}

func validateOS(def *libvirtxml.Domain, host HostFacts) error {
	os := def.OS
	if os.Type.Type != "exe" {
		return unsupported("<os><type>", "is '%s': only 'exe' can be run, an init in a container", shorten(os.Type.Type))
	}
	if host.Arch != "" && os.Type.Arch != host.Arch && os.Type.Arch != compatible[host.Arch] {
		return unsupported("<os><type>", "has arch='%s', this host is %s", shorten(os.Type.Arch), host.Arch)
	}
	if os.Init != "" && !strings.HasPrefix(os.Init, "/") {
		return invalid("<init>", "'%s' must be an absolute path inside the environment", shorten(os.Init))
	}
	if os.Init == "" && len(os.InitArgs) > 0 {
		return invalid("<initarg>", "needs an <init> it belongs to")
	}
	if os.InitDir != "" && !strings.HasPrefix(os.InitDir, "/") {
		return invalid("<initdir>", "'%s' must be an absolute path inside the environment", shorten(os.InitDir))
	}
	for _, e := range os.InitEnv {
		if e.Name == "" || strings.ContainsAny(e.Name, "=\x00") {
			return invalid("<initenv>", "has the name %q: a name without '=' is needed", shorten(e.Name))
		}
	}
	for _, own := range [][2]string{{"<kernel>", os.Kernel}, {"<initrd>", os.Initrd}, {"<cmdline>", os.Cmdline}, {"<dtb>", os.DTB}} {
		if own[1] != "" {
			return unsupported(own[0], "cannot be used: environments run on the host's kernel")
		}
	}
	if os.Loader != nil || os.NVRam != nil || os.Firmware != "" {
		return unsupported("<loader>", "cannot be used: environments have no firmware")
	}
	return nil
}

// maxIDs is the end of the kernel's user ids; the last one means "none".
const maxIDs = 1<<32 - 1

func validateIDMap(def *libvirtxml.Domain, _ HostFacts) error {
	m := def.IDMap
	if m == nil {
		return nil
	}
	if len(m.UIDs) == 0 || len(m.GIDs) == 0 {
		return invalid("<idmap>", "needs both <uid> and <gid>")
	}
	if err := validateRanges("<idmap><uid>", m.UIDs); err != nil {
		return err
	}
	return validateRanges("<idmap><gid>", m.GIDs)
}

func validateRanges(element string, ranges []libvirtxml.DomainIDMapRange) error {
	if len(ranges) > 340 {
		return invalid(element, "occurs %d times, the kernel takes 340", len(ranges))
	}
	hasRoot := false
	for i, r := range ranges {
		if r.Count < 1 || r.Count > maxIDs || r.Start > maxIDs-r.Count || r.Target > maxIDs-r.Count {
			return invalid(element, "start=%d target=%d count=%d is no range of user ids", r.Start, r.Target, r.Count)
		}
		hasRoot = hasRoot || r.Start == 0
		for _, other := range ranges[:i] {
			if overlap(r.Start, r.Count, other.Start, other.Count) || overlap(r.Target, r.Count, other.Target, other.Count) {
				return invalid(element, "has ranges that overlap")
			}
		}
	}
	if !hasRoot {
		return invalid(element, "must map start=0: the environment's init is root inside")
	}
	return nil
}

func overlap(a, na, b, nb uint) bool { return a < b+nb && b < a+na }

func validateActions(def *libvirtxml.Domain, _ HostFacts) error {
	for _, a := range []struct {
		element, value string
		more           []string
	}{
		{"<on_poweroff>", def.OnPoweroff, nil},
		{"<on_reboot>", def.OnReboot, nil},
		{"<on_crash>", def.OnCrash, []string{"coredump-destroy", "coredump-restart"}},
	} {
		accepted := append([]string{"destroy", "restart", "preserve", "rename-restart"}, a.more...)
		if !slices.Contains(accepted, a.value) {
			return invalid(a.element, "is '%s': %s are accepted", shorten(a.value), strings.Join(accepted, ", "))
		}
	}
	return nil
}

func validateFeatures(def *libvirtxml.Domain, _ HostFacts) error {
	if def.Features == nil || def.Features.Capabilities == nil {
		return nil
	}
	if p := def.Features.Capabilities.Policy; !slices.Contains([]string{"", "default", "allow", "deny"}, p) {
		return invalid("<capabilities>", "has policy='%s': default, allow and deny are accepted", shorten(p))
	}
	states := capabilityStates(def.Features.Capabilities)
	for _, name := range slices.Sorted(maps.Keys(states)) {
		if state := states[name]; state != "on" && state != "off" {
			return invalid("<"+name+">", "has state='%s': on and off are accepted", shorten(state))
		}
	}
	return nil
}

// clockOffsets: an environment's clock is the host's, which the time
// namespace can only move for the uptime.
var clockOffsets = []string{"", "utc", "localtime", "variable"}

func validateClock(def *libvirtxml.Domain, _ HostFacts) error {
	if !slices.Contains(clockOffsets, def.Clock.Offset) {
		return unsupported("<clock>", "has offset='%s': utc, localtime and variable are accepted", shorten(def.Clock.Offset))
	}
	for _, t := range def.Clock.Timer {
		if t.Name != "rtc" && t.Name != "hpet" {
			return unsupported("<timer>", "has name='%s': rtc and hpet, devices of the host, are accepted", shorten(t.Name))
		}
	}
	return nil
}

func validateSecLabel(def *libvirtxml.Domain, _ HostFacts) error {
	for _, l := range def.SecLabel {
		if l.Type != "none" && !slices.Contains([]string{"", "none", "apparmor"}, l.Model) {
			return unsupported("<seclabel>", "has model='%s': none and apparmor are accepted", shorten(l.Model))
		}
	}
	return nil
}
