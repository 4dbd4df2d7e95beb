package xml

import (
	"strings"
	"testing"
)

const minimal = `<domain type='vz'><name>web1</name><memory>65536</memory><os><type>exe</type></os>
<devices><filesystem type='template'><source name='debian13'/><target dir='/'/></filesystem></devices></domain>`

const root = "<filesystem type='template'><source name='debian13'/><target dir='/'/></filesystem>"

// refusals change one thing in a good definition; want is the sentence.
var refusals = []struct{ old, new, want string }{
	{root, "", "<filesystem> with <target dir='/'/> is missing: an environment needs a root, of type 'template' or 'mount' (or set host_root = true"},
	{root, root + root, "<filesystem> has the target '/' twice"},
	{"<source name='debian13'/>", "", "<filesystem> of type 'template' at '/' needs a <source>"},
	{"'debian13'", "'x'", "<filesystem> names the template 'x', which does not exist; there are debian13, centos-7-x86_64"},
	{"dir='/'", "dir='srv'", "<filesystem> needs a <target dir=…/> with an absolute path inside the environment"},
	{"dir='/'", "dir='/srv'", "<filesystem> of type 'template' can only be the root, not '/srv'"},
	{"'vz'", "'qemu'", "<domain> has the type 'qemu': vz, lxc and openvz are accepted"},
	{">exe<", ">hvm<", "<os><type> is 'hvm': only 'exe' can be run, an init in a container"},
	{"<type>", "<type arch='s390x'>", "<os><type> has arch='s390x', this host is x86_64"},
	{"</type>", "</type><init>init</init>", "<init> 'init' must be an absolute path inside the environment"},
	{"</type>", "</type><initarg>x</initarg>", "<initarg> needs an <init> it belongs to"},
	{"</type>", "</type><init>/i</init><initdir>x</initdir>", "<initdir> 'x' must be an absolute path inside the environment"},
	{"</type>", "</type><kernel>/vmlinuz</kernel>", "<kernel> cannot be used: environments run on the host's kernel"},
	{"<name>web1</name>", "", "<name> is missing or empty: a domain needs a name"},
	{"web1", "a/b", "<name> 'a/b' contains '/', which a name may not: it is a file name"},
	{"web1", "..", "<name> may not be '..'"},
	{"web1", "a&#10;b", "<name> contains control characters or is not UTF-8"},
	{"web1", "   ", "<name> must not consist of white space only"},
	{"<memory>65536", "<memory unit='parsec'>65536", "<memory> has the unit \"parsec\": b, bytes, KB, KiB, MB, MiB and so on up to EiB are accepted"},
	{"<memory>65536", "<memory>16", "<memory> is 16 KiB, at least 1024 KiB are needed"},
	{"<memory>65536</memory>", "", "<memory> is missing: it is the most memory the environment may use"},
	{"<os>", "<vcpu>0</vcpu><os>", "<vcpu> is 0: 1 to 16384 are accepted"},
	{"<os>", "<vcpu current='3'>2</vcpu><os>", "<vcpu> has current='3', more than its maximum 2"},
	{"<os>", "<vcpu cpuset='a-b'>2</vcpu><os>", "<vcpu> has cpuset='a-b': a list such as 0-3,^2,8 is accepted"},
	{"<os>", "<uuid>123</uuid><os>", "<uuid> \"123\" is not a UUID: 32 hexadecimal digits are needed"},
	{"<os>", "<title>a\nb</title><os>", "<title> must be one line"},
	{"<os>", "<on_crash>explode</on_crash><os>", "<on_crash> is 'explode': destroy, restart, preserve, rename-restart, coredump-destroy, coredump-restart are accepted"},
	{"<os>", "<idmap><uid start='0' target='1000' count='10'/></idmap><os>", "<idmap> needs both <uid> and <gid>"},
	{"<os>", "<idmap><uid start='1' target='1000' count='10'/><gid start='1' target='1000' count='10'/></idmap><os>", "must map start=0"},
	{"<os>", "<memtune><hard_limit>2000</hard_limit><swap_hard_limit>1000</swap_hard_limit></memtune><os>", "<swap_hard_limit> (1000 KiB) counts memory and swap together and must not be below <hard_limit> (2000 KiB)"},
	{"<os>", "<memtune><hard_limit>0</hard_limit></memtune><os>", "<hard_limit> is 0 KiB, at least 1024 KiB are needed (9007199254740991 is no limit)"},
	{"<os>", "<memtune><hard_limit>1023</hard_limit></memtune><os>", "<hard_limit> is 1023 KiB, at least 1024 KiB are needed"},
	{"<os>", "<memtune><soft_limit>0</soft_limit></memtune><os>", "<soft_limit> is 0 KiB, at least 1024 KiB are needed"},
	{"<os>", "<cputune><period>10</period></cputune><os>", "<period> is 10 µs: 1000 to 1000000 are accepted"},
	{"<os>", "<features><capabilities policy='maybe'/></features><os>", "<capabilities> has policy='maybe': default, allow and deny are accepted"},
	{"</devices>", "<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm></devices>", "<tpm> cannot be given to an environment: it is a container and has no such device"},
	{"</devices>", "<rng model='virtio'><backend model='random'>/dev/random</backend></rng></devices>", "<rng> cannot be given to an environment: it is a container and has no such device"},
	{"</devices>", "<interface type='bridge'><mac address='52:54:00:1'/><source bridge='br0'/></interface></devices>", "<mac> has address='52:54:00:1': six hexadecimal bytes such as 52:54:00:12:34:56 are accepted"},
	{"</devices>", "<interface type='bridge'><mac address='53:54:00:01:02:03'/><source bridge='br0'/></interface></devices>", "a multicast address"},
	{"</devices>", "<console type='tcp'><source mode='bind' host='localhost' service='1'/></console></devices>", "<console> has another type than 'pty', the one an environment can have"},
	{"<os>", "<metadata><ve:ve xmlns:ve='" + VENamespace + "'><ve:tasks>0</ve:tasks></ve:ve></metadata><os>", "<ve:tasks> is 0: 1 to 4194304 are accepted"},
	{"web1", strings.Repeat("x", 201), "<name> has 201 bytes, the limit is 200"},
	{"web1", ".web", "<name> '.web' may not begin with '.': the file of its definition would be hidden"},
	{"65536", "-1", "<domain><memory> has '-1' where a number is needed that is not negative"},
	{"65536", "many", "<domain><memory> has 'many' where a number is needed that is not negative"},
	{"65536", "99999999999999999999999", "<domain><memory> has the number '99999999999999999999999', which is out of range"},
	{"<memory>65536", "<memory unit='EiB'>9000", "<memory> is too large: 9000 EiB"},
	{"</memory>", "</memory><currentMemory>12</currentMemory>", "<currentMemory> is 12 KiB, at least 1024 KiB are needed"},
	{"<os>", "<vcpu current='x'>2</vcpu><os>", "<domain><vcpu> has 'x' where a number is needed that is not negative"},
	{"<os>", "<vcpu>99999</vcpu><os>", "<vcpu> is 99999: 1 to 16384 are accepted"},
	{"<os>", "<clock offset='timezone' timezone='Europe/Berlin'/><os>", "<clock> has offset='timezone': utc, localtime and variable are accepted"},
	{"<os>", "<clock offset='utc'><timer name='pit'/></clock><os>", "<timer> has name='pit': rtc and hpet, devices of the host, are accepted"},
	{"<os>", "<on_reboot>coredump-destroy</on_reboot><os>", "<on_reboot> is 'coredump-destroy': destroy, restart, preserve, rename-restart are accepted"},
	{"<os>", "<idmap><uid start='0' target='1' count='0'/><gid start='0' target='1' count='1'/></idmap><os>", "<idmap><uid> start=0 target=1 count=0 is no range of user ids"},
	{"<os>", "<idmap><uid start='0' target='18446744073709551615' count='2'/><gid start='0' target='1' count='1'/></idmap><os>", "<idmap><uid> start=0 target=18446744073709551615 count=2 is no range of user ids"},
	{"<os>", "<idmap><uid start='0' target='1' count='9'/><gid start='0' target='1' count='9'/><gid start='9' target='5' count='9'/></idmap><os>", "<idmap><gid> has ranges that overlap"},
	{"<os>", "<cputune><shares>0</shares></cputune><os>", "<shares> is 0: 1 to 10000 is accepted, or the 2 to 262144 of cgroup v1"},
	{"<os>", "<cputune><global_quota>5</global_quota></cputune><os>", "<global_quota> is 5 µs: 1000 to 17592186044415 are accepted, or a negative number for none"},
	{"<os>", "<cputune><vcpupin vcpu='1' cpuset='0'/></cputune><os>", "<vcpupin> has vcpu='1': there are only 0 to 0"},
	{"<os>", "<cputune><vcpupin vcpu='0' cpuset='0-'/></cputune><os>", "<vcpupin> has cpuset='0-': a list such as 0-3,^2,8 is accepted"},
	{"<os>", "<cputune><iothreadpin iothread='1' cpuset='0'/></cputune><os>", "<cputune> can have shares, vcpupin, emulatorpin, and period and quota, also as global_ and emulator_"},
	{"<os>", "<blkiotune><weight>20000</weight></blkiotune><os>", "<weight> is 20000: 1 to 10000 are accepted"},
	{"<os>", "<blkiotune><device><path>sda</path><weight>100</weight></device></blkiotune><os>", "<blkiotune><device> has the path 'sda': that of a block device on the host is needed"},
	{"<os>", "<numatune><memory mode='wild' nodeset='0'/></numatune><os>", "<numatune><memory> has mode='wild': strict, preferred, interleave and restrictive are accepted"},
	{"<os>", "<numatune><memory mode='strict' nodeset='x'/></numatune><os>", "<numatune><memory> has nodeset='x': a list such as 0-1 is needed"},
	{"<os>", "<resource><partition>machine</partition></resource><os>", "<partition> is 'machine': an absolute path such as /machine/web is needed, in which names are letters, digits and ':', '_', '.', '-'"},
	{"<os>", "<resource><partition>/machine/../x</partition></resource><os>", "<partition> is '/machine/../x'"},
	{"<os>", "<seclabel type='static' model='selinux'><label>x</label></seclabel><os>", "<seclabel> has model='selinux': none and apparmor are accepted"},
	{"<os>", "<lxc:namespace xmlns:lxc='http://libvirt.org/schemas/domain/lxc/1.0'><lxc:shareipc type='netns' value='red'/></lxc:namespace><os>", "<lxc:shareipc> has type='netns', which only <lxc:sharenet> can have: name and pid are accepted"},
	{"<os>", "<lxc:namespace xmlns:lxc='http://libvirt.org/schemas/domain/lxc/1.0'><lxc:shareuts type='uid' value='1'/></lxc:namespace><os>", "<lxc:shareuts> has type='uid': name, pid and netns are accepted"},
	{"<os>", "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:arg value='x'/></qemu:commandline><os>", "<domain> has an element of another hypervisor's namespace: only lxc:namespace is accepted"},
	{"</devices>", "<video><model type='vga'/></video></devices>", "<video> cannot be given to an environment: it is a container and has no such device"},
	{"</devices>", "<graphics type='sdl'/></devices>", "<graphics> cannot be given to an environment: it is a container and has no such device"},
	{"</devices>", "<smartcard mode='host'/></devices>", "<smartcard> cannot be given to an environment: it is a container and has no such device"},
	{"</devices>", "<panic model='isa'/></devices>", "<panic> cannot be given to an environment: it is a container and has no such device"},
	{"</devices>", "<serial type='pty'/></devices>", "<serial> cannot be given to an environment: it is a container and has no such device"},
	{"</devices>", strings.Repeat("<console type='pty'/>", 17) + "</devices>", "<console> is there 17 times, the limit is 16"},
	{"</devices>", "<console type='pty'><target type='lxc' port='0'/></console><console type='pty'><target type='lxc' port='0'/></console></devices>", "<console> has the target type='lxc' port='0' twice"},
	{"</devices>", "<filesystem type='mount'><source dir='srv'/><target dir='/srv'/></filesystem></devices>", "<filesystem> has the source 'srv': an absolute path on the host is needed"},
	{"</devices>", "<filesystem type='mount' accessmode='loose'><source dir='/srv'/><target dir='/srv'/></filesystem></devices>", "<filesystem> has accessmode='loose': passthrough and mapped are accepted"},
	{"</devices>", "<filesystem type='mount' accessmode='squash'><source dir='/srv'/><target dir='/srv'/></filesystem></devices>", "<filesystem> with accessmode='squash' is not realised: it would tell programs inside that a chown has succeeded which has not. Use passthrough, where it does succeed"},
	{"</devices>", "<filesystem type='nfs'><source dir='/srv'/><target dir='/srv'/></filesystem></devices>", "<filesystem><source> belongs to an element of a type that is not known"},
	{"</devices>", "<filesystem type='mount'><source dir='/a'/><target dir='/srv/'/></filesystem><filesystem type='mount'><source dir='/b'/><target dir='/srv'/></filesystem></devices>", "<filesystem> has the target '/srv' twice"},
	{"</devices>", "<interface type='user'/></devices>", "<interface> has a type an environment cannot have: network, bridge, direct, ethernet and hostdev are accepted"},
	{"</devices>", "<interface type='network'/></devices>", "<interface> of type 'network' needs <source network=…/>"},
	{"</devices>", "<interface type='bridge'><source bridge='a bridge'/></interface></devices>", "<interface> of type 'bridge' needs <source bridge=…/> with the name of a bridge, not 'a bridge'"},
	{"</devices>", "<interface type='direct'><source dev='eth0' mode='odd'/></interface></devices>", "<interface> has mode='odd': vepa, bridge, private and passthrough are accepted"},
	{"</devices>", "<interface type='ethernet'><ip address='1.2.3'/></interface></devices>", "<ip> has address='1.2.3': an IPv4 or IPv6 address is needed"},
	{"</devices>", "<interface type='ethernet'><ip address='1.2.3.4' prefix='33'/></interface></devices>", "<ip> has prefix='33': 0 to 32 are accepted"},
	{"</devices>", "<interface type='ethernet'><route gateway='gw'/></interface></devices>", "<route> has gateway='gw': an IPv4 or IPv6 address is needed"},
	{"</devices>", "<interface type='ethernet'><ip address='::ffff:192.0.2.1' prefix='96'/></interface></devices>", "<ip> has address='::ffff:192.0.2.1': an IPv4 or IPv6 address is needed"},
	{"</devices>", "<interface type='ethernet'><route gateway='::ffff:192.0.2.1'/></interface></devices>", "<route> has gateway='::ffff:192.0.2.1': an IPv4 or IPv6 address is needed"},
	{"</devices>", "<interface type='ethernet'><route address='::ffff:192.0.2.0' gateway='2001:db8::1'/></interface></devices>", "<route> has address='::ffff:192.0.2.0': an address of the gateway's family is needed"},
	{"</devices>", "<hostdev mode='capabilities' type='net'><source><interface>eth0</interface></source><route gateway='gw'/></hostdev></devices>", "<route> has gateway='gw': an IPv4 or IPv6 address is needed"},
	{"</devices>", "<hostdev mode='capabilities' type='net'><source><interface>eth0</interface></source><route address='10.0.0.0' prefix='33' gateway='10.0.0.1'/></hostdev></devices>", "<route> has prefix='33': 0 to 32 are accepted"},
	{"</devices>", "<hostdev mode='capabilities' type='net'><source><interface>eth0</interface></source><route address='10.0.0.0' prefix='-1' gateway='10.0.0.1'/></hostdev></devices>", "<route> has prefix='-1': 0 to 128 are accepted"},
	{"</devices>", "<hostdev mode='capabilities' type='net'><source><interface>eth0</interface></source><route address='10.0.0.0' netmask='255.0.255.0' gateway='10.0.0.1'/></hostdev></devices>", "<route> has netmask='255.0.255.0': one such as 255.255.255.0 is needed"},
	{"</devices>", "<hostdev mode='capabilities' type='net'><source><interface>eth0</interface></source><route address='10.0.0.0' metric='many' gateway='10.0.0.1'/></hostdev></devices>", "<route> has metric='many': 0 to 2147483647 are accepted"},
	{"</devices>", "<hostdev mode='capabilities' type='net'><source><interface>eth0</interface></source><route address='10.0.0.0 prefix=9' gateway='10.0.0.1'/></hostdev></devices>", "<route> has address='10.0.0.0 prefix=9': an address of the gateway's family is needed"},
	{"</devices>", "<interface type='ethernet'><guest dev='a/b'/></interface></devices>", "<interface><guest> has dev='a/b': a name of up to 15 letters, digits and punctuation is accepted"},
	{"</devices>", "<interface type='ethernet'><target dev='web%d'/></interface></devices>", "<interface><target> has dev='web%d': a name of up to 15 letters, digits and punctuation is accepted"},
	{"</devices>", "<interface type='ethernet'><mac address='52:54:00:00:00:aa'/></interface><interface type='ethernet'><mac address='52:54:00:00:00:AA'/></interface></devices>", "<mac> has address='52:54:00:00:00:aa' twice"},
	{"</devices>", "<hostdev mode='capabilities' type='misc'><source><char>tun</char></source></hostdev></devices>", "<hostdev> has the source 'tun': the path of a device node in /dev is needed"},
	{"</devices>", "<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='0' slot='1' function='0'/></source></hostdev></devices>", "<hostdev> has a mode and type an environment cannot have"},
	{"</devices>", "<hostdev/></devices>", "<devices><hostdev> cannot be read"},
	{"</devices>", "<disk type='network' device='disk'><source protocol='nbd' name='x'/><target dev='sda'/></disk></devices>", "<disk> has no type and <source> an environment can have: block, file and volume are accepted"},
	{"</devices>", "<disk type='volume'><source pool='p'/><target dev='sda'/></disk></devices>", "<disk> has no type and <source> an environment can have: block, file and volume are accepted"},
	{"</devices>", "<disk type='file'><source file='x.img'/><target dev='sda'/></disk></devices>", "<disk> has the source 'x.img': an absolute path on the host is needed"},
	{"</devices>", "<disk type='file'><driver name='qemu' type='qcow2'/><source file='/x'/><target dev='sda'/></disk></devices>", "<disk> has the driver 'qemu', which a virtual machine has: loop and nbd are accepted"},
	{"</devices>", "<disk type='file'><driver name='loop' type='qcow2'/><source file='/x'/><target dev='sda'/></disk></devices>", "<disk> has the driver 'loop' with type='qcow2': a loop device has raw images only, leave the name out or make it 'nbd'"},
	{"</devices>", "<disk type='block' device='cdrom'><source dev='/dev/sr0'/><target dev='sda'/></disk></devices>", "<disk> has device='cdrom': only 'disk' is accepted"},
	{"</devices>", "<disk type='block' device='disk'><source dev='/dev/sdb'/></disk></devices>", "<disk> needs a <target dev=…/>, the node's name inside such as 'sda'"},
	{"<os>", "<metadata><ve:ve xmlns:ve='" + VENamespace + "'><ve:hostname>a b</ve:hostname></ve:ve></metadata><os>", "<ve:hostname> is \"a b\": up to 64 letters, digits, '-' and '.' are accepted"},
	{"<os>", "<metadata><ve:ve xmlns:ve='" + VENamespace + "'><ve:nameserver>dns</ve:nameserver></ve:ve></metadata><os>", "<ve:nameserver> is \"dns\": an IPv4 or IPv6 address is needed"},
	{"<os>", "<metadata><ve:ve xmlns:ve='" + VENamespace + "'><ve:searchdomain>..</ve:searchdomain></ve:ve></metadata><os>", "<ve:searchdomain> is \"..\": up to 253 letters, digits, '-' and '.' are accepted"},
	{"<os>", "<metadata><ve:ve xmlns:ve='" + VENamespace + "'><ve:tasks>few</ve:tasks></ve:ve></metadata><os>", "<ve><tasks> has 'few' where a number is needed that is not negative"},
}

