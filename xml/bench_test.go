package xml

import (
	"os"
	"testing"
)

// BenchmarkDefinition is what one definition costs: reading it when a client
// brings it (define) and when the daemon starts (stored), and writing it.
func BenchmarkDefinition(b *testing.B) {
	for _, name := range []string{"directory-root", "lxc-directory"} {
		text, err := os.ReadFile("testdata/" + name + ".in.xml")
		if err != nil {
			b.Fatal(err)
		}
		doc := string(text)
		def, err := Parse(doc, host, ParseOptions{})
		if err != nil {
			b.Fatal(err)
		}
		stored, err := Format(def, FormatOptions{Inactive: true})
		if err != nil {
			b.Fatal(err)
		}
		run := func(what string, do func() error) {
			b.Run(name+"/"+what, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if err := do(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		run("parse", func() error { _, err := Parse(doc, host, ParseOptions{}); return err })
		run("stored", func() error { _, err := Parse(stored, host, ParseOptions{Stored: true}); return err })
		run("format", func() error { _, err := Format(def, FormatOptions{Inactive: true}); return err })
		run("copy", func() error { Copy(def); return nil })
	}
}
