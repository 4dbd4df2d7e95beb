package xml

import (
	"errors"
	"strings"
	"testing"
)

func testSnapshot(t testing.TB) *Snapshot {
	def, err := Parse(minimal, host, ParseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	def.Description = "two\n  lines & <more>"
	if err := SetMetadata(def, "<x>a\n b</x>", "x", "http://example.org/x"); err != nil {
		t.Fatal(err)
	}
	return &Snapshot{
		Name: "a<b", Description: "line\nline 'two'", State: SnapshotDiskOnly, Parent: "before & after",
		Created: 1234567890, Layer: strings.Repeat("0f", 16), Domain: def,
	}
}

// What is printed is read back as the same, metadata and line ends included.
func TestSnapshotRoundTrip(t *testing.T) {
	for state, memory := range map[string]string{SnapshotDiskOnly: "no", SnapshotShutoff: "no", SnapshotRunning: "internal", SnapshotPaused: "internal"} {
		t.Run(state, func(t *testing.T) {
			in := testSnapshot(t)
			in.State = state
			snapshotRoundTrip(t, in, "<memory snapshot='"+memory+"'/>")
		})
	}
}

func snapshotRoundTrip(t *testing.T, in *Snapshot, memory string) {
	doc, err := FormatSnapshot(in, FormatOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(doc, memory) {
		t.Errorf("%s is missing in\n%s", memory, doc)
	}
	out, err := ParseSnapshot(doc, host, true, ParseOptions{Validate: true})
	if err != nil {
		t.Fatalf("%v\n%s", err, doc)
	}
	again, err := FormatSnapshot(out, FormatOptions{})
	if err != nil || again != doc {
		t.Errorf("%v\n%s\n%s", err, doc, again)
	}
	if out.Domain.Description != in.Domain.Description || out.Description != in.Description || out.Parent != in.Parent || out.Created != in.Created || out.Layer != in.Layer {
		t.Errorf("%+v", out)
	}

	// Of one that is to be made only name and description count.
	fresh, err := ParseSnapshot(doc, host, false, ParseOptions{})
	if err != nil || fresh.State != "" || fresh.DiskOnly == in.HasMemory() || fresh.Layer != "" || fresh.Domain != nil || fresh.Name != in.Name {
		t.Errorf("%+v, %v", fresh, err)
	}
}

func TestSnapshotTooLarge(t *testing.T) {
	s := testSnapshot(t)
	s.Description = strings.Repeat("x", maxDocument)
	if _, err := FormatSnapshot(s, FormatOptions{}); err == nil {
		t.Error("what cannot be read again was written")
	}
	if _, err := ParseSnapshot("<domainsnapshot><description>"+s.Description+"</description></domainsnapshot>", host, false, ParseOptions{}); err == nil {
		t.Error("a large document was read")
	}
}

// A definition in a snapshot is checked as any other.
func TestSnapshotOfBadDomain(t *testing.T) {
	doc, err := FormatSnapshot(testSnapshot(t), FormatOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var bad *Error
	if _, err := ParseSnapshot(strings.Replace(doc, "type='vz'", "type='kvm'", 1), host, true, ParseOptions{}); !errors.As(err, &bad) {
		t.Errorf("a domain of another type: %v", err)
	}
}

// FuzzSnapshot holds that nothing panics and that what was accepted is stable.
func FuzzSnapshot(f *testing.F) {
	doc, err := FormatSnapshot(testSnapshot(f), FormatOptions{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(doc)
	f.Add("<domainsnapshot><name>x</name></domainsnapshot>")
	f.Fuzz(func(t *testing.T, doc string) {
		s, err := ParseSnapshot(doc, host, true, ParseOptions{})
		if err != nil {
			return
		}
		out, err := FormatSnapshot(s, FormatOptions{})
		if err != nil {
			t.Fatalf("accepted and cannot be formatted: %v\n%q", err, doc)
		}
		again, err := ParseSnapshot(out, host, true, ParseOptions{})
		if err != nil {
			t.Fatalf("formatted and cannot be parsed: %v\n%q\n%s", err, doc, out)
		}
		if twice, _ := FormatSnapshot(again, FormatOptions{}); twice != out {
			t.Fatalf("not stable:\n%s\n%s", out, twice)
		}
	})
}
