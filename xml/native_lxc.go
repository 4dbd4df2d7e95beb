package xml

import (
	"cmp"
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// lxc is a container's config as far as it was read. What is made of several
// lines waits here for the end.
type lxc struct {
	*draft
	rootfs              string
	readOnly            bool
	networks            []*lxcNetwork
	memory, memsw, swap uint64 // bytes; math.MaxUint64: not said or no limit
	quota               int64
	period              uint64
	consoles            int
	initUser, initGroup string
}

// lxcNetwork is one lxc.net.N, or what follows one lxc.network.type.
type lxcNetwork struct {
	index string
	line  int
	keys  map[string]string
	ips   []string
}

// fromLXC reads a config of LXC 1 to 6. What libvirt's lxc driver maps is
// mapped, and what it leaves out is told.
func fromLXC(d *draft, config string) error {
	d.kind = "lxc"
	c := &lxc{draft: d, memory: math.MaxUint64, memsw: math.MaxUint64, swap: math.MaxUint64}
	n := 0
	for text := range strings.SplitSeq(config, "\n") {
		n++
		if text = strings.TrimSpace(text); text == "" || text[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(text, "=")
		if !ok {
			return badLine(n, "'%s' is not KEY = VALUE", shorten(text))
		}
		key, value = strings.TrimSpace(key), withoutQuotes(strings.TrimSpace(value))
		if err := c.read(n, key, value); err != nil {
			return err
		}
	}
	return c.finish()
}

// withoutQuotes takes quotes off that are around all of a value, as LXC does.
// Others belong to it.
func withoutQuotes(value string) string {
	if n := len(value) - 1; n > 0 && value[0] == value[n] && (value[0] == '"' || value[0] == '\'') {
		return value[1:n]
	}
	return value
}

// lxcWords are the words of a command: one that begins with a quote ends with
// the next of its kind.
func lxcWords(s string) (words []string) {
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimSpace(s) {
		if s[0] == '"' || s[0] == '\'' {
			if word, rest, closed := strings.Cut(s[1:], s[:1]); closed {
				words, s = append(words, word), rest
				continue
			}
		}
		end := strings.IndexFunc(s, unicode.IsSpace)
		if end < 0 {
			end = len(s)
		}
		words, s = append(words, s[:end]), s[end:]
	}
	return words
}

// lxcOwn are settings of which nothing is lost: every environment has its
// own /dev, /proc, terminals and log.
var lxcOwn = []string{"lxc.mount.auto", "lxc.autodev", "lxc.devttydir", "lxc.tty.dir", "lxc.kmsg", "lxc.log*", "lxc.console*",
	"lxc.rootfs.backend", "lxc.pts", "lxc.haltsignal", "lxc.signal.*", "lxc.monitor.*", "lxc.ephemeral", "lxc.cgroup*.devices.deny", "lxc.cgroup.dir"}

// lxcElsewhere are settings that are made elsewhere here, by patterns.
var lxcElsewhere = [][2]string{
	{"lxc.include", "included files are not read: put their lines in its place"},
	{"lxc.start.auto", "when it is 1, run virsh autostart after virsh define"},
	{"lxc.start.*", "environments of autostart are started side by side"},
	{"lxc.hook*", "hooks are not run: libvirt's are below /etc/libvirt/hooks"},
	{"lxc.a*a*", "there is one confinement for all: see <seclabel>"},
	{"lxc.se*", "there is one filter for all: see <features><capabilities>"},
	{"lxc.cgroup*.devices.allow", "name the node with <hostdev mode='capabilities'>: numbers are of no name"},
	{"lxc.cgroup*", "this file of a control group has no element: see <memtune>, <cputune> and <blkiotune>"},
	{"lxc.sysctl.*", "set it inside, in /etc/sysctl.d"},
	{"lxc.prlimit.*", "set it inside, or with <ve:ubc>"},
	{"lxc.rootfs*", "the root is mounted as it is"},
	{"lxc.group", "domains have no groups"},
}

func (c *lxc) read(line int, key, value string) error {
	bad := func(accepted string) error {
		return badLine(line, "%s is '%s': %s", shorten(key), shorten(value), accepted)
	}
	if rest, ok := strings.CutPrefix(key, "lxc.network."); ok {
		return c.network(line, "", rest, value)
	}
	if rest, ok := strings.CutPrefix(key, "lxc.net."); ok {
		index, rest, _ := strings.Cut(rest, ".")
		return c.network(line, index, rest, value)
	}
	if group, ok := strings.CutPrefix(key, "lxc.cgroup2."); ok {
		key = "lxc.cgroup." + group
	}
	number, err := strconv.ParseUint(value, 10, 64)
	isNumber := err == nil
	size, sizeErr := lxcBytes(value)
	wrong := false
	switch key {
	case "lxc.utsname", "lxc.uts.name":
		c.name = value
	case "lxc.arch":
		c.arch = map[string]string{"x86": "i686", "i386": "i686", "i686": "i686", "amd64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64"}[value]
		c.arch = cmp.Or(c.arch, value)
	case "lxc.rootfs", "lxc.rootfs.path":
		return c.root(line, value)
	case "lxc.rootfs.options":
		c.readOnly = slices.Contains(strings.Split(value, ","), "ro")
	case "lxc.mount", "lxc.mount.fstab":
		return badLine(line, "%s names a file, which is not read: put its lines here as lxc.mount.entry", key)
	case "lxc.mount.entry":
		return c.mount(line, value)
	case "lxc.init_cmd", "lxc.init.cmd":
		for n, word := range lxcWords(value) {
			c.os = append(c.os, element([]string{"init", "initarg"}[min(n, 1)], word))
		}
	case "lxc.init.cwd":
		c.os = append(c.os, element("initdir", value))
	case "lxc.init_uid", "lxc.init.uid":
		c.initUser = value
	case "lxc.init_gid", "lxc.init.gid":
		c.initGroup = value
	case "lxc.environment":
		name, text, ok := strings.Cut(value, "=")
		if !ok {
			c.note(line, "lxc.environment is '%s': a NAME=value is needed", shorten(value))
			return nil
		}
		c.initenv = append(c.initenv, element("initenv", text, "name", name))
	case "lxc.id_map", "lxc.idmap":
		var kind string
		var inside, host, count uint32
		if n, err := fmt.Sscan(value, &kind, &inside, &host, &count); n != 4 || err != nil || kind != "u" && kind != "g" && kind != "b" {
			return bad("'u 0 100000 65536' is accepted, and g for groups")
		}
		if kind != "g" {
			c.idRange("uid", inside, host, count)
		}
		if kind != "u" {
			c.idRange("gid", inside, host, count)
		}
	case "lxc.tty", "lxc.tty.max":
		if !isNumber {
			return bad("a number is accepted")
		}
		c.consoles = int(min(number, maxConsoles))
	case "lxc.pty.max":
		if !isNumber || number == 0 {
			return bad("a number is accepted")
		}
		c.ve = append(c.ve, element("ve:ubc", "", "name", "numpty", "limit", fmt.Sprint(min(number, maxBeancounter))))
	case "lxc.cap.drop", "lxc.cap.keep":
		return c.capabilities(line, key, value)
	case "lxc.cgroup.memory.limit_in_bytes", "lxc.cgroup.memory.max":
		c.memory, wrong = size, sizeErr != nil
	case "lxc.cgroup.memory.memsw.limit_in_bytes":
		c.memsw, wrong = size, sizeErr != nil
	case "lxc.cgroup.memory.swap.max":
		c.swap, wrong = size, sizeErr != nil
	case "lxc.cgroup.memory.soft_limit_in_bytes", "lxc.cgroup.memory.high", "lxc.cgroup.memory.low":
		if wrong = sizeErr != nil; !wrong && size < math.MaxUint64 {
			c.limit(map[bool]string{true: "min_guarantee", false: "soft_limit"}[strings.HasSuffix(key, "low")], size>>10)
		}
	case "lxc.cgroup.cpu.shares", "lxc.cgroup.cpu.weight":
		// Shares of 1024 are the kernel's weight of 100.
		if strings.HasSuffix(key, "shares") {
			number = max(1, number*100/1024)
		}
		if !isNumber || number > 10_000 {
			return bad("the weight of a control group is accepted")
		}
		c.cputune = append(c.cputune, element("shares", fmt.Sprint(number)))
	case "lxc.cgroup.cpu.cfs_quota_us":
		c.quota, err = strconv.ParseInt(value, 10, 64)
		wrong = err != nil
	case "lxc.cgroup.cpu.cfs_period_us":
		c.period, wrong = number, !isNumber
	case "lxc.cgroup.cpu.max":
		quota, period, _ := strings.Cut(value, " ")
		err = nil
		if quota != "max" {
			c.quota, err = strconv.ParseInt(quota, 10, 64)
		}
		if period != "" && err == nil {
			c.period, err = strconv.ParseUint(period, 10, 64)
		}
		wrong = err != nil
	case "lxc.cgroup.cpuset.cpus":
		c.cpuset = value
	case "lxc.cgroup.cpuset.mems":
		c.nodeset = value
	case "lxc.cgroup.blkio.weight", "lxc.cgroup.io.weight":
		weight, err := strconv.ParseUint(strings.TrimPrefix(value, "default "), 10, 16)
		if err != nil {
			return bad("a weight is accepted")
		}
		c.blkiotune = append(c.blkiotune, element("weight", fmt.Sprint(weight)))
	case "lxc.cgroup.pids.max":
		if value != "max" {
			c.ve = append(c.ve, element("ve:tasks", value))
		}
	default:
		c.unknown(line, key, value)
	}
	if wrong {
		return bad("a number is accepted, of bytes also with K, M or G")
	}
	return nil
}

func (c *lxc) unknown(line int, key, value string) {
	matches := func(pattern string) bool { ok, _ := path.Match(pattern, key); return ok }
	if slices.ContainsFunc(lxcOwn, matches) {
		return
	}
	for _, e := range lxcElsewhere {
		if matches(e[0]) {
			c.note(line, "%s = %s: %s", shorten(key), shorten(value), e[1])
			return
		}
	}
	c.note(line, "%s = %s: nothing here is like it", shorten(key), shorten(value))
}

// lxcBytes reads what a memory file of a control group takes.
func lxcBytes(s string) (uint64, error) {
	if s == "-1" || s == "max" {
		return math.MaxUint64, nil
	}
	n, err := amount(s, 1, kernelSuffixes)
	if n >= math.MaxInt64 {
		n = math.MaxUint64
	}
	return n, err
}

func (c *lxc) root(line int, value string) error {
	kind, dir, typed := strings.Cut(value, ":")
	if !typed || strings.HasPrefix(value, "/") {
		kind, dir = "dir", value
	}
	if !slices.Contains([]string{"dir", "btrfs"}, kind) || !strings.HasPrefix(dir, "/") {
		return badLine(line, "the root is '%s': a directory is accepted, mount what it is in and name that", shorten(value))
	}
	c.rootfs = dir
	return nil
}

// mount reads a line of fstab(5), whose target is within the root.
func (c *lxc) mount(line int, value string) error {
	f := strings.Fields(value)
	if len(f) < 4 {
		return badLine(line, "lxc.mount.entry is '%s': SOURCE TARGET TYPE OPTIONS are needed, as in fstab(5)", shorten(value))
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\134`, `\`)
	source, target, options := unescape.Replace(f[0]), path.Join("/", unescape.Replace(f[1])), strings.Split(f[3], ",")
	var more []string
	if slices.Contains(options, "ro") {
		more = []string{"<readonly/>"}
	}
	bind := slices.Contains(options, "bind") || slices.Contains(options, "rbind")
	switch {
	case slices.Contains([]string{"proc", "sysfs", "devpts", "cgroup", "cgroup2", "mqueue"}, f[2]): // has its own
	case ownPlace(target) && !strings.HasPrefix(target, "/dev/"): // as lxcfs mounts it
	case f[2] == "tmpfs":
		c.tmpfs(line, target, options, more)
	case bind && strings.HasPrefix(source, "/dev/"):
		c.hostdev(source)
	case bind && strings.HasPrefix(source, "/"):
		c.filesystem("mount", "dir", source, target, more...)
	default:
		c.note(line, "lxc.mount.entry = %s: only directories (bind) and tmpfs can be mounted", shorten(value))
	}
	return nil
}

// ownPlace tells whether a target is where every environment has its own.
func ownPlace(target string) bool {
	return slices.ContainsFunc([]string{"/proc", "/sys", "/dev"}, func(dir string) bool { return target == dir || strings.HasPrefix(target, dir+"/") })
}

// tmpfs adds one with the size its options give.
func (d *draft) tmpfs(line int, target string, options, more []string) {
	if target == "/dev" || strings.HasPrefix(target, "/dev/") || target == "/run" || target == "/sys/fs/cgroup" {
		return // every environment has these
	}
	for _, o := range options {
		if text, ok := strings.CutPrefix(o, "size="); ok {
			n, err := amount(text, 1, kernelSuffixes)
			if size := (n + 1023) / 1024; err == nil && size > 0 && size < Unlimited {
				source := element("source", "", "usage", fmt.Sprint(size), "units", "KiB")
				d.filesystems = append(d.filesystems, within("filesystem",
					append([]string{source, element("target", "", "dir", target)}, more...), "type", "ram"))
				return
			}
		}
	}
	d.note(line, "tmpfs at %s: one needs a size=, such as size=64M", shorten(target))
}

func (c *lxc) capabilities(line int, key, value string) error {
	state := "off"
	if key == "lxc.cap.keep" {
		state, c.policy = "on", "deny"
	}
	if value == "" {
		c.draft.capabilities = nil
	}
	for _, name := range strings.Fields(value) {
		if name != "none" && !c.capability(name, state) {
			c.note(line, "%s has %s: libvirt's XML has no element for it", key, shorten(name))
		}
	}
	return nil
}

func (c *lxc) network(line int, index, key, value string) error {
	last := len(c.networks) - 1
	same := last >= 0 && c.networks[last].index == index && (index != "" || key != "type")
	if !same {
		for n, other := range c.networks {
			if index != "" && other.index == index {
				last, same = n, true
			}
		}
	}
	if !same {
		if len(c.networks) == maxInterfaces {
			return badLine(line, "has one interface more than the limit, %d", maxInterfaces)
		}
		c.networks = append(c.networks, &lxcNetwork{index: index, line: line, keys: map[string]string{}})
		last = len(c.networks) - 1
	}
	nic := c.networks[last]
	switch key {
	case "ipv4", "ipv6", "ipv4.address", "ipv6.address":
		address, _, _ := strings.Cut(value, " ") // a broadcast address may follow
		prefix, err := addressOf(address)
		if err != nil {
			return badLine(line, "'%s' is no address", shorten(value))
		}
		nic.ips = append(nic.ips, ipElement(prefix))
	case "type", "link", "hwaddr", "name", "veth.pair", "macvlan.mode", "mtu", "ipv4.gateway", "ipv6.gateway", "flags":
		nic.keys[key] = value
	default:
		c.note(line, "%s = %s of a network: an interface has no word for it", shorten(key), shorten(value))
	}
	return nil
}

func (c *lxc) nic(n *lxcNetwork) {
	k := n.keys
	kind, inner := "", []string(nil)
	switch k["type"] {
	case "", "empty":
		return
	case "veth":
		kind = "ethernet"
		if k["link"] != "" {
			kind, inner = "bridge", append(inner, element("source", "", "bridge", k["link"]))
		}
	case "macvlan":
		mode := cmp.Or(k["macvlan.mode"], "private")
		if mode == "passthru" {
			mode = "passthrough"
		}
		kind, inner = "direct", append(inner, element("source", "", "dev", k["link"], "mode", mode))
	case "phys":
		source := within("source", []string{element("interface", k["link"])})
		c.devices = append(c.devices, within("hostdev", []string{source}, "mode", "capabilities", "type", "net"))
		if len(n.ips) > 0 {
			c.note(n.line, "addresses of the lent NIC %s: set them inside", shorten(k["link"]))
		}
		return
	default:
		c.note(n.line, "a network of type %s: veth, macvlan and phys can be had", shorten(k["type"]))
		return
	}
	if mac := strings.ToLower(k["hwaddr"]); mac != "" && !strings.Contains(mac, "x") {
		inner = append(inner, element("mac", "", "address", mac))
	}
	inner = append(inner, n.ips...)
	for _, f := range [][3]string{{"ipv4", "0.0.0.0"}, {"ipv6", "::"}} {
		switch gateway := k[f[0]+".gateway"]; gateway {
		case "":
		case "auto", "dev":
			c.note(n.line, "%s.gateway = %s: name the gateway in a <route>", f[0], gateway)
		default:
			inner = append(inner, element("route", "", "family", f[0], "address", f[1], "prefix", "0", "gateway", gateway))
		}
	}
	for _, e := range [][3]string{{"target", "dev", "veth.pair"}, {"guest", "dev", "name"}, {"mtu", "size", "mtu"}} {
		if v := k[e[2]]; v != "" {
			inner = append(inner, element(e[0], "", e[1], v))
		}
	}
	c.devices = append(c.devices, within("interface", inner, "type", kind))
}

func (c *lxc) finish() error {
	if c.rootfs == "" {
		return malformed("the configuration names no root: add a line lxc.rootfs.path = dir:/directory")
	}
	var more []string
	if c.readOnly {
		more = []string{"<readonly/>"}
	}
	c.filesystem("mount", "dir", c.rootfs, "/", more...)
	// Without a name it is the directory's, as of /var/lib/lxc/NAME/rootfs.
	if c.name == "" {
		c.name = strings.Trim(path.Base(path.Dir(c.rootfs)), "/")
	}
	c.name = cmp.Or(c.name, "unnamed")
	c.initAs(c.initUser, c.initGroup)
	c.groupLimits()
	for _, n := range c.networks {
		c.nic(n)
	}
	for port := range c.consoles {
		c.devices = append(c.devices, within("console", []string{element("target", "", "type", "lxc", "port", strconv.Itoa(port))}, "type", "pty"))
	}
	return nil
}

// groupLimits are those that several files of a control group make.
func (c *lxc) groupLimits() {
	c.limits(c.memory, c.memsw, c.swap)
	if c.quota > 0 {
		c.draft.quota(c.quota, cmp.Or(c.period, DefaultPeriod))
	}
}

// initAs names the user that init is, when it is not root.
func (d *draft) initAs(user, group string) {
	for _, e := range [][2]string{{"inituser", user}, {"initgroup", group}} {
		if e[1] != "" && e[1] != "0" {
			d.os = append(d.os, element(e[0], e[1]))
		}
	}
}

// limits of memory, in bytes: of memory alone, of memory and swap together,
// and of swap alone; math.MaxUint64 is none.
func (d *draft) limits(memory, memsw, swap uint64) {
	if memory == math.MaxUint64 {
		return
	}
	d.memory = memory >> 10
	switch {
	case memsw < math.MaxUint64:
		d.limit("swap_hard_limit", memsw>>10)
	case swap < math.MaxUint64:
		d.limit("swap_hard_limit", (memory>>10)+(swap>>10))
	}
}
