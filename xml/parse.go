package xml

import (
	"crypto/rand"
	"fmt"

	"libvirt.org/go/libvirtxml"
)

// HostFacts are what a definition is checked and completed with.
type HostFacts struct {
	Arch       string          // "x86_64", as uname says
	UUID       string          // of the machine
	Emulator   string          // path of the OCI runtime
	Templates  func() []string // names that can be used; nil: not checked
	Cells      []Cell
	MaxVCPUs   int
	SecModels  []SecModel
	HostRoot   bool     // an environment without a root may have the host's, see virtvzd.conf
	Transports []string // migration URIs, "tcp"; none: no migration
}

// SecModel is a security model of the host, "apparmor" with DOI "0".
type SecModel struct{ Model, DOI string }

// Cell is a NUMA node of the host.
type Cell struct {
	ID        int
	MemoryKiB uint64
	Pages     []Pages // by size
	Distances []int   // to each cell in the order of Cells, itself among them; 10 is local
	CPUs      []CPU
}

// Pages are memory pages of one size, free or not.
type Pages struct {
	KiB   int
	Count uint64
}

// CPU is a logical CPU of the host.
type CPU struct {
	ID, Socket, Core int
	Siblings         string
}

// ParseOptions tell where a document comes from.
type ParseOptions struct {
	Validate bool // refuse what libvirt's schema does not know
	Stored   bool // written by us: what it needs may be gone since
	Live     bool // keep what only a running environment has

	// Allow is asked as soon as it is known of which domain the document
	// claims to be, before anything else about it is told; uuid is zero when
	// it names none. Its error is Parse's.
	Allow func(name string, uuid [16]byte) error
}

// Parse reads a definition: it is checked, completed with libvirt's
// defaults, and normalised so that formatting it again changes nothing.
func Parse(doc string, host HostFacts, o ParseOptions) (*libvirtxml.Domain, error) {
	def := &libvirtxml.Domain{}
	if err := newScanner(doc, "domain").domain(def); err != nil {
		return nil, err
	}
	if o.Allow != nil {
		if err := allow(def, o.Allow); err != nil {
			return nil, err
		}
	}
	if def.Metadata != nil {
		if err := adopt(doc, def.Metadata); err != nil {
			return nil, err
		}
	}
	if o.Validate {
		if err := strict(doc, def); err != nil {
			return nil, err
		}
	}
	if !o.Live {
		forgetLive(def)
	}
	if o.Stored {
		host.Templates = nil
	}
	return def, Check(def, host)
}

// Check completes a definition with libvirt's defaults, normalises it, and
// tells whether an environment can be what it says: Parse for one that was
// changed in memory.
func Check(def *libvirtxml.Domain, host HostFacts) error {
	normalise(def, host)
	if err := complete(def, host); err != nil {
		return err
	}
	return validate(def, host)
}

func allow(def *libvirtxml.Domain, ask func(string, [16]byte) error) (err error) {
	var id [16]byte
	if def.UUID != "" {
		if id, err = parseUUID(def.UUID); err != nil {
			return err
		}
	}
	return ask(def.Name, id)
}

// newUUID makes a random one (RFC 9562, version 4).
func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return formatUUID(b)
}

func formatUUID(b [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// newMAC makes an address in the range libvirt uses for containers and
// virtual machines alike.
func newMAC() string {
	var b [3]byte
	rand.Read(b[:])
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", b[0], b[1], b[2])
}
