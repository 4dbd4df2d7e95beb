package xml

import (
	"encoding/xml"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// strict names the first element or attribute of a document that the model
// of libvirt's schema does not know: what was read is written again, and
// what is missing then was not understood.
func strict(doc string, def *libvirtxml.Domain) error {
	again, err := xml.Marshal(def)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	visit(unfoldRoutes(string(again)), func(path string) bool {
		known[path] = true
		return true
	})
	unknown := ""
	visit(doc, func(path string) bool {
		if !known[path] && !slices.Contains(omitted, path) {
			unknown = path
		}
		return unknown == ""
	})
	if unknown == "" {
		return nil
	}
	at := strings.LastIndexAny(unknown, "/@")
	kind := map[byte]string{'/': "element", '@': "attribute"}[unknown[at]]
	return &Error{Schema, "", "unknown " + kind + " '" + shorten(unknown[at+1:]) + "' in " + unknown[:at]}
}

// omitted may be written and be empty or zero, which the model then leaves
// out.
var omitted = []string{
	"/domain/title", "/domain/description", "/domain/iothreads", "/domain/blkiotune/weight", "/domain/vcpu@current", "/domain/vcpu@cpuset",
	"/domain/os/init", "/domain/os/initdir", "/domain/devices/emulator", "/domain/devices/interface/target@dev", "/domain/devices/console@tty",
	"/domain/devices/interface/mac@address", "/domain/devices/graphics@port", "/domain/devices/graphics@websocket",
	"/domain/devices/interface/ip@prefix", "/domain/devices/interface/route@prefix", "/domain/devices/interface/route@metric",
	"/domain/devices/hostdev/route@prefix", "/domain/devices/hostdev/route@netmask", "/domain/devices/hostdev/route@metric",
	"/domain/blkiotune/device/weight", "/domain/blkiotune/device/read_iops_sec", "/domain/blkiotune/device/write_iops_sec",
	"/domain/blkiotune/device/read_bytes_sec", "/domain/blkiotune/device/write_bytes_sec", "/domain/clock@adjustment",
}

// visit calls use with the path of every element and attribute until it
// returns false. What lies in <metadata> is the user's own.
func visit(doc string, use func(path string) bool) {
	d := xml.NewDecoder(strings.NewReader(doc))
	path := ""
	for {
		token, err := d.Token()
		if err != nil {
			return
		}
		switch t := token.(type) {
		case xml.StartElement:
			path += "/" + t.Name.Local
			if !use(path) {
				return
			}
			for _, a := range t.Attr {
				if a.Name.Space != "xmlns" && a.Name.Local != "xmlns" && !use(path+"@"+a.Name.Local) {
					return
				}
			}
			if path == "/domain/metadata" {
				d.Skip()
				path = "/domain"
			}
		case xml.EndElement:
			path = path[:strings.LastIndexByte(path, '/')]
		}
	}
}
