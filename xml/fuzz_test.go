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
		NewEnvironment(def)
		Live(def, LiveFacts{ID: 1, Consoles: []string{"/dev/console"}})
	})
}
