package xml

import (
	"encoding/xml"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// VENamespace is that of the metadata element for what libvirt's domain XML
// has no word for:
//
//	<metadata>
//	  <ve:ve xmlns:ve="http://virtvzd.org/ve/1.0">
//	    <ve:hostname>www.example.org</ve:hostname>
//	    <ve:tasks>512</ve:tasks>
//	  </ve:ve>
//	</metadata>
const VENamespace = "http://virtvzd.org/ve/1.0"

// ve is that element. Children it does not know are kept and mean nothing.
type ve struct {
	XMLName  xml.Name `xml:"http://virtvzd.org/ve/1.0 ve"`
	Hostname string   `xml:"hostname"`
	Tasks    *uint64  `xml:"tasks"`
}

func parseVE(def *libvirtxml.Domain) (*ve, error) {
	text, found, err := namespaced(def, VENamespace)
	if err != nil || !found {
		return nil, err
	}
	v := &ve{}
	if err := xml.Unmarshal([]byte(text), v); err != nil {
		return nil, invalid("<ve:ve>", "cannot be read: %v", err)
	}
	if v.Hostname != "" && (len(v.Hostname) > 64 || hostname(v.Hostname) != v.Hostname) {
		return nil, invalid("<ve:hostname>", "is %q: up to 64 letters, digits, '-' and '.' are accepted", shorten(strings.TrimSpace(v.Hostname)))
	}
	if v.Tasks != nil && *v.Tasks < 1 {
		return nil, invalid("<ve:tasks>", "is 0: at least one is needed")
	}
	return v, nil
}

func (v *ve) apply(e *Environment) {
	if v.Hostname != "" {
		e.Hostname = v.Hostname
	}
	if v.Tasks != nil {
		e.Tasks = *v.Tasks
	}
}
