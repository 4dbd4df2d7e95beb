package xml

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzParse holds that nothing panics and that what was accepted is stable.
func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.in.xml")
	for _, file := range files {
		doc, _ := os.ReadFile(file)
		f.Add(string(doc))
	}
	f.Add(minimal)
	for _, c := range refusals {
		f.Add(strings.Replace(minimal, c.old, c.new, 1))
	}
	f.Fuzz(func(t *testing.T, doc string) {
		def, err := Parse(doc, host, ParseOptions{})
		if err != nil {
			return
		}
		out, err := Format(def, FormatOptions{Inactive: true})
		if err != nil {
			t.Fatalf("accepted and cannot be formatted: %v\n%q", err, doc)
		}
		again, err := Parse(out, host, ParseOptions{})
		if err != nil {
			t.Fatalf("formatted and cannot be parsed: %v\n%q\n%s", err, doc, out)
		}
		if twice, _ := Format(again, FormatOptions{Inactive: true}); twice != out {
			t.Fatalf("not stable:\n%s\n%s", out, twice)
		}
		if _, err := NewEnvironment(def); err != nil {
			t.Fatalf("accepted and cannot be run: %v\n%s", err, out)
		}
		// What a restarted daemon reads of a running environment.
		live, err := Format(Live(def, LiveFacts{ID: 1, Consoles: map[string]string{"lxc 0": "/dev/console"}}), FormatOptions{})
		if err != nil {
			t.Fatalf("cannot be formatted while it runs: %v\n%s", err, out)
		}
		again, err = Parse(live, host, ParseOptions{Stored: true, Live: true})
		if err != nil {
			t.Fatalf("cannot be read again while it runs: %v\n%s", err, live)
		}
		if twice, _ := Format(again, FormatOptions{}); twice != live {
			t.Fatalf("not stable while it runs:\n%s\n%s", live, twice)
		}
	})
}

// FuzzMetadata holds that what was set is found again, also after a restart,
// and that removing it leaves nothing.
func FuzzMetadata(f *testing.F) {
	f.Add("<app colour='red'><part/>text</app>", "a", "urn:a")
	f.Add("<a xmlns='urn:x'><!-- c --><![CDATA[<]]></a>", "k", "urn:k")
	f.Add("<k:a xmlns:k='urn:k'/>", "k", "urn:k")
	f.Add("<ve><tasks>12</tasks></ve>", "ve", VENamespace)
	base, err := Parse(minimal, host, ParseOptions{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, element, key, uri string) {
		def := Copy(base)
		if element == "" || SetMetadata(def, element, key, uri) != nil {
			return
		}
		doc, err := Format(def, FormatOptions{Inactive: true})
		if err != nil {
			t.Fatalf("cannot be formatted: %v\n%q", err, def.Metadata.XML)
		}
		again, err := Parse(doc, host, ParseOptions{Stored: true})
		if err != nil {
			t.Fatalf("cannot be read again: %v\n%s", err, doc)
		}
		if _, found, err := Metadata(again, uri); !found || err != nil {
			t.Fatalf("not found again: %v\n%s", err, doc)
		}
		if err := SetMetadata(again, "", "", uri); err != nil || again.Metadata != nil {
			t.Fatalf("something is left: %v %+v", err, again.Metadata)
		}
	})
}

func BenchmarkDefine(b *testing.B) {
	doc, err := os.ReadFile("testdata/tuned.in.xml")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		def, err := Parse(string(doc), host, ParseOptions{})
		if err == nil {
			_, err = Format(def, FormatOptions{Inactive: true})
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