func TestRefused(t *testing.T) {
	for _, c := range refusals {
		doc := strings.Replace(minimal, c.old, c.new, 1)
		if doc == minimal {
			t.Fatalf("%q is not in the definition", c.old)
		}
		def, err := Parse(doc, host, ParseOptions{})
		if err == nil {
			_, err = NewEnvironment(def)
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("with %s\n got  %v\n want %s", c.new, err, c.want)
		}
	}
}

func TestBounds(t *testing.T) {
	for name, c := range map[string]struct{ doc, want string }{
		"large":    {"<domain>" + strings.Repeat(" ", maxDocument) + "</domain>", "the limit is 4194304"},
		"deep":     {strings.Repeat("<domain>", 100) + strings.Repeat("</domain>", 100), "nested deeper than 64"},
		"many":     {"<domain><devices>" + strings.Repeat("<a/>", maxElements) + "</devices></domain>", "more than 100000 elements"},
		"entities": {`<!DOCTYPE d [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><domain>&b;</domain>`, "document types and entities are not read"},
		"unknown":  {"<domain>&nosuch;</domain>", "not well-formed"},
		"open":     {"<domain><name>", "not well-formed"},
		"nothing":  {"", "the document is empty"},
		"binary":   {"\x00\x01\x02", "not well-formed"},
		"two":      {minimal + "<domain/>", "more than one root element"},
		"text":     {minimal + "more", "text outside of <domain>"},
		"end":      {minimal + "</domain>", "not well-formed"},
		"twice":    {"<domain><name>a</name><name>b</name></domain>", "<name> occurs twice: a domain has one"},
		"encoding": {`<?xml version="1.0" encoding="ebcdic"?><domain/>`, "not well-formed"},
		"control":  {"<domain><name>a\x01</name></domain>", "not well-formed"},
		"escaped":  {"<domain><name>a&#1;</name></domain>", "not well-formed"},
		"utf-8":    {"<domain><name>a\xff</name></domain>", "not well-formed"},
		"other":    {"<network/>", "the document's root is <network>, it must be <domain>"},
	} {
		if _, err := Parse(c.doc, host, ParseOptions{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", name, err, c.want)
		}
	}
}

func TestStrict(t *testing.T) {
	for _, c := range []struct{ old, new, want string }{
		{"<os>", "<colour>red</colour><os>", "unknown element 'colour' in /domain"},
		{"<name>", "<name lang='de'>", "unknown attribute 'lang' in /domain/name"},
		{"<target dir='/'/>", "<target dir='/'/><quota/>", "unknown element 'quota' in /domain/devices/filesystem"},
	} {
		doc := strings.Replace(minimal, c.old, c.new, 1)
		if _, err := Parse(doc, host, ParseOptions{Validate: true}); err == nil || err.Error() != c.want {
			t.Errorf("got %v, want %s", err, c.want)
		}
		if _, err := Parse(doc, host, ParseOptions{}); err != nil {
			t.Errorf("refused without validation: %v", err)
		}
	}
	own := strings.Replace(minimal, "<os>", "<metadata><x:y xmlns:x='urn:x' z='1'/></metadata><os>", 1)
	if _, err := Parse(own, host, ParseOptions{Validate: true}); err != nil {
		t.Errorf("the user's own metadata was refused: %v", err)
	}
}
