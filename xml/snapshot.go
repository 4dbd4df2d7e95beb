package xml

import (
	"encoding/xml"
	"fmt"
	"strconv"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// Snapshot is the state of an environment's disk at some time, the processes it
// had then if they were kept, and its definition: libvirt's <domainsnapshot>.
//
//	<cookie><layer id='…'/></cookie>
//
// is what libvirt has for a driver's own data, and names that state. A snapshot
// that was forgotten is made known again by the document it was printed as.
type Snapshot struct {
	Name        string
	Description string
	State       string // one of the Snapshot* constants
	DiskOnly    bool   // of one that is to be made: <memory snapshot='no'/>
	Parent      string // name; "": none
	Created     int64  // seconds since 1970
	Layer       string // which state of the disk, see runtime.Layer
	Domain      *libvirtxml.Domain
}

// What the environment did when the snapshot was made, as <state> says.
const (
	SnapshotShutoff  = "shutoff"
	SnapshotDiskOnly = "disk-snapshot" // it ran, or was paused, and its processes were not kept
	SnapshotRunning  = "running"
	SnapshotPaused   = "paused"
)

// HasMemory tells whether the processes are in the snapshot.
func (s *Snapshot) HasMemory() bool { return s.State == SnapshotRunning || s.State == SnapshotPaused }

type snapshotDocument struct {
	XMLName     xml.Name `xml:"domainsnapshot"`
	Name        string   `xml:"name"`
	Description string   `xml:"description"`
	State       string   `xml:"state"`
	Created     string   `xml:"creationTime"`
	Parent      string   `xml:"parent>name"`
	Memory      *struct {
		Snapshot string `xml:"snapshot,attr"`
		File     string `xml:"file,attr"`
	} `xml:"memory"`
	Disks []struct {
		Name     string `xml:"name,attr"`
		Snapshot string `xml:"snapshot,attr"`
	} `xml:"disks>disk"`
	Layer struct {
		ID string `xml:"id,attr"`
	} `xml:"cookie>layer"`
	Other []struct {
		XMLName xml.Name
	} `xml:",any"`
}

// snapshotElements are those of libvirt's schema that mean nothing here.
var snapshotElements = map[string]bool{"domain": true, "inactiveDomain": true, "active": true, "revertDisks": true, "cookie": true, "disks": true, "parent": true}

// ParseSnapshot reads the document of a snapshot that is to be made, of which
// only the name and the description count, or, with redefine, of one there
// was.
func ParseSnapshot(doc string, host HostFacts, redefine bool, o ParseOptions) (*Snapshot, error) {
	if err := scan(doc, "domainsnapshot"); err != nil {
		return nil, err
	}
	var in snapshotDocument
	if err := decode(doc, &in); err != nil {
		return nil, err
	}
	if err := in.check(o.Validate); err != nil {
		return nil, err
	}
	s := &Snapshot{Name: in.Name, Description: in.Description}
	if s.Name != "" || redefine {
		if err := CheckName(s.Name); err != nil {
			return nil, err
		}
	}
	if !redefine {
		s.DiskOnly = in.Memory != nil && in.Memory.Snapshot == "no"
		return s, nil
	}
	return s, in.redefined(s, doc, host, o)
}

// check refuses what a snapshot of an environment cannot have.
func (in *snapshotDocument) check(validate bool) error {
	if m := in.Memory; m != nil && (m.File != "" || m.Snapshot != "no" && m.Snapshot != "internal" && m.Snapshot != "") {
		return unsupported("<memory>", "has the snapshot '%s' or a file: the daemon keeps the memory itself ('internal'), or does not keep it ('no')", shorten(m.Snapshot))
	}
	for _, d := range in.Disks {
		if d.Name != "/" {
			return invalid("<disk>", "has the name '%s': the only disk of an environment is its root, '/'", shorten(d.Name))
		}
		if d.Snapshot != "" && d.Snapshot != "internal" {
			return unsupported("<disk>", "cannot have the snapshot '%s': that of an environment's root is 'internal'", shorten(d.Snapshot))
		}
	}
	for _, other := range in.Other {
		if validate && !snapshotElements[other.XMLName.Local] {
			return &Error{Schema, "", fmt.Sprintf("unknown element '%s' in /domainsnapshot", shorten(other.XMLName.Local))}
		}
	}
	return nil
}

func (in *snapshotDocument) redefined(s *Snapshot, doc string, host HostFacts, o ParseOptions) (err error) {
	s.State, s.Parent, s.Layer = in.State, in.Parent, in.Layer.ID
	if s.State != SnapshotShutoff && s.State != SnapshotDiskOnly && !s.HasMemory() {
		return unsupported("<state>", "is '%s': snapshots of environments are '%s', '%s', '%s' or '%s'",
			shorten(s.State), SnapshotShutoff, SnapshotDiskOnly, SnapshotRunning, SnapshotPaused)
	}
	if s.Created, err = strconv.ParseInt(strings.TrimSpace(in.Created), 10, 64); err != nil {
		return invalid("<creationTime>", "is '%s': a number of seconds since 1970 is needed", shorten(in.Created))
	}
	if s.Parent != "" {
		if err := CheckName(s.Parent); err != nil {
			return err
		}
	}
	domain, err := snapshotDomain(doc)
	if err != nil || domain == "" {
		return err
	}
	o.Stored = true
	s.Domain, err = Parse(domain, host, o)
	return err
}

// snapshotDomain cuts out the definition: its metadata is text that must not
// go through a model. It is "" for one that only says <uuid>.
func snapshotDomain(doc string) (string, error) {
	d := xml.NewDecoder(strings.NewReader(doc))
	start, depth := int64(-1), 0
	for {
		before := d.InputOffset()
		token, err := d.RawToken()
		if err != nil {
			return "", nil // was scanned before: this is the end
		}
		switch t := token.(type) {
		case xml.StartElement:
			if depth == 1 && t.Name.Local == "domain" && typed(t) {
				start = before
			}
			depth++
		case xml.EndElement:
			depth--
			if depth == 1 && start >= 0 {
				return doc[start:d.InputOffset()], nil
			}
		}
	}
}

func typed(t xml.StartElement) bool {
	for _, a := range t.Attr {
		if a.Name.Local == "type" {
			return true
		}
	}
	return false
}

// FormatSnapshot makes the document of a snapshot.
func FormatSnapshot(s *Snapshot, o FormatOptions) (string, error) {
	var b strings.Builder
	b.WriteString("<domainsnapshot>\n")
	line := func(format string, text string) {
		if text != "" {
			fmt.Fprintf(&b, "  "+format+"\n", textEscapes.Replace(text))
		}
	}
	line("<name>%s</name>", s.Name)
	line("<description>%s</description>", s.Description)
	line("<state>%s</state>", s.State)
	line("<parent>\n    <name>%s</name>\n  </parent>", s.Parent)
	line("<creationTime>%s</creationTime>", strconv.FormatInt(s.Created, 10))
	memory := "no"
	if s.HasMemory() {
		memory = "internal"
	}
	line("<memory snapshot='%s'/>", memory)
	b.WriteString("  <disks>\n    <disk name='/' snapshot='internal'/>\n  </disks>\n")
	if s.Domain != nil {
		o.Inactive = true
		domain, err := Format(s.Domain, o)
		if err != nil {
			return "", err
		}
		b.WriteString(domain)
	}
	line("<cookie>\n    <layer id='%s'/>\n  </cookie>", s.Layer)
	b.WriteString("</domainsnapshot>\n")
	if b.Len() > maxDocument-fileHeader {
		return "", malformed("the snapshot's document has %d bytes, the limit is %d", b.Len(), maxDocument-fileHeader)
	}
	return b.String(), nil
}
