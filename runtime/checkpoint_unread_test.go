package runtime

import (
	"net"
	"path/filepath"
	"testing"
)

// TestUnreadAt: a message counts from when it was sent until it was read.
func TestUnreadAt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	server, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	expect := func(when string, want bool) {
		t.Helper()
		if got, err := unreadAt(path); err != nil || got != want {
			t.Errorf("%s: %v, %v", when, got, err)
		}
	}
	expect("at first", false)
	client, err := net.Dial("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Write([]byte("WATCHDOG=1")); err != nil {
		t.Fatal(err)
	}
	expect("when it was sent", true)
	if other, err := unreadAt("/another"); other || err != nil {
		t.Errorf("of another: %v, %v", other, err)
	}
	if _, err := server.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	expect("when it was read", false)
}
