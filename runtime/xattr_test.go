package runtime

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func xattrs(t *testing.T, name string) string {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(name, buf)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(buf[:n]), "\x00", " ")
}
