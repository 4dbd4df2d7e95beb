package main

import (
	"encoding/xml"
	"errors"
	"slices"
	"strconv"
	"strings"

	"libvirt.org/go/libvirt"
)

// change is a set that is being done: to what runs, to the definition, or both.
type change struct {
	dom    *libvirt.Domain
	o      options
	impact libvirt.DomainModificationImpact
	save   bool
}

// set changes what runs, and with --save the definition too. Each parameter is
// set by itself, in the order below; the first that fails ends it.
func set(s *session, dom *libvirt.Domain, args []string) error {
	o, err := parseOptions(args, append(parameterNames(), "name", "onboot", "ipdel", "userpasswd", "tag"), []string{"save", "force"})
	if err != nil {
		return err
	}
	for _, name := range []string{"ostemplate", "private", "netif", "cpumask", "nodemask", "ioprio", "capability", "devnodes", "privvmpages", "vmguarpages"} {
		if o.has(name) {
			return failf(exitParameter, "--%s cannot be set by vzctl: use virsh edit, memtune, vcpupin, blkiotune, attach-interface or attach-device", name)
		}
	}
	c := &change{dom: dom, o: o, save: o.has("save")}
	live, err := dom.IsActive()
	if err != nil {
		return err
	}
	if !live && !c.save {
		return failf(exitStopped, "Container is not running: --save sets it for the next start")
	}
	if live {
		c.impact |= libvirt.DOMAIN_AFFECT_LIVE
	}
	if c.save {
		c.impact |= libvirt.DOMAIN_AFFECT_CONFIG
	}
	for _, step := range []func() error{c.memory, c.cpus, c.scheduler, c.metadata, c.addresses, c.diskspace, c.words, c.password} {
		if err := step(); err != nil {
			return err
		}
	}
	if c.save {
		s.say("CT configuration saved")
	} else {
		s.say("WARNING: Settings were not saved and will be reset to original values on next start (use --save flag)")
	}
	return nil
}

// size of --ram or --swap, in KiB, or of the limit of pages it stands for.
func (c *change) size(option, pages string) (kib uint64, given bool, err error) {
	if c.o.has(option) {
		if kib, err = kibibytes(c.o.last(option)); err != nil {
			err = failf(exitValue, "--%s is %q: a size such as 512M is accepted", option, c.o.last(option))
		}
		return kib, true, err
	}
	if !c.o.has(pages) {
		return 0, false, nil
	}
	_, limit, two := strings.Cut(c.o.last(pages), ":")
	if !two {
		limit = c.o.last(pages)
	}
	if n, err := strconv.ParseUint(limit, 10, 50); err == nil {
		return n * 4, true, nil // pages of 4 KiB
	}
	if kib, err = kibibytes(limit); err != nil {
		err = failf(exitValue, "--%s is %q: pages, or a size such as 0:512M are accepted", pages, c.o.last(pages))
	}
	return kib, true, err
}

func (c *change) memory() error {
	ram, haveRAM, err := c.size("ram", "physpages")
	if err != nil {
		return err
	}
	swap, haveSwap, err := c.size("swap", "swappages")
	if err != nil {
		return err
	}
	m := memoryChange{}
	if haveRAM {
		m.ram = &ram
	}
	if haveSwap {
		m.swap = &swap
	}
	if m == (memoryChange{}) {
		return nil
	}
	return m.set(c.dom, c.impact)
}

// memoryChange is a new size of memory, swap or both, in KiB.
type memoryChange struct{ ram, swap *uint64 }

