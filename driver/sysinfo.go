package driver

import (
	"encoding/xml"
	"strings"

	"virtvzd/driver/protocol"
)

// sysinfo is the firmware's description of the machine in libvirt's format
// (virsh sysinfo).
func sysinfo() (string, error) {
	type entry struct {
		Name  string `xml:"name,attr"`
		Value string `xml:",chardata"`
	}
	type section struct {
		XMLName xml.Name
		Entries []entry `xml:"entry"`
	}
	doc := struct {
		XMLName  xml.Name  `xml:"sysinfo"`
		Type     string    `xml:"type,attr"`
		Sections []section `xml:",any"`
	}{Type: "smbios"}
	for _, s := range []struct {
		name   string
		fields []string
	}{
		{"bios", []string{"vendor=bios_vendor", "version=bios_version", "date=bios_date", "release=bios_release"}},
		{"system", []string{"manufacturer=sys_vendor", "product=product_name", "version=product_version", "serial=product_serial", "uuid=product_uuid", "sku=product_sku", "family=product_family"}},
		{"baseBoard", []string{"manufacturer=board_vendor", "product=board_name", "version=board_version", "serial=board_serial", "asset=board_asset_tag"}},
		{"chassis", []string{"manufacturer=chassis_vendor", "version=chassis_version", "serial=chassis_serial", "asset=chassis_asset_tag"}},
	} {
		sec := section{XMLName: xml.Name{Local: s.name}}
		for _, f := range s.fields {
			name, file, _ := strings.Cut(f, "=")
			if value := readLine("/sys/class/dmi/id/" + file); value != "" {
				sec.Entries = append(sec.Entries, entry{name, value})
			}
		}
		if len(sec.Entries) > 0 {
			doc.Sections = append(doc.Sections, sec)
		}
	}
	if len(doc.Sections) == 0 {
		return "", errorf(protocol.ErrOperationUnsupported, "Host SMBIOS information is not available")
	}
	out, err := xml.MarshalIndent(doc, "", "  ")
	return string(out) + "\n", err
}
