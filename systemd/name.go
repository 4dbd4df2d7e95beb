package systemd

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

const (
	unitNameMax    = 255 // UNIT_NAME_MAX without its NUL, src/basic/unit-def.h; also the longest cgroup directory
	machineNameMax = 64  // HOST_NAME_MAX, which machine_name_is_valid applies

	scopePrefix = `machine-vz\x2d`
	scopeSuffix = ".scope"

	hexDigits = "0123456789abcdef"
)

// ScopePattern matches the scopes of all environments in ListUnits. systemd matches with FNM_NOESCAPE: a backslash is
// just a backslash.
const ScopePattern = `machine-vz\x2d*.scope`

// Escape is unit name escaping as `systemd-escape` does it: "/" becomes "-"; letters, digits, ":", "_" and "." stay,
// a leading "." does not; every other byte is written \xHH. Distinct strings stay distinct. (systemd-escape --path,
// which also shortens slashes, is something else.)
func Escape(s string) string {
	var b strings.Builder
	b.Grow(len(s) + 16)
	for i := 0; i < len(s); i++ {
		b.WriteString(escapeByte(s[i], i == 0))
	}
	return b.String()
}

func escapeByte(c byte, first bool) string {
	switch {
	case c == '/':
		return "-"
	case c == '.' && first:
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == ':', c == '_', c == '.':
		return string(rune(c))
	}
	return string([]byte{'\\', 'x', hexDigits[c>>4], hexDigits[c&15]})
}

// Unescape undoes Escape; false means that s is no escaped name.
func Unescape(s string) (string, bool) {
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '-':
			out = append(out, '/')
		case '\\':
			if len(s)-i < 4 || s[i+1] != 'x' {
				return "", false
			}
			c, err := hex.DecodeString(s[i+2 : i+4])
			if err != nil {
				return "", false
			}
			out = append(out, c[0])
			i += 3
		default:
			out = append(out, s[i])
		}
	}
	return string(out), true
}

// ScopeName is the unit of a domain's environment: machine-vz\x2dNAME.scope, the form libvirt's drivers use. Where
// that would exceed the 255 bytes a unit name may have, the end of the name is replaced by a hash of all of it.
func ScopeName(domain string) string {
	room := unitNameMax - len(scopePrefix) - len(scopeSuffix)
	name := Escape("." + domain)[len(`\x2e`):] // the domain's first letter is not the first letter of the unit
	if len(name) <= room {
		return scopePrefix + name + scopeSuffix
	}
	sum := sha256.Sum256([]byte(domain))
	tail := "-" + hex.EncodeToString(sum[:16]) // a bare "-" stands for "/", which no domain name has
	cut := room - len(tail)
	var b strings.Builder
	for i := 0; i < len(domain); i++ { // by whole bytes of the domain, so that no escape is cut in two
		e := escapeByte(domain[i], false)
		if b.Len()+len(e) > cut {
			break
		}
		b.WriteString(e)
	}
	return scopePrefix + b.String() + tail + scopeSuffix
}

// DomainName undoes ScopeName. It is false for a scope that is none of ours and for a name that was shortened.
func DomainName(scope string) (string, bool) {
	name, ok := strings.CutPrefix(scope, scopePrefix)
	if !ok {
		return "", false
	}
	if name, ok = strings.CutSuffix(name, scopeSuffix); !ok || name == "" || strings.Contains(name, "-") {
		return "", false
	}
	return Unescape(name)
}

// SliceName is the slice of a <resource><partition>, as libvirt names it: "/machine/web" is machine-web.slice, which
// systemd nests below machine.slice. "/" is the root slice.
func SliceName(partition string) (string, error) {
	path := strings.Trim(partition, "/")
	if !strings.HasPrefix(partition, "/") {
		return "", fmt.Errorf("partition %q must be an absolute path such as /machine", partition)
	}
	if path == "" {
		return "-.slice", nil
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." {
			return "", fmt.Errorf("partition %q must have no empty, \".\" or \"..\" component", partition)
		}
	}
	slice := Escape(path) + ".slice"
	if len(slice) > unitNameMax {
		return "", fmt.Errorf("partition %q is too long: its slice would have %d characters, systemd allows %d", partition, len(slice), unitNameMax)
	}
	return slice, nil
}

// MachineName is what the environment is called in machinectl: "vz-" and the domain's name. machined takes only
// host names (letters, digits, "-" and ".", at most 64); a name that is none is reduced to one, and then ends in
// the domain's UUID so that two domains never meet.
func MachineName(domain string, uuid [16]byte) string {
	const prefix = "vz-"
	clean := machineChars(domain)
	if clean == domain && domain != "" && len(prefix)+len(domain) <= machineNameMax {
		return prefix + domain
	}
	id := hex.EncodeToString(uuid[:])
	if room := machineNameMax - len(prefix) - len("-") - len(id); len(clean) > room {
		clean = strings.TrimRight(clean[:room], ".-")
	}
	if clean == "" {
		return prefix + id
	}
	return prefix + clean + "-" + id
}

// machineChars keeps what hostname_is_valid (src/basic/hostname-util.c) accepts: no "." or "-" at either end, and
// neither twice or next to the other. systemd itself allows "--", giving it up costs nothing.
func machineChars(s string) string {
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
			out = append(out, c)
		case c == '.' || c == '-':
			if n := len(out); n > 0 && out[n-1] != '.' && out[n-1] != '-' {
				out = append(out, c)
			}
		}
	}
	return strings.TrimRight(string(out), ".-")
}
