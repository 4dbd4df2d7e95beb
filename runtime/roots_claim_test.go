package runtime

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// TestClaimRootMeanwhile: one changes its CPUs while another is refused its root.
func TestClaimRootMeanwhile(t *testing.T) {
	root, r := t.TempDir(), emptyRuntime(t)
	i := newInstance(r, &record{UUID: formatUUID(layersUUID), Name: "a"}, nil)
	if err := os.Mkdir(i.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r.instances[layersUUID] = i
	if _, err := r.claimRoot(layersUUID, root); err != nil {
		t.Fatal(err)
	}
	held, done := make(chan error), make(chan bool)
	go func() {
		for n := range 100 {
			if err := i.hold([]int{n % 2}); err != nil {
				held <- err
				return
			}
		}
		held <- nil
	}()
	go func() {
		defer close(done)
		for {
			select {
			case err := <-held:
				if err != nil {
					t.Error(err)
				}
				return
			default:
			}
			if _, err := r.claimRoot([16]byte{2}, root); !errors.Is(err, ErrRootBusy) || !strings.Contains(err.Error(), "that of a,") {
				t.Error("got", err)
			}
		}
	}()
	select {
	case <-done:
	case <-time.After(60 * time.Second):
		t.Fatal("each waits for the other")
	}
}
