// Command gen writes driver/protocol's *.gen.go files from libvirt's source:
// the wire types and procedures from the protocol descriptions (.x), the
// constants from the public headers, and which calls a read-only connection may
// make from the checks in libvirt's public functions.
//
//	go run ./driver/protocol/gen -src DIR [-out DIR]
//
// fetch.sh brings the source. Read it in this order: tables.go (what is read
// and every exception), parse.go (.x text to declarations), wire.go (how each
// type travels), emit.go (Go text).
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
)

func main() {
	log.SetFlags(0)
	src := flag.String("src", "", "top directory of the libvirt source")
	out := flag.String("out", "driver/protocol", "directory of the generated files")
	flag.Parse()
	if *src == "" {
		log.Fatal("gen: -src is missing: name the directory that fetch.sh printed")
	}
	files, err := generate(*src)
	if err != nil {
		log.Fatal("gen: ", err)
	}
	if err := replace(*out, files); err != nil {
		log.Fatal("gen: ", err)
	}
}

// replace writes files and removes generated ones that are no longer made.
func replace(dir string, files map[string][]byte) error {
	old, err := filepath.Glob(filepath.Join(dir, "*.gen.go"))
	if err != nil {
		return err
	}
	for _, name := range old {
		if files[filepath.Base(name)] == nil {
			if err := os.Remove(name); err != nil {
				return err
			}
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return fmt.Errorf("write generated file: %w", err)
		}
	}
	return nil
}
