package xml

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Formats that FromNative reads, by the names virsh domxml-from-native takes.
const (
	NativeOpenVZ = "openvz"    // a CTID.conf (ctid.conf(5)), or a sample
	NativeLXC    = "lxc-tools" // a container's config (lxc.container.conf(5)), of LXC 1 or of LXC 3 and later
	NativeOCI    = "oci"       // a config.json of the OCI runtime specification
)

// maxNative is more than any real configuration has, and little to read.
const maxNative = 1 << 20

// FromNative makes a definition of another tool's configuration. Nothing of
// the configuration is executed, and no file it names is read. What an
// environment cannot have is told in a comment above the definition, with its
// line; what cannot be understood at all is refused. The document is one that
// Parse accepts, without looking for the templates it names.
func FromNative(format, config string, host HostFacts) (string, error) {
	readers := map[string]func(*draft, string) error{NativeOpenVZ: fromOpenVZ, NativeLXC: fromLXC, NativeOCI: fromOCI}
	read := readers[format]
	if read == nil {
		return "", &Error{Unsupported, "", fmt.Sprintf("the format '%s' is not known: %s, %s and %s are accepted",
			shorten(format), NativeOpenVZ, NativeLXC, NativeOCI)}
	}
	if len(config) > maxNative {
		return "", malformed("the configuration has %d bytes, the limit is %d", len(config), maxNative)
	}
	if !utf8.ValidString(config) || strings.ContainsRune(config, 0) {
		return "", malformed("the configuration is not UTF-8 text")
	}
	d := &draft{}
	if err := read(d, config); err != nil {
		return "", err
	}
	host.Templates = nil
	def, err := Parse(d.document(), host, ParseOptions{})
	if err != nil {
		return "", err
	}
	doc, err := Format(def, FormatOptions{Inactive: true})
	return d.comment() + doc, err
}

// draft is a definition that is being written. Whatever is put into it is
// escaped by element, and checked by Parse in the end.
type draft struct {
	kind, name, uuid, description string
	arch, policy                  string // policy of <capabilities>; empty: default
	memory                        uint64 // KiB; 0: not said
	vcpus                         uint64
	cpuset, nodeset               string

	memtune, cputune, blkiotune, os, initenv, features, capabilities, idmap, filesystems, devices, ve []string
	notes                                                                                             []note
	more                                                                                              int
}

// defaultMemory is what a configuration gets that says nothing of memory, in
// KiB: libvirt's lxc driver gives 64 MiB, in which today's systemd dies.
const defaultMemory = 512 << 10

func (d *draft) document() string {
	if d.memory == 0 {
		d.memory = defaultMemory
	}
	body := []string{element("name", d.name)}
	if d.uuid != "" {
		body = append(body, element("uuid", d.uuid))
	}
	if d.description != "" {
		body = append(body, element("description", d.description))
	}
	if len(d.ve) > 0 {
		body = append(body, within("metadata", []string{within("ve:ve", d.ve, "xmlns:ve", VENamespace)}))
	}
	var cpuset []string
	if d.cpuset != "" {
		cpuset = []string{"placement", "static", "cpuset", d.cpuset}
	}
	body = append(body, element("memory", strconv.FormatUint(d.memory, 10), "unit", "KiB"),
		element("vcpu", strconv.FormatUint(max(1, d.vcpus), 10), cpuset...),
		within("memtune", d.memtune), within("cputune", d.cputune), within("blkiotune", d.blkiotune))
	if d.nodeset != "" {
		body = append(body, within("numatune", []string{element("memory", "", "mode", "strict", "nodeset", d.nodeset)}))
	}
	features := slices.Clone(d.features)
	if len(d.capabilities) > 0 {
		features = append(features, within("capabilities", d.capabilities, "policy", cmp.Or(d.policy, "default")))
	}
	exe := element("type", "exe")
	if d.arch != "" {
		exe = element("type", "exe", "arch", d.arch)
	}
	body = append(body, within("idmap", d.idmap), within("os", slices.Concat([]string{exe}, d.os, d.initenv)),
		within("features", features), within("devices", append(d.filesystems, d.devices...)))
	return within("domain", body, "type", d.kind)
}