// set changes what runs and the definition, which may differ. The limit that
// libvirt and the kernel's cgroup v1 have counts memory and swap together: with
// the memory alone it is moved along, so that the swap stays. It is raised
// before the memory and lowered after it, for below that it may not be.
func (m memoryChange) set(dom definitions, impact libvirt.DomainModificationImpact) (err error) {
	var undo, after []func() error
	defer func() {
		for _, do := range slices.Backward(undo) {
			if err != nil {
				err = errors.Join(err, do())
			}
		}
	}()
	for _, one := range parts(impact) {
		of := libvirt.DomainModificationImpact(one)
		now, err := dom.GetMemoryParameters(of)
		if err != nil {
			return err
		}
		both, err := m.both(now.HardLimit, now.SwapHardLimit)
		if err != nil {
			return err
		}
		if both != now.SwapHardLimit {
			set := func() error { return setBoth(dom, of, both) }
			if both < now.SwapHardLimit {
				after = append(after, set)
			} else if err := set(); err != nil {
				return err
			} else {
				undo = append(undo, func() error { return setBoth(dom, of, now.SwapHardLimit) })
			}
		}
		if m.ram == nil {
			continue
		}
		def, err := definition(dom, one.flags())
		if err != nil {
			return err
		}
		if def.Memory == nil || *m.ram <= uint64(def.Memory.Value) {
			continue
		}
		most := libvirt.DomainMemoryModFlags(one) | libvirt.DOMAIN_MEM_MAXIMUM
		if err := dom.SetMemoryFlags(*m.ram, most); err != nil {
			return err
		}
		undo = append(undo, func() error { return dom.SetMemoryFlags(uint64(def.Memory.Value), most) })
	}
	if m.ram != nil {
		if err := dom.SetMemoryFlags(*m.ram, libvirt.DomainMemoryModFlags(impact)); err != nil {
			return err
		}
		undo = nil
	}
	for _, lower := range after {
		if err := lower(); err != nil {
			return err
		}
	}
	return nil
}

// both is the new limit of memory and swap, by those in force.
func (m memoryChange) both(memory, both uint64) (uint64, error) {
	const none = libvirt.DOMAIN_MEMORY_PARAM_UNLIMITED
	swap := both - min(memory, both)
	switch {
	case m.swap != nil:
		swap = *m.swap
	case both >= none:
		return none, nil
	}
	if m.ram != nil {
		memory = *m.ram
	}
	if memory >= none {
		return 0, failf(exitValue, "the swap cannot be limited where the memory is not: give --ram as well")
	}
	return min(memory+swap, none), nil
}

func setBoth(dom definitions, of libvirt.DomainModificationImpact, kib uint64) error {
	return dom.SetMemoryParameters(&libvirt.DomainMemoryParameters{SwapHardLimitSet: true, SwapHardLimit: kib}, of)
}

func (c *change) number(option string, most uint64) (uint64, bool, error) {
	if !c.o.has(option) {
		return 0, false, nil
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(c.o.last(option), "%"), 10, 64)
	if err != nil || n > most {
		return 0, false, failf(exitValue, "--%s is %q: 0 to %d is accepted", option, c.o.last(option), most)
	}
	return n, true, nil
}

func (c *change) cpus() error {
	n, given, err := c.number("cpus", 16384)
	if err != nil || !given {
		return err
	}
	if c.save {
		most, err := c.dom.GetVcpusFlags(libvirt.DOMAIN_VCPU_CONFIG | libvirt.DOMAIN_VCPU_MAXIMUM)
		if err != nil {
			return err
		}
		if int32(n) > most {
			if err := c.dom.SetVcpusFlags(uint(n), libvirt.DOMAIN_VCPU_CONFIG|libvirt.DOMAIN_VCPU_MAXIMUM); err != nil {
				return err
			}
		}
	}
	return c.dom.SetVcpusFlags(uint(n), libvirt.DomainVcpuFlags(c.impact))
}

// scheduler: 1000 of OpenVZ's units are 100 of a control group, and a limit
// is in percent of one CPU.
func (c *change) scheduler() error {
	units, haveUnits, err := c.number("cpuunits", 500_000)
	if err != nil {
		return err
	}
	limit, haveLimit, err := c.number("cpulimit", 1_600_000)
	if err != nil || !haveUnits && !haveLimit {
		return err
	}
	p := &libvirt.DomainSchedulerParameters{}
	if haveUnits {
		p.CpuSharesSet, p.CpuShares = true, min(10_000, max(1, units/10))
	}
	if haveLimit {
		p.VcpuPeriodSet, p.VcpuPeriod = true, 100_000
		p.VcpuQuotaSet, p.VcpuQuota = true, int64(limit)*1000
		if limit == 0 {
			p.VcpuQuota = -1
		}
	}
	return c.dom.SetSchedulerParametersFlags(p, c.impact)
}

const veNamespace = "http://virtvzd.org/ve/1.0"

// ve is the daemon's element in <metadata>; what is not set here is kept.
type ve struct {
	XMLName  xml.Name  `xml:"ve"`
	Children []veChild `xml:",any"`
}

type veChild struct {
	XMLName xml.Name
	Attrs   []xml.Attr `xml:",any,attr"`
	Text    string     `xml:",chardata"`
}

// replace puts the values of one name in the place of those there are.
func (v *ve) replace(name string, values []string) {
	v.Children = slices.DeleteFunc(v.Children, func(c veChild) bool { return c.XMLName.Local == name })
	for _, value := range values {
		v.Children = append(v.Children, veChild{XMLName: xml.Name{Local: name}, Text: value})
	}
}

