package xml

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
)

// setting is one KEY="value" and where it stands.
type setting struct {
	value string
	line  int
}

// openvz is a CTID.conf: the last of several settings holds, as in a shell.
type openvz map[string]setting

// fromOpenVZ reads a CTID.conf. The file does not say which CTID it is of:
// NAME, a line VEID="101", or VE_PRIVATE's last directory does.
func fromOpenVZ(d *draft, config string) error {
	conf, err := d.readOpenVZ(config)
	if err != nil {
		return err
	}
	if err := conf.substitute(); err != nil {
		return err
	}
	d.kind = "openvz"
	d.name = cmp.Or(conf["NAME"].value, conf["VEID"].value, numeric(path.Base(conf["VE_PRIVATE"].value)), conf["HOSTNAME"].value)
	if d.name == "" {
		return malformed(`the configuration does not say whose it is: add a line NAME="…" or VEID="101"`)
	}
	d.description = conf["DESCRIPTION"].value
	for _, read := range []func(openvz, *draft) error{openvz.root, openvz.memory, openvz.beancounters, openvz.cpu, openvz.network, openvz.rights} {
		if err := read(conf, d); err != nil {
			return err
		}
	}
	keys := slices.SortedFunc(maps.Keys(conf), func(a, b string) int { return cmp.Compare(conf[a].line, conf[b].line) })
	for _, key := range keys {
		if s := conf[key]; !slices.Contains(openvzKnown, key) && s.value != "" {
			d.note(s.line, `%s="%s": %s`, key, shorten(s.value), cmp.Or(openvzElsewhere[key], "nothing here is like it"))
		}
	}
	return nil
}

// openvzKnown are the keys that are read, or of which nothing is lost.
var openvzKnown = strings.Fields(`NAME VEID HOSTNAME DESCRIPTION OSTEMPLATE VE_PRIVATE VE_ROOT VE_LAYOUT DISKSPACE ORIGIN_SAMPLE
	PHYSPAGES SWAPPAGES PRIVVMPAGES VMGUARPAGES CPUUNITS CPULIMIT CPUS CPUMASK NODEMASK IOPRIO IP_ADDRESS NETIF
	NAMESERVER SEARCHDOMAIN CAPABILITY DEVNODES` + " " + strings.ToUpper(strings.Join(slices.Sorted(maps.Keys(beancounters)), " ")) +
	" " + strings.ToUpper(strings.Join(slices.Sorted(maps.Keys(refusedBeancounters)), " ")))

// openvzElsewhere are settings that are made elsewhere here.
var openvzElsewhere = map[string]string{
	"ONBOOT":         "when it is yes, run virsh autostart after virsh define",
	"BOOTORDER":      "environments of autostart are started side by side",
	"DISABLED":       "leave the domain undefined, or without autostart",
	"DISTRIBUTION":   "environments are not told apart by it",
	"DISKINODES":     "inodes are not limited",
	"QUOTATIME":      "a soft limit has no grace time",
	"QUOTAUGIDLIMIT": "users inside have no quota of their own",
	"IOLIMIT":        "give <blkiotune><device> with the disk of the private area, or use virsh blkdeviotune DOM /",
	"IOPSLIMIT":      "give <blkiotune><device> with the disk of the private area, or use virsh blkdeviotune DOM /",
	"RATE":           "give the <interface> a <bandwidth>, in KiB/s: virsh domiftune",
	"RATEBOUND":      "give the <interface> a <bandwidth>, in KiB/s: virsh domiftune",
	"DEVICES":        "name nodes by DEVNODES, or by <hostdev mode='capabilities'>: numbers are of no name",
	"IPTABLES":       "a network namespace has nftables of its own with all its modules",
	"NETFILTER":      "a network namespace has nftables of its own with all its modules",
	"FEATURES":       "what an environment may do is in <features><capabilities>",
	"NOATIME":        "the host's mount decides",
	"MOUNT_OPTS":     "the host's mount decides",
	"PCI":            "PCI devices cannot be assigned to an environment",
	"NETDEV":         "lend the NIC with <hostdev mode='capabilities' type='net'>",
	"VM_OVERCOMMIT":  "memory is limited when it is used, not when it is asked for",
	"STOP_TIMEOUT":   "virsh shutdown returns at once, and virsh destroy ends what does not",
}

