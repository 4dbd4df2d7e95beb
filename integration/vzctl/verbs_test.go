package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// twofold is a domain that runs: it has devices and memory by the flag of each
// of its two definitions, and refuses what is not there.
type twofold map[libvirt.DomainModificationImpact]*libvirtxml.Domain

const live, config = libvirt.DOMAIN_AFFECT_LIVE, libvirt.DOMAIN_AFFECT_CONFIG

func newTwofold(t *testing.T, running, defined string) twofold {
	t.Helper()
	d := twofold{live: {}, config: {}}
	for of, inner := range map[libvirt.DomainModificationImpact]string{live: running, config: defined} {
		if err := d[of].Unmarshal("<domain><name>101</name>" + inner + "</domain>"); err != nil {
			t.Fatal(err)
		}
		if d[of].Devices == nil {
			d[of].Devices = &libvirtxml.DomainDeviceList{}
		}
	}
	return d
}

func (d twofold) GetXMLDesc(flags libvirt.DomainXMLFlags) (string, error) {
	if flags&libvirt.DOMAIN_XML_INACTIVE != 0 {
		return d[config].Marshal()
	}
	return d[live].Marshal()
}

func (d twofold) each(flags uint32, do func(*libvirtxml.Domain) error) error {
	for of, def := range d {
		if flags&uint32(of) != 0 {
			if err := do(def); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d twofold) SetMemoryFlags(kib uint64, flags libvirt.DomainMemoryModFlags) error {
	return d.each(uint32(flags), func(def *libvirtxml.Domain) error {
		if flags&libvirt.DOMAIN_MEM_MAXIMUM != 0 {
			def.Memory.Value = uint(kib)
			return nil
		}
		if kib > uint64(def.Memory.Value) {
			return errors.New("more than the maximum")
		}
		if kib < inUse {
			return errors.New("too much memory is in use")
		}
		def.CurrentMemory.Value = uint(kib)
		if t := def.MemoryTune; t != nil && t.HardLimit != nil {
			t.HardLimit.Value = kib
		}
		return checkSwap(def)
	})
}

// inUse is what no limit may be below, in KiB.
const inUse = 8192

// checkSwap as the daemon does it, see xml/validate.go.
func checkSwap(def *libvirtxml.Domain) error {
	if t := def.MemoryTune; t != nil && t.HardLimit != nil && t.SwapHardLimit != nil && t.SwapHardLimit.Value < t.HardLimit.Value {
		return errors.New("<swap_hard_limit> is below <hard_limit>")
	}
	return nil
}

// GetMemoryParameters are the limits in force.
func (d twofold) GetMemoryParameters(of libvirt.DomainModificationImpact) (*libvirt.DomainMemoryParameters, error) {
	p := &libvirt.DomainMemoryParameters{HardLimit: uint64(d[of].CurrentMemory.Value), SwapHardLimit: libvirt.DOMAIN_MEMORY_PARAM_UNLIMITED}
	if t := d[of].MemoryTune; t != nil {
		if t.HardLimit != nil {
			p.HardLimit = t.HardLimit.Value
		}
		if t.SwapHardLimit != nil {
			p.SwapHardLimit = max(t.SwapHardLimit.Value, p.HardLimit)
		}
	}
	return p, nil
}

func (d twofold) SetMemoryParameters(p *libvirt.DomainMemoryParameters, of libvirt.DomainModificationImpact) error {
	return d.each(uint32(of), func(def *libvirtxml.Domain) error {
		if def.MemoryTune == nil {
			def.MemoryTune = &libvirtxml.DomainMemoryTune{}
		}
		def.MemoryTune.SwapHardLimit = &libvirtxml.DomainMemoryTuneLimit{Value: p.SwapHardLimit}
		if p.SwapHardLimit >= libvirt.DOMAIN_MEMORY_PARAM_UNLIMITED {
			def.MemoryTune.SwapHardLimit = nil
		}
		return checkSwap(def)
	})
}

func (d twofold) AttachDeviceFlags(doc string, flags libvirt.DomainDeviceModifyFlags) error {
	return d.each(uint32(flags), func(def *libvirtxml.Domain) error {
		n := libvirtxml.DomainInterface{}
		if err := n.Unmarshal(doc); err != nil {
			return err
		}
		if len(def.Devices.Interfaces) > 1 {
			return errors.New("no slot is left")
		}
		def.Devices.Interfaces = append(def.Devices.Interfaces, n)
		return nil
	})
}

func (d twofold) DetachDeviceFlags(doc string, flags libvirt.DomainDeviceModifyFlags) error {
	return d.each(uint32(flags), func(def *libvirtxml.Domain) error {
		n := libvirtxml.DomainInterface{}
		if err := n.Unmarshal(doc); err != nil {
			return err
		}
		before := len(def.Devices.Interfaces)
		def.Devices.Interfaces = slices.DeleteFunc(def.Devices.Interfaces, func(have libvirtxml.DomainInterface) bool {
			return have.MAC.Address == n.MAC.Address
		})
		if len(def.Devices.Interfaces) == before {
			return fmt.Errorf("no device with the address %s", n.MAC.Address)
		}
		return nil
	})
}

func (d twofold) UpdateDeviceFlags(doc string, flags libvirt.DomainDeviceModifyFlags) error {
	return d.each(uint32(flags), func(def *libvirtxml.Domain) error { return def.Devices.Filesystems[0].Unmarshal(doc) })
}

// addresses of all interfaces of one definition.
func (d twofold) addresses(of libvirt.DomainModificationImpact) string {
	var list []string
	for _, n := range d[of].Devices.Interfaces {
		for _, ip := range n.IP {
			list = append(list, ip.Address)
		}
	}
	return strings.Join(list, " ")
}

// TestSetMemory: one that runs may have had its maximum raised without --save.
func TestSetMemory(t *testing.T) {
	const less = "<memory>65536</memory><currentMemory>65536</currentMemory>"
	d := newTwofold(t, less, less)
	set := func(of libvirt.DomainModificationImpact, kib uint64) error { return memoryChange{ram: &kib}.set(d, of) }
	if err := set(live, 1<<20); err != nil || d[config].Memory.Value != 65536 {
		t.Errorf("%v, %d are saved", err, d[config].Memory.Value)
	}
	if err := set(live|config, 1<<20); err != nil {
		t.Fatal(err)
	}
	for of, def := range d {
		if def.Memory.Value != 1<<20 || def.CurrentMemory.Value != 1<<20 || def.MemoryTune != nil {
			t.Errorf("of %d: %d of %d KiB", of, def.CurrentMemory.Value, def.Memory.Value)
		}
	}
	if err := set(live|config, 1<<19); err != nil || d[live].Memory.Value != 1<<20 {
		t.Errorf("%v, the maximum has become %d", err, d[live].Memory.Value)
	}
}

// TestSetSwap: the limit is of memory and swap, so it is another where that of
// memory is, and moves with it.
func TestSetSwap(t *testing.T) {
	const mib = 1024
	for _, running := range []string{
		"<currentMemory>524288</currentMemory><memtune><swap_hard_limit>1048576</swap_hard_limit></memtune>",
		"<currentMemory>524288</currentMemory><memtune><hard_limit>524288</hard_limit><swap_hard_limit>1048576</swap_hard_limit></memtune>",
	} {
		for _, c := range []struct {
			ram, swap    uint64 // MiB, 0: not given
			live, config uint64 // memory and swap, in the end
			fails        bool
		}{
			{0, 100, 612, 356, false},
			{768, 0, 1280, 768 + 64, false},
			{2048, 0, 2560, 2048 + 64, false},
			{16, 0, 528, 16 + 64, false},
			{2048, 1024, 3072, 3072, false},
			{64, 32, 96, 96, false},
			{4, 4096, 1024, 320, true}, // what is in use does not fit, so nothing changes
			{4, 0, 1024, 320, true},
		} {
			d := newTwofold(t, "<memory>1048576</memory>"+running,
				"<memory>262144</memory><currentMemory>262144</currentMemory><memtune><swap_hard_limit>327680</swap_hard_limit></memtune>")
			before := map[libvirt.DomainModificationImpact]uint{live: d[live].Memory.Value, config: d[config].Memory.Value}
			m, ram, swap := memoryChange{}, c.ram*mib, c.swap*mib
			if ram > 0 {
				m.ram = &ram
			}
			if swap > 0 {
				m.swap = &swap
			}
			if err := m.set(d, live|config); (err != nil) != c.fails {
				t.Errorf("%+v: %v", c, err)
			}
			for of, want := range map[libvirt.DomainModificationImpact]uint64{live: c.live, config: c.config} {
				if got := d[of].MemoryTune.SwapHardLimit.Value; got != want*mib {
					t.Errorf("%+v: of %d: %d MiB, want %d", c, of, got/mib, want)
				}
				if c.fails && d[of].Memory.Value != before[of] {
					t.Errorf("%+v: the maximum has become %d", c, d[of].Memory.Value)
				}
			}
		}
	}
	d := newTwofold(t, fmt.Sprintf("<currentMemory>%d</currentMemory>", uint64(libvirt.DOMAIN_MEMORY_PARAM_UNLIMITED)), "")
	swap := uint64(mib)
	if err := (memoryChange{swap: &swap}).set(d, live); codeOf(err) != exitValue {
		t.Errorf("the swap of one without a limit of its memory: %v", err)
	}
}

// TestSetAddresses: what runs has one that was not saved, and keeps it for
// itself.
func TestSetAddresses(t *testing.T) {
	nic := func(mac, ip string) string {
		return "<interface type='ethernet'><mac address='" + mac + "'/><ip address='" + ip + "' family='ipv4' prefix='32'/></interface>"
	}
	const one, two = "52:54:00:00:00:01", "52:54:00:00:00:02"
	in := func(devices string) string { return "<devices>" + devices + "</devices>" }
	for name, c := range map[string]struct{ running, defined, add, del, live, config string }{
		"same":         {nic(one, "192.0.2.1"), nic(one, "192.0.2.1"), "192.0.2.7", "", "192.0.2.1 192.0.2.7", "192.0.2.1 192.0.2.7"},
		"not saved":    {nic(one, "192.0.2.1"), "", "192.0.2.7", "", "192.0.2.1 192.0.2.7", "192.0.2.7"},
		"other":        {nic(one, "192.0.2.1"), nic(two, "192.0.2.2"), "192.0.2.7", "all", "192.0.2.7", "192.0.2.7"},
		"only defined": {"", nic(two, "192.0.2.2"), "", "192.0.2.2", "", ""},
		// The definition has no room for one more, so nothing changes.
		"fails": {nic(one, "192.0.2.1"), nic("", "") + nic("", ""), "192.0.2.7", "", "192.0.2.1", " "},
	} {
		d := newTwofold(t, in(c.running), in(c.defined))
		if name == "fails" {
			for n := range d[config].Devices.Interfaces {
				d[config].Devices.Interfaces[n].Source = nil
			}
		}
		o := options{"ipadd": {c.add}, "ipdel": {c.del}}
		if c.add == "" {
			delete(o, "ipadd")
		}
		err := o.setAddresses(d, live|config)
		if (err != nil) != (name == "fails") {
			t.Errorf("%s: %v", name, err)
		}
		if d.addresses(live) != c.live || d.addresses(config) != c.config {
			t.Errorf("%s: what runs has %q, what is defined %q", name, d.addresses(live), d.addresses(config))
		}
	}
}

// TestSetRoot: a root that runs otherwise than it is defined stays so.
func TestSetRoot(t *testing.T) {
	root := func(of string) string {
		return "<devices><filesystem type='template'><source name='" + of + "'/><target dir='/'/></filesystem></devices>"
	}
	d := newTwofold(t, root("old"), root("new"))
	if err := setRoot(d, live|config, 1000, 2000); err != nil {
		t.Fatal(err)
	}
	for of, template := range map[libvirt.DomainModificationImpact]string{live: "old", config: "new"} {
		f := d[of].Devices.Filesystems[0]
		if f.Source.Template.Name != template || f.SpaceSoftLimit.Value != 1000 || f.SpaceHardLimit.Value != 2000 {
			t.Errorf("of %d: %s, %d to %d", of, f.Source.Template.Name, f.SpaceSoftLimit.Value, f.SpaceHardLimit.Value)
		}
	}
	if err := setRoot(newTwofold(t, "", ""), live, 1, 1); err == nil {
		t.Error("a root that is not there is limited")
	}
}

// saves is a domain with or without a file that it goes on from.
type saves bool

func (s saves) HasManagedSaveImage(uint32) (bool, error) { return bool(s), nil }

func TestStatusWord(t *testing.T) {
	for _, c := range []struct {
		state libvirt.DomainState
		saved saves
		want  string
	}{
		{libvirt.DOMAIN_RUNNING, false, "running"}, {libvirt.DOMAIN_PAUSED, false, "paused"},
		{libvirt.DOMAIN_SHUTOFF, false, "stopped"}, {libvirt.DOMAIN_SHUTOFF, true, "suspended"},
	} {
		if got := statusWord(c.state, c.saved); got != c.want {
			t.Errorf("%d, saved %v: %s, want %s", c.state, c.saved, got, c.want)
		}
	}
}

// ending is a domain that ends when it is asked and can hear.
type ending struct {
	state libvirt.DomainState
	deaf  bool
	calls []string
}

func (e *ending) GetState() (libvirt.DomainState, int, error) { return e.state, 0, nil }
func (e *ending) IsActive() (bool, error)                     { return e.state != libvirt.DOMAIN_SHUTOFF, nil }

func (e *ending) Resume() error {
	e.calls, e.state = append(e.calls, "resume"), libvirt.DOMAIN_RUNNING
	return nil
}

func (e *ending) Shutdown() error {
	if e.calls = append(e.calls, "shutdown"); e.state == libvirt.DOMAIN_PAUSED {
		return errors.New("it is paused: resume it first")
	}
	if !e.deaf {
		e.state = libvirt.DOMAIN_SHUTOFF
	}
	return nil
}

func (e *ending) Destroy() error {
	e.calls, e.state = append(e.calls, "destroy"), libvirt.DOMAIN_SHUTOFF
	return nil
}

func TestEnd(t *testing.T) {
	for _, c := range []struct {
		dom  ending
		fast bool
		want string
	}{
		{ending{state: libvirt.DOMAIN_RUNNING}, false, "shutdown"},
		{ending{state: libvirt.DOMAIN_PAUSED}, false, "resume shutdown"},
		{ending{state: libvirt.DOMAIN_PAUSED}, true, "destroy"},
		{ending{state: libvirt.DOMAIN_PAUSED, deaf: true}, false, "resume shutdown destroy"},
	} {
		err := end(&c.dom, c.fast, time.Millisecond)
		if got := strings.Join(c.dom.calls, " "); err != nil || got != c.want || c.dom.state != libvirt.DOMAIN_SHUTOFF {
			t.Errorf("%s, %v, want %s", got, err, c.want)
		}
	}
}

// TestStopTwice: to stop what does not run is well, and a restart is a start.
func TestStopTwice(t *testing.T) {
	conn, err := libvirt.NewConnect("test:///default")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	dom, err := conn.LookupDomainByName("test")
	if err != nil {
		t.Fatal(err)
	}
	defer dom.Free()
	s := &session{conn: conn, quiet: true}
	for _, verb := range []func(*session, *libvirt.Domain, []string) error{stop, stop, restart} {
		if err := verb(s, dom, []string{"--fast"}); err != nil {
			t.Error(err)
		}
	}
	if active, err := dom.IsActive(); err != nil || !active {
		t.Errorf("what was restarted runs: %v, %v", active, err)
	}
	if err := start(s, dom, nil); codeOf(err) != exitRunning {
		t.Errorf("to start what runs: %v", err)
	}
}
