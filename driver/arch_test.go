package driver

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// rooms lists what of this module each room may import: downwards only.
var rooms = map[string][]string{
	"driver":             {"driver/agent", "driver/protocol", "driver/relay", "driver/rpc", "driver/rpc/xdr", "runtime", "systemd", "xml"},
	"driver/agent":       {"runtime"},
	"driver/relay":       {"driver/protocol", "driver/rpc", "driver/rpc/xdr"},
	"driver/virtvzd":     {"driver", "driver/relay", "driver/rpc", "runtime", "systemd"},
	"driver/rpc":         {"driver/protocol", "driver/rpc/xdr"},
	"driver/rpc/rpctest": {"driver/protocol", "driver/rpc/xdr"},
	"driver/rpc/xdr":     {},
	"driver/protocol":    {"driver/rpc/xdr"},
	"runtime":            {"systemd", "xml"},
	"systemd":            {},
	"xml":                {},
}

// kernel lists the rooms that make system calls of their own.
var kernel = []string{"driver", "driver/relay", "driver/rpc", "driver/rpc/rpctest", "driver/virtvzd", "runtime", "systemd", "systemd/bustest"}

// TestRooms holds the architecture: who may import whom, who talks to the
// kernel, and that the daemon needs no C.
func TestRooms(t *testing.T) {
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		room, _ := filepath.Rel("..", filepath.Dir(path))
		if entry.IsDir() && (entry.Name() == "testdata" || entry.Name() == ".git" || room == "integration") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		allowed, known := rooms[room]
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			name, _ := strconv.Unquote(spec.Path.Value)
			if own, ok := strings.CutPrefix(name, "virtvzd/"); ok && known && !slices.Contains(allowed, own) {
				t.Errorf("%s imports %s, which is not below it", path, own)
			}
			if name == "golang.org/x/sys/unix" && !slices.Contains(kernel, room) {
				t.Errorf("%s makes system calls", path)
			}
			if name == "C" || name == "libvirt.org/go/libvirt" {
				t.Errorf("%s needs C: only the client's side may", path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
