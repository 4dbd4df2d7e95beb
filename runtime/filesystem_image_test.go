package runtime

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

// superblock is the beginning of an image with bytes at offsets.
func superblock(at map[int]string) *bytes.Reader {
	image := make([]byte, 1<<17)
	for offset, text := range at {
		copy(image[offset:], text)
	}
	return bytes.NewReader(image)
}

func little(n uint64) string { return string(binary.LittleEndian.AppendUint64(nil, n)) }

// TestImageType trusts nothing but the superblock, and refuses those that name
// other devices.
func TestImageType(t *testing.T) {
	for _, c := range []struct {
		name  string
		at    map[int]string
		want  string
		error string
	}{
		{"ext4", map[int]string{1024 + 56: "\x53\xef"}, "ext4", ""},
		{"xfs", map[int]string{0: "XFSB"}, "xfs", ""},
		{"btrfs", map[int]string{65536 + 64: "_BHRfS_M", 65536 + 136: little(1)}, "btrfs", ""},
		{"ext4 with a foreign journal", map[int]string{1024 + 56: "\x53\xef", 1024 + 92: "\x04", 1024 + 228: "\x01\x08"}, "", "journal on another device"},
		{"an ext4 journal", map[int]string{1024 + 56: "\x53\xef", 1024 + 96: "\x08"}, "", "journal on another device"},
		{"btrfs of two", map[int]string{65536 + 64: "_BHRfS_M", 65536 + 136: little(2)}, "", "2 devices"},
		{"qcow2", map[int]string{0: "QFI\xfb"}, "", "format='qcow2'"},
		{"nothing", nil, "", "no file system"},
	} {
		got, err := imageType(superblock(c.at))
		if got != c.want || (err == nil) != (c.error == "") || err != nil && !strings.Contains(err.Error(), c.error) {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
	if _, err := imageType(strings.NewReader("short")); err == nil || errors.Is(err, ErrUnsupported) {
		t.Error("short image:", err)
	}
}