// within puts elements into one, which is left out when there are none.
func within(name string, inner []string, attributes ...string) string {
	if len(inner) == 0 {
		return ""
	}
	return tag(name, attributes) + ">" + strings.Join(inner, "") + "</" + name + ">"
}

// element writes one with text, and with attributes as names and values.
func element(name, text string, attributes ...string) string {
	return tag(name, attributes) + ">" + textEscapes.Replace(text) + "</" + name + ">"
}

func tag(name string, attributes []string) string {
	out := "<" + name
	for n := 0; n+1 < len(attributes); n += 2 {
		out += " " + attributes[n] + "='" + attributeEscapes.Replace(attributes[n+1]) + "'"
	}
	return out
}

// note is something that the definition does not have, and its line; 0 where
// there are none.
type note struct {
	line int
	text string
}

// maxNotes and maxNote keep a hostile file from coming back as its comment.
const maxNotes, maxNote = 200, 300

// note tells of something for the comment.
func (d *draft) note(line int, format string, args ...any) {
	if len(d.notes) == maxNotes {
		d.more++
		return
	}
	text := fmt.Sprintf(format, args...)
	if line > 0 {
		text = fmt.Sprintf("line %d: %s", line, text)
	}
	if len(text) > maxNote {
		text = strings.ToValidUTF8(text[:maxNote], "") + "…"
	}
	d.notes = append(d.notes, note{line, text})
}

// comment is the notes as XML has them: "--" would end it early, and control
// characters cannot be there at all.
func (d *draft) comment() string {
	if len(d.notes) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("<!--\nNot in this definition:\n")
	slices.SortStableFunc(d.notes, func(a, b note) int { return cmp.Compare(a.line, b.line) })
	for _, said := range d.notes {
		n := strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f || r == 0xfffe || r == 0xffff {
				return ' '
			}
			return r
		}, said.text)
		for strings.Contains(n, "--") {
			n = strings.ReplaceAll(n, "--", "- -")
		}
		b.WriteString("  " + n + "\n")
	}
	if d.more > 0 {
		fmt.Fprintf(&b, "  and %d more\n", d.more)
	}
	b.WriteString("-->\n")
	return b.String()
}

// filesystem adds one; the root is first in the document.
func (d *draft) filesystem(kind, sourceAttribute, source, target string, more ...string) {
	inner := append([]string{element("source", "", sourceAttribute, source), element("target", "", "dir", target)}, more...)
	f := within("filesystem", inner, "type", kind)
	if target == "/" {
		d.filesystems = slices.Insert(d.filesystems, 0, f)
	} else {
		d.filesystems = append(d.filesystems, f)
	}
}

// limit adds to memtune, in KiB.
func (d *draft) limit(name string, kib uint64) {
	d.memtune = append(d.memtune, element(name, strconv.FormatUint(min(kib, Unlimited), 10), "unit", "KiB"))
}

func (d *draft) quota(quota int64, period uint64) {
	d.cputune = append(d.cputune, element("period", strconv.FormatUint(period, 10)), element("quota", strconv.FormatInt(quota, 10)))
}

// capability turns a single capability on or off. It reports whether there
// is one of that name.
func (d *draft) capability(name, state string) bool {
	tag := capabilityTags()[strings.TrimPrefix(strings.ToLower(name), "cap_")]
	if tag != "" && !slices.ContainsFunc(d.capabilities, func(e string) bool { return strings.HasPrefix(e, "<"+tag+" ") }) {
		d.capabilities = append(d.capabilities, element(tag, "", "state", state))
	}
	return tag != ""
}

// idRange adds to idmap; kind is "uid" or "gid".
func (d *draft) idRange(kind string, inside, host, count uint32) {
	d.idmap = append(d.idmap, element(kind, "", "start", fmt.Sprint(inside), "target", fmt.Sprint(host), "count", fmt.Sprint(count)))
}

// badLine is a configuration that is refused for one line.
func badLine(line int, format string, args ...any) error {
	return &Error{Invalid, "", fmt.Sprintf("line %d: ", line) + fmt.Sprintf(format, args...)}
}