// limit sets a beancounter, barrier:limit or both in one.
func (v *ve) limit(name, value string) {
	barrier, limit, two := strings.Cut(value, ":")
	if !two {
		limit = barrier
	}
	const unlimited = "9223372036854775807"
	limit = strings.ReplaceAll(limit, "unlimited", unlimited)
	v.Children = slices.DeleteFunc(v.Children, func(c veChild) bool {
		return c.XMLName.Local == "ubc" && slices.ContainsFunc(c.Attrs, func(a xml.Attr) bool { return a.Name.Local == "name" && a.Value == name })
	})
	v.Children = append(v.Children, veChild{XMLName: xml.Name{Local: "ubc"},
		Attrs: []xml.Attr{{Name: xml.Name{Local: "name"}, Value: name}, {Name: xml.Name{Local: "limit"}, Value: limit}}})
}

// edit is the element with what the options say.
func (o options) edit(element string) (edited string, changed bool, err error) {
	v := ve{}
	if element != "" {
		if err := xml.Unmarshal([]byte(element), &v); err != nil {
			return "", false, err
		}
	}
	for n := range v.Children { // as libvirt gives it, without a prefix
		v.Children[n].XMLName.Space = ""
	}
	v.XMLName = xml.Name{Local: "ve"}
	for _, name := range []string{"hostname", "nameserver", "searchdomain"} {
		if o.has(name) {
			v.replace(name, o[name])
			changed = true
		}
	}
	if o.has("tag") {
		tags, err := tagsOf(o["tag"])
		if err != nil {
			return "", false, err
		}
		v.replace("tag", tags)
		changed = true
	}
	for _, p := range beancounters() {
		if o.has(p.option) {
			v.limit(p.option, o.last(p.option))
			changed = true
		}
	}
	out, err := xml.Marshal(v)
	return string(out), changed, err
}

// metadata is done to each of the two, which may differ.
func (c *change) metadata() error {
	for _, one := range parts(c.impact) {
		element, err := c.dom.GetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, veNamespace, libvirt.DomainModificationImpact(one))
		if err != nil {
			element = "" // there is none yet
		}
		edited, changed, err := c.o.edit(element)
		if err != nil || !changed {
			return err
		}
		if err := c.dom.SetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, edited, "ve", veNamespace, libvirt.DomainModificationImpact(one)); err != nil {
			return err
		}
	}
	return nil
}

// addresses of the routed interface, venet to those of OpenVZ.
func (c *change) addresses() error {
	if !c.o.has("ipadd") && !c.o.has("ipdel") {
		return nil
	}
	return c.o.setAddresses(c.dom, c.impact)
}

// diskspace is the root's, soft and hard in KiB as OpenVZ counts it.
func (c *change) diskspace() error {
	if !c.o.has("diskspace") {
		return nil
	}
	soft, hard, two := strings.Cut(c.o.last("diskspace"), ":")
	if !two {
		hard = soft
	}
	var limits [2]uint64
	for n, text := range []string{soft, hard} {
		kib, err := strconv.ParseUint(text, 10, 63)
		if err != nil {
			kib, err = kibibytes(text)
		}
		if err != nil {
			return failf(exitValue, "--diskspace is %q: KiB, or sizes such as 1G:1100M are accepted", c.o.last("diskspace"))
		}
		limits[n] = kib
	}
	return setRoot(c.dom, c.impact, limits[0], limits[1])
}

// words about a container, and whether it starts with the host.
func (c *change) words() error {
	for option, kind := range map[string]libvirt.DomainMetadataType{
		"name": libvirt.DOMAIN_METADATA_TITLE, "description": libvirt.DOMAIN_METADATA_DESCRIPTION,
	} {
		if c.o.has(option) {
			if err := c.dom.SetMetadata(kind, c.o.last(option), "", "", c.impact); err != nil {
				return err
			}
		}
	}
	if c.o.has("onboot") {
		return c.dom.SetAutostart(c.o.last("onboot") == "yes")
	}
	return nil
}

func (c *change) password() error {
	if !c.o.has("userpasswd") {
		return nil
	}
	user, password, ok := strings.Cut(c.o.last("userpasswd"), ":")
	if !ok {
		return failf(exitValue, "--userpasswd needs USER:PASSWORD")
	}
	return c.dom.SetUserPassword(user, password, 0)
}
