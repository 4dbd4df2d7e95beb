package runtime

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// qcow2 is the beginning of an image.
func qcow2(change func(h *qcow2Header)) *bytes.Reader {
	h := qcow2Header{Magic: [4]byte([]byte(qcow2Magic)), Version: 3, Cluster: 16, Size: 1 << 30, L1: 2}
	change(&h)
	var b bytes.Buffer
	binary.Write(&b, binary.BigEndian, &h)
	return bytes.NewReader(b.Bytes())
}

// TestReadQcow2 refuses images that name other files of the host.
func TestReadQcow2(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(h *qcow2Header)
		error  string
	}{
		{"plain", func(h *qcow2Header) {}, ""},
		{"version 2", func(h *qcow2Header) { h.Version, h.Incompatible = 2, qcow2DataFile }, ""},
		{"lazy, extended", func(h *qcow2Header) { h.Incompatible = 1 | 1<<3 | 1<<4 }, ""},
		{"raw", func(h *qcow2Header) { h.Magic = [4]byte{} }, "no qcow2 image"},
		{"version 1", func(h *qcow2Header) { h.Version = 1 }, "version 1"},
		{"backing file", func(h *qcow2Header) { h.BackingOffset = 0x70 }, "backing file"},
		{"backing file of version 2", func(h *qcow2Header) { h.Version, h.BackingOffset = 2, 0x70 }, "backing file"},
		{"data file", func(h *qcow2Header) { h.Incompatible = qcow2DataFile }, "data in another file"},
		{"damaged", func(h *qcow2Header) { h.Incompatible = qcow2Corrupt }, "damaged"},
		{"encrypted", func(h *qcow2Header) { h.Encryption = 2 }, "encrypted"},
		{"too large", func(h *qcow2Header) { h.Size = 1 << 63 }, "claims"},
	} {
		h, err := readQcow2(qcow2(c.change))
		if (err == nil) != (c.error == "") || err != nil && !strings.Contains(err.Error(), c.error) {
			t.Errorf("%s: %v", c.name, err)
		}
		if err == nil && h.Size != 1<<30 {
			t.Errorf("%s: size %d", c.name, h.Size)
		}
	}
	if _, err := readQcow2(strings.NewReader(qcow2Magic)); err == nil {
		t.Error("a short one was taken")
	}
}

// TestFindImage opens nothing that is not a file.
func TestFindImage(t *testing.T) {
	dir := t.TempDir()
	if _, err := findImage(dir, "qcow2"); err == nil || !strings.Contains(err.Error(), "regular") {
		t.Error(err)
	}
	body, _ := io.ReadAll(qcow2(func(*qcow2Header) {}))
	os.WriteFile(dir+"/image", body, 0o600)
	os.Symlink("image", dir+"/link")
	if s, err := ImageSpace(dir+"/image", true); err != nil || s.Capacity != 1<<30 || s.Physical != uint64(len(body)) {
		t.Error(s, err)
	}
	real, _ := filepath.EvalSymlinks(dir)
	if path, err := findImage(dir+"/link", "qcow2"); err != nil || path != real+"/image" {
		t.Error(path, err)
	}
}

type conversation struct {
	io.Reader
	bytes.Buffer
}

func (c *conversation) Read(p []byte) (int, error) { return c.Reader.Read(p) }

// TestNBDHandshake against what qemu-nbd 10.0 says.
func TestNBDHandshake(t *testing.T) {
	const greeting = "NBDMAGICIHAVEOPT\x00\x03"
	c := &conversation{Reader: strings.NewReader(greeting + "\x00\x00\x00\x00\x10\x00\x00\x00\x0d\xed")}
	e, err := nbdHandshake(c)
	if err != nil || e.size != 256<<20 || e.flags != 0xded {
		t.Error(e, err)
	}
	if want := "\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x00"; c.String() != want {
		t.Errorf("%q", c.String())
	}
	for _, bad := range []string{"", greeting, "NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\x00\x00", "NBDMAGICIHAVEOPT\x00\x00"} {
		if _, err := nbdHandshake(&conversation{Reader: strings.NewReader(bad)}); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
