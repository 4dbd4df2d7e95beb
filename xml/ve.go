package xml

import (
	"encoding/xml"
	"net/netip"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// VENamespace is that of the metadata element for what libvirt's domain XML
// has no word for:
//
//	<metadata>
//	  <ve:ve xmlns:ve="http://virtvzd.org/ve/1.0">
//	    <ve:hostname>www.example.org</ve:hostname>
//	    <ve:nameserver>192.0.2.53</ve:nameserver>
//	    <ve:searchdomain>example.org</ve:searchdomain>
//	    <ve:tasks>512</ve:tasks>
//	    <ve:ubc name="numpty" limit="32"/>
//	    <ve:clone of="1a2b3c4d-…"/>
//	    <ve:tag>production</ve:tag>
//	  </ve:ve>
//	</metadata>
//
// hostname: what the environment is called inside, instead of its domain's
// name. nameserver, searchdomain: for resolv.conf, repeatable. tasks: the
// most processes and threads. ubc: an OpenVZ beancounter, see beancounters;
// its barrier, where it has one, is kept and means nothing. clone: the UUID
// of the environment, shut off, whose disk it starts with instead of the bare
// template; it counts at the first start only, and where polkit decides, it
// takes the right to write to that. tag: a word that vzctl fleet
// selects by, repeatable. It and other children are kept and mean nothing to
// the daemon.
const VENamespace = "http://virtvzd.org/ve/1.0"

type ve struct {
	XMLName       xml.Name `xml:"http://virtvzd.org/ve/1.0 ve"`
	Hostname      string   `xml:"hostname"`
	Nameservers   []string `xml:"nameserver"`
	SearchDomains []string `xml:"searchdomain"`
	Tasks         *uint64  `xml:"tasks"`
	UBC           []ubc    `xml:"ubc"`
	Clone         *struct {
		Of string `xml:"of,attr"`
	} `xml:"clone"`
}

// resolv.conf's own limits (MAXNS is 3, but more are kept by resolvers that
// are not glibc's).
const (
	maxNameservers   = 16
	maxSearchDomains = 32
	maxTasks         = 1 << 22 // PID_MAX_LIMIT
)

func parseVE(def *libvirtxml.Domain) (*ve, error) {
	text, found, err := namespaced(def, VENamespace)
	if err != nil || !found {
		return nil, err
	}
	v := &ve{}
	if err := decode(text, v); err != nil {
		return nil, err
	}
	if err := v.check(); err != nil {
		return nil, err
	}
	return v, nil
}

func (v *ve) check() error {
	if v.Hostname != "" && !validHost(v.Hostname, 64) {
		return invalid("<ve:hostname>", "is %q: up to 64 letters, digits, '-' and '.' are accepted", shorten(v.Hostname))
	}
	if len(v.Nameservers) > maxNameservers || len(v.SearchDomains) > maxSearchDomains {
		return invalid("<ve:ve>", "has more than %d nameservers or %d search domains", maxNameservers, maxSearchDomains)
	}
	for _, s := range v.Nameservers {
		if _, err := netip.ParseAddr(s); err != nil {
			return invalid("<ve:nameserver>", "is %q: an IPv4 or IPv6 address is needed", shorten(s))
		}
	}
	for _, s := range v.SearchDomains {
		if !validHost(s, 253) {
			return invalid("<ve:searchdomain>", "is %q: up to 253 letters, digits, '-' and '.' are accepted", shorten(s))
		}
	}
	if v.Tasks != nil && (*v.Tasks < 1 || *v.Tasks > maxTasks) {
		return invalid("<ve:tasks>", "is %d: 1 to %d are accepted", *v.Tasks, maxTasks)
	}
	if v.Clone != nil {
		if _, err := parseUUID(v.Clone.Of); err != nil {
			return invalid("<ve:clone>", "names '%s', which is not the UUID of an environment", shorten(v.Clone.Of))
		}
	}
	return v.checkUBC()
}

// validHost tells whether a name is one of a host or domain: labels of
// letters, digits and '-' between dots.
func validHost(name string, limit int) bool {
	if len(name) > limit {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || hostname(label) != label || strings.Contains(label, ".") {
			return false
		}
	}
	return true
}

func validateVE(def *libvirtxml.Domain, _ HostFacts) error {
	_, err := parseVE(def)
	if err == nil {
		_, _, err = diskOf(def)
	}
	return err
}

func (v *ve) apply(e *Environment) {
	if v.Hostname != "" {
		e.Hostname = v.Hostname
	}
	e.Nameservers, e.SearchDomains = v.Nameservers, v.SearchDomains
	v.applyUBC(&e.Counts, &e.Memory)
	if v.Clone != nil {
		e.CloneOf, _ = parseUUID(v.Clone.Of) // checked
	}
	if v.Tasks != nil {
		e.Counts.Tasks = *v.Tasks
	}
}
