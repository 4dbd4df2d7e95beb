package runtime

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// A file system that never answers costs those who ask an error, and only so
// many may ask.
func TestPatience(t *testing.T) {
	i := newInstance(&Runtime{}, &record{Name: "web1"}, nil)
	stuck, gone := make(chan bool), make(chan bool, maxFileWaits)
	for range maxFileWaits {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := patiently(ctx, i, func() (int, error) { <-stuck; gone <- true; return 1, nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("one that is stuck: %v", err)
		}
	}
	if _, err := patiently(t.Context(), i, func() (int, error) { return 1, nil }); err == nil || !strings.Contains(err.Error(), "4 files of web1 are waited for already") {
		t.Errorf("one too many: %v", err)
	}
	close(stuck)
	for range maxFileWaits {
		<-gone
	}
	for range maxFileWaits {
		i.waits <- struct{}{} // there is room again
	}
	if len(i.waits) != maxFileWaits {
		t.Error("no room")
	}
}