var openvzKey = pattern(`^[A-Za-z_][A-Za-z0-9_]*$`)

func (d *draft) readOpenVZ(config string) (openvz, error) {
	conf, n := openvz{}, 0
	for text := range strings.SplitSeq(config, "\n") {
		n++
		text = strings.TrimSpace(text)
		if id, ok := strings.CutPrefix(text, "#UUID:"); ok { // where libvirt's openvz driver kept it
			d.uuid = strings.TrimSpace(id)
		}
		if text == "" || text[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(strings.TrimPrefix(text, "export "), "=")
		if !ok || !openvzKey().MatchString(key) {
			return nil, badLine(n, "'%s' is not KEY=\"value\"", shorten(text))
		}
		value, ok = unquote(value)
		if !ok {
			return nil, badLine(n, "the value of %s has a quote that does not end on its line", shorten(key))
		}
		conf[key] = setting{value, n}
	}
	return conf, nil
}

// unquote takes off quotes and what follows them, or a comment.
func unquote(value string) (string, bool) {
	if value != "" && (value[0] == '"' || value[0] == '\'') {
		inner, _, closed := strings.Cut(value[1:], value[:1])
		return inner, closed
	}
	value, _, _ = strings.Cut(value, " ")
	return value, true
}

// substitute replaces $VEID, and nothing else: the file is not run by a shell.
func (c openvz) substitute() error {
	id := c["VEID"].value
	if id == "" {
		id = numeric(c["NAME"].value)
	}
	for key, s := range c {
		if id != "" {
			s.value = strings.NewReplacer("${VEID}", id, "$VEID", id).Replace(s.value)
			c[key] = s
		}
		if !strings.ContainsAny(s.value, "$`") || key == "DESCRIPTION" || key == "VE_ROOT" {
			continue
		}
		if strings.Contains(s.value, "VEID") && id == "" {
			return badLine(s.line, `%s is '%s', and the file does not say which: add a line VEID="101"`, key, shorten(s.value))
		}
		return badLine(s.line, "%s is '%s': $VEID is replaced, nothing else of a shell's is", key, shorten(s.value))
	}
	return nil
}

func numeric(s string) string {
	if _, err := strconv.ParseUint(s, 10, 32); err != nil {
		return ""
	}
	return s
}

// root: an environment that exists is its private area. The template it was
// made of is the root of one that has none yet.
func (c openvz) root(d *draft) error {
	private, template := c["VE_PRIVATE"], c["OSTEMPLATE"]
	space, err := c.space()
	if err != nil {
		return err
	}
	switch {
	case private.value != "":
		d.filesystem("mount", "dir", private.value, "/", space...)
		if layout := c["VE_LAYOUT"]; strings.HasPrefix(layout.value, "ploop") {
			d.note(layout.line, `VE_LAYOUT="%s": the root must be a directory tree; mount the image with ploop mount and copy what is in it to '%s'`,
				shorten(layout.value), shorten(private.value))
		}
		if template.value != "" {
			d.note(template.line, `OSTEMPLATE="%s": the root is the private area that was made of it; for a new one take <filesystem type='template'>`, shorten(template.value))
		}
	case template.value != "":
		d.filesystem("template", "name", path.Base(template.value), "/", space...)
	default:
		return malformed(`the configuration names no root: add a line VE_PRIVATE="/directory" or OSTEMPLATE="template"`)
	}
	return nil
}

// space is DISKSPACE, soft and hard, in KiB as OpenVZ counts it.
func (c openvz) space() ([]string, error) {
	if c["DISKSPACE"].value == "" {
		return nil, nil
	}
	soft, hard, err := c.pair("DISKSPACE", 1024)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, l := range []struct {
		name string
		kib  uint64
	}{{"space_hard_limit", hard}, {"space_soft_limit", soft}} {
		if l.kib < maxBeancounter {
			out = append(out, element(l.name, strconv.FormatUint(min(l.kib, Unlimited), 10), "unit", "KiB"))
		}
	}
	return out, nil
}

// pair reads barrier:limit in units of so many bytes. A number with a suffix
// is bytes. One number is both, as vzctl has it.
func (c openvz) pair(key string, unit uint64) (barrier, limit uint64, err error) {
	s := c[key]
	first, second, two := strings.Cut(s.value, ":")
	if barrier, err = amount(first, unit, openvzSuffixes); err == nil {
		limit = barrier
		if two {
			limit, err = amount(second, unit, openvzSuffixes)
		}
	}
	if err != nil {
		return 0, 0, badLine(s.line, `%s is "%s": a barrier and a limit such as "256M:512M" or "0:unlimited" are accepted`, key, shorten(s.value))
	}
	return barrier, limit, nil
}

// Suffixes and the bytes that they stand for: OpenVZ's, and those of the
// kernel's memparse, whose P is something else.
var (
	openvzSuffixes = map[byte]uint64{'b': 1, 'k': 1 << 10, 'm': 1 << 20, 'g': 1 << 30, 't': 1 << 40, 'p': pageSize}
	kernelSuffixes = map[byte]uint64{'k': 1 << 10, 'm': 1 << 20, 'g': 1 << 30, 't': 1 << 40, 'p': 1 << 50, 'e': 1 << 60}
)

// amount reads a number of units, or with a suffix one of bytes, and tells it
// in units. A B after another suffix says nothing more.
func amount(s string, unit uint64, suffixes map[byte]uint64) (uint64, error) {
	s = strings.ToLower(strings.TrimSpace(s))
	if s == "unlimited" {
		return maxBeancounter, nil
	}
	if short, ok := strings.CutSuffix(s, "b"); ok && suffixes[lastByte(short)] > 0 {
		s = short
	}
	scale := suffixes[lastByte(s)]
	if scale > 0 {
		s = s[:len(s)-1]
	}
	number, err := strconv.ParseFloat(s, 64)
	if err != nil || number < 0 || math.IsNaN(number) {
		return 0, strconv.ErrSyntax
	}
	if scale > 0 {
		number = math.Ceil(number * float64(scale) / float64(unit))
	}
	if number >= maxBeancounter {
		return maxBeancounter, nil
	}
	return uint64(number), nil
}

func lastByte(s string) byte {
	if s == "" {
		return 0
	}
	return s[len(s)-1]
}

// memory: PHYSPAGES and SWAPPAGES of VSwap, or the PRIVVMPAGES of what was
// before it.
func (c openvz) memory(d *draft) error {
	var ram, swap, private, guarantee uint64 = maxBeancounter, maxBeancounter, maxBeancounter, maxBeancounter
	for _, p := range []struct {
		key            string
		barrier, limit *uint64
	}{{"PHYSPAGES", nil, &ram}, {"SWAPPAGES", nil, &swap}, {"PRIVVMPAGES", nil, &private}, {"VMGUARPAGES", &guarantee, nil}} {
		if c[p.key].value == "" {
			continue
		}
		barrier, limit, err := c.pair(p.key, pageSize)
		switch {
		case err != nil:
			return err
		case p.limit != nil:
			*p.limit = limit
		default:
			*p.barrier = barrier
		}
	}
	if private < maxBeancounter && ram < maxBeancounter {
		d.note(c["PRIVVMPAGES"].line, "PRIVVMPAGES: memory is limited when it is used, not when it is asked for; PHYSPAGES is the limit")
	}
	ram = min(ram, private)
	switch {
	case ram < maxBeancounter:
		d.memory = kib(ram)
	case c["PHYSPAGES"].value != "" || c["PRIVVMPAGES"].value != "":
		d.memory = Unlimited
	}
	if guarantee < maxBeancounter && guarantee > 0 {
		d.limit("min_guarantee", kib(guarantee))
	}
	if swap < maxBeancounter && ram < maxBeancounter {
		d.limit("swap_hard_limit", kib(ram)+kib(swap))
	}
	return nil
}

func kib(pages uint64) uint64 { return min(pages, Unlimited/4) * (pageSize / 1024) }

// beancounters that have a limit here; of the others one without a limit is
// no loss.
func (c openvz) beancounters(d *draft) error {
	for _, name := range slices.Sorted(maps.Keys(beancounters)) {
		key := strings.ToUpper(name)
		if c[key].value == "" {
			continue
		}
		unit := uint64(1)
		if strings.HasSuffix(name, "pages") {
			unit = pageSize
		}
		barrier, limit, err := c.pair(key, unit)
		if err != nil {
			return err
		}
		if name == "oomguarpages" { // its limit was never looked at
			limit = barrier
		}
		if limit == maxBeancounter {
			continue
		}
		if least := beancounters[name].least; limit < least {
			return badLine(c[key].line, "%s has the limit %d, at least %d is needed", key, limit, least)
		}
		d.ve = append(d.ve, element("ve:ubc", "", "name", name, "barrier", fmt.Sprint(barrier), "limit", fmt.Sprint(limit)))
	}
	for _, name := range slices.Sorted(maps.Keys(refusedBeancounters)) {
		key := strings.ToUpper(name)
		if c[key].value == "" || slices.Contains([]string{"physpages", "swappages", "privvmpages", "vmguarpages"}, name) {
			continue
		}
		if _, limit, err := c.pair(key, 1); err != nil {
			return err
		} else if limit < maxBeancounter {
			d.note(c[key].line, `%s="%s": it %s`, key, shorten(c[key].value), refusedBeancounters[name])
		}
	}
	return nil
}

// cpu: OpenVZ's 1000 units are what 100 is to cgroups, and its limit is in
// percent of one CPU.
func (c openvz) cpu(d *draft) error {
	if units, ok, err := c.number("CPUUNITS", 500_000); err != nil {
		return err
	} else if ok && units > 0 {
		d.cputune = append(d.cputune, element("shares", fmt.Sprint(min(10_000, max(1, units/10)))))
	}
	if cpus, ok, err := c.number("CPUS", 16384); err != nil {
		return err
	} else if ok && cpus > 0 {
		d.vcpus = cpus
	}
	if s := c["CPULIMIT"]; strings.HasSuffix(strings.ToLower(s.value), "mhz") || strings.HasSuffix(s.value, "m") {
		d.note(s.line, `CPULIMIT="%s": a limit is in percent of one CPU here, not in MHz`, shorten(s.value))
	} else if percent, ok, err := c.number("CPULIMIT", 1_600_000); err != nil {
		return err
	} else if ok && percent > 0 {
		d.quota(int64(percent)*DefaultPeriod/100, DefaultPeriod)
	}
	if s := c["CPUMASK"].value; s != "" && s != "all" && s != "auto" {
		d.cpuset = strings.Join(strings.Fields(s), ",")
	}
	if s := c["NODEMASK"].value; s != "" && s != "all" {
		d.nodeset = strings.Join(strings.Fields(s), ",")
	}
	// Linear, so that OpenVZ's default of 4 is the kernel's of 100.
	if prio, ok, err := c.number("IOPRIO", 7); err != nil {
		return err
	} else if ok {
		d.blkiotune = append(d.blkiotune, element("weight", fmt.Sprint(max(10, prio*25))))
	}
	return nil
}

func (c openvz) number(key string, most uint64) (n uint64, ok bool, err error) {
	s := c[key]
	if s.value == "" || s.value == "unlimited" {
		return 0, false, nil
	}
	n, err = strconv.ParseUint(strings.TrimSuffix(s.value, "%"), 10, 64)
	if err != nil || n > most {
		return 0, false, badLine(s.line, `%s is "%s": 0 to %d is accepted`, key, shorten(s.value), most)
	}
	return n, true, nil
}

// network: IP_ADDRESS is venet, whose packets the host routes; NETIF are veth
// pairs, on a bridge or alone.
func (c openvz) network(d *draft) error {
	if s := c["HOSTNAME"].value; s != "" {
		d.ve = append(d.ve, element("ve:hostname", s))
	}
	for _, e := range [][2]string{{"nameserver", "NAMESERVER"}, {"searchdomain", "SEARCHDOMAIN"}} {
		s := c[e[1]]
		if s.value == "inherit" {
			d.note(s.line, `%s="inherit": name them, the host's are not copied`, e[1])
			continue
		}
		for _, one := range strings.Fields(s.value) {
			d.ve = append(d.ve, element("ve:"+e[0], one))
		}
	}
	var addresses []string
	for _, text := range strings.Fields(c["IP_ADDRESS"].value) {
		prefix, err := addressOf(text)
		if err != nil {
			return badLine(c["IP_ADDRESS"].line, `IP_ADDRESS has "%s": addresses such as 192.0.2.7 or 2001:db8::7/64 are accepted`, shorten(text))
		}
		addresses = append(addresses, ipElement(prefix))
	}
	if len(addresses) > 0 {
		d.devices = append(d.devices, within("interface", addresses, "type", "ethernet"))
	}
	for one := range strings.SplitSeq(c["NETIF"].value, ";") {
		if one = strings.TrimSpace(one); one != "" {
			if err := c.veth(d, one); err != nil {
				return err
			}
		}
	}
	return nil
}

// addressOf reads an address with a prefix or a netmask behind a slash, or
// alone.
func addressOf(text string) (netip.Prefix, error) {
	text, mask, _ := strings.Cut(text, "/")
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" {
		return netip.Prefix{}, strconv.ErrSyntax
	}
	bits := addr.BitLen()
	if m, err := netip.ParseAddr(mask); err == nil && m.Is4() && addr.Is4() {
		b := m.As4()
		for bits = 0; bits < 32 && b[bits/8]&(0x80>>(bits%8)) != 0; bits++ {
		}
	} else if mask != "" {
		if bits, err = strconv.Atoi(mask); err != nil || bits < 0 || bits > addr.BitLen() {
			return netip.Prefix{}, strconv.ErrSyntax
		}
	}
	return netip.PrefixFrom(addr, bits), nil
}

