package xml

import (
	"encoding/xml"
	"net/netip"
	"strconv"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// libvirt has one form of <route> for all interfaces; its model knows address and
// gateway only for one that is lent (a <hostdev> of type net). What it does not
// know is kept in the address there, as "10.1.0.0 prefix=16 metric=5": lentRoutes
// puts it in while a document is read, unfoldRoutes takes it out of one that is
// written, and lentRoute reads it.

// lentRoutes are the tokens of a document for the model.
type lentRoutes struct {
	from func() (xml.Token, error)
	in   int  // depth below a <hostdev> or the <metadata>
	lent bool // it is the <hostdev>: what lies in <metadata> is the user's own
}

// Token implements xml.TokenReader.
func (l *lentRoutes) Token() (xml.Token, error) {
	token, err := l.from()
	switch t := token.(type) {
	case xml.StartElement:
		if l.in == 1 && l.lent && t.Name.Local == "route" {
			var e error
			if t.Attr, e = foldRoute(t.Attr); e != nil {
				return nil, e
			}
			token = t
		}
		if l.in == 0 {
			l.lent = t.Name.Local == "hostdev"
		}
		if l.in > 0 || l.lent || t.Name.Local == "metadata" {
			l.in++
		}
	case xml.EndElement:
		l.in = max(0, l.in-1)
	}
	return token, err
}

func foldRoute(attrs []xml.Attr) (folded []xml.Attr, err error) {
	address, prefix, metric := "", "", ""
	for _, a := range attrs {
		switch {
		case a.Name.Space != "":
		case a.Name.Local == "address":
			if strings.ContainsAny(a.Value, " =") {
				return nil, invalid("<route>", "has address='%s': an address of the gateway's family is needed", shorten(a.Value))
			}
			address = a.Value
			continue
		case a.Name.Local == "prefix":
			n, err := strconv.ParseUint(a.Value, 10, 8)
			if err != nil || n > 128 {
				return nil, invalid("<route>", "has prefix='%s': 0 to 128 are accepted", shorten(a.Value))
			}
			prefix = strconv.FormatUint(n, 10)
			continue
		case a.Name.Local == "netmask":
			mask, err := netip.ParseAddr(a.Value)
			if err != nil || !mask.Is4() || !isMask(mask) {
				return nil, invalid("<route>", "has netmask='%s': one such as 255.255.255.0 is needed", shorten(a.Value))
			}
			prefix = strconv.FormatUint(uint64(maskLength(mask)), 10)
			continue
		case a.Name.Local == "metric":
			n, err := strconv.ParseUint(a.Value, 10, 31)
			if err != nil {
				return nil, invalid("<route>", "has metric='%s': 0 to 2147483647 are accepted", shorten(a.Value))
			}
			metric = strconv.FormatUint(n, 10)
			continue
		}
		folded = append(folded, a)
	}
	for _, more := range []struct{ name, value string }{{"prefix", prefix}, {"metric", metric}} {
		if more.value != "" && more.value != "0" { // 0 is as none is
			address += " " + more.name + "=" + more.value
		}
	}
	if address != "" {
		folded = append(folded, xml.Attr{Name: xml.Name{Local: "address"}, Value: address})
	}
	return folded, nil
}

// lentRoute is a route of the model, which was read through lentRoutes, in the
// form of other interfaces.
func lentRoute(r libvirtxml.DomainRoute) libvirtxml.DomainInterfaceRoute {
	address, more, _ := strings.Cut(r.Address, " ")
	out := libvirtxml.DomainInterfaceRoute{Family: r.Family, Address: address, Gateway: r.Gateway}
	for field := range strings.FieldsSeq(more) {
		name, value, _ := strings.Cut(field, "=")
		n, _ := strconv.ParseUint(value, 10, 31)
		switch name {
		case "prefix":
			out.Prefix = uint(n)
		case "metric":
			out.Metric = uint(n)
		}
	}
	return out
}

var foldedRoute = pattern(`(<route[^>]*?) address="([^" ]*)((?: [a-z]+=[0-9]+)+)"`)

// unfoldRoutes is for a document as the model writes it.
func unfoldRoutes(doc string) string {
	return foldedRoute().ReplaceAllStringFunc(doc, func(found string) string {
		part := foldedRoute().FindStringSubmatch(found)
		out := part[1]
		if part[2] != "" {
			out += ` address="` + part[2] + `"`
		}
		for field := range strings.FieldsSeq(part[3]) {
			name, value, _ := strings.Cut(field, "=")
			out += ` ` + name + `="` + value + `"`
		}
		return out
	})
}
