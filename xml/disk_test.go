package xml

import (
	"strings"
	"testing"
)

// Whose disk a definition has is added and taken off, and leaves the rest of
// the metadata as it was.
func TestDisk(t *testing.T) {
	const one, two = "12345678-9abc-4def-8001-020304050607", "22345678-9abc-4def-8001-020304050607"
	for _, metadata := range []string{"", "<metadata><app:x xmlns:app='urn:x'>1</app:x></metadata>"} {
		doc := strings.Replace(minimal, "<os>", metadata+"<os>", 1)
		def, err := Parse(doc, host, ParseOptions{})
		if err != nil {
			t.Fatal(err)
		}
		before, _ := Format(def, FormatOptions{Inactive: true})
		with, err := WithDisk(def, one)
		if err != nil {
			t.Fatal(err)
		}
		if with, err = WithDisk(with, two); err != nil { // the last one counts
			t.Fatal(err)
		}
		if now, _ := Format(def, FormatOptions{Inactive: true}); now != before {
			t.Error("the definition itself was changed")
		}
		text, err := Format(with, FormatOptions{Inactive: true})
		if err != nil || strings.Count(text, "<disk:disk") != 1 || !strings.Contains(text, two) {
			t.Errorf("%v\n%s", err, text)
		}
		again, err := Parse(text, host, ParseOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if env, err := NewEnvironment(again); err != nil || env.CloneOf[0] != 0x22 {
			t.Errorf("clone of %x, %v", env.CloneOf, err)
		}
		of, err := TakeDisk(again)
		if err != nil || of[0] != 0x22 {
			t.Errorf("of %x, %v", of, err)
		}
		if now, _ := Format(again, FormatOptions{Inactive: true}); plain(now) != plain(before) {
			t.Errorf("what is left:\n%s\nwant:\n%s", now, before)
		}
		if of, err := TakeDisk(again); err != nil || of != [16]byte{} {
			t.Errorf("of %x, %v", of, err)
		}
	}
	bad := strings.Replace(minimal, "<os>", "<metadata><d:disk xmlns:d='"+DiskNamespace+"' of='nobody'/></metadata><os>", 1)
	if _, err := Parse(bad, host, ParseOptions{}); err == nil || !strings.Contains(err.Error(), "<disk:disk> names 'nobody'") {
		t.Errorf("a bad UUID: %v", err)
	}
}

func plain(s string) string { return strings.Join(strings.Fields(s), "") }