func ipElement(p netip.Prefix) string {
	return element("ip", "", "address", p.Addr().String(), "family", family(p.Addr()), "prefix", strconv.Itoa(p.Bits()))
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "ipv4"
	}
	return "ipv6"
}

func (c openvz) veth(d *draft, text string) error {
	line := c["NETIF"].line
	kind, inner := "ethernet", []string{}
	for pair := range strings.SplitSeq(text, ",") {
		key, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
		switch {
		case value == "":
		case key == "bridge":
			kind = "bridge"
			inner = append(inner, element("source", "", "bridge", value))
		case key == "mac":
			inner = append(inner, element("mac", "", "address", strings.ToLower(value)))
		case key == "ifname":
			inner = append(inner, element("guest", "", "dev", value))
		case key == "host_ifname":
			inner = append(inner, element("target", "", "dev", value))
		case key == "host_mac": // the bridge's business, which chooses one
		default:
			d.note(line, "NETIF has %s=%s: an interface has no word for it", shorten(key), shorten(value))
		}
	}
	d.devices = append(d.devices, within("interface", inner, "type", kind))
	return nil
}

// rights are single capabilities and device nodes.
func (c openvz) rights(d *draft) error {
	for _, one := range strings.Fields(strings.ReplaceAll(c["CAPABILITY"].value, ",", " ")) {
		name, state, _ := strings.Cut(strings.ToLower(one), ":")
		if state != "on" && state != "off" || !d.capability(name, state) {
			d.note(c["CAPABILITY"].line, "CAPABILITY has %s: a capability of capabilities(7) with :on or :off is accepted", shorten(one))
		}
	}
	for _, one := range strings.Fields(c["DEVNODES"].value) {
		name, rights, _ := strings.Cut(one, ":")
		if rights == "none" {
			continue
		}
		d.hostdev("/dev/" + strings.TrimPrefix(name, "/dev/"))
	}
	return nil
}

// hostdev adds a character device of the host, which most that are handed in
// are (net/tun, fuse, ppp).
func (d *draft) hostdev(node string) {
	source := within("source", []string{element("char", node)})
	d.devices = append(d.devices, within("hostdev", []string{source}, "mode", "capabilities", "type", "misc"))
}
