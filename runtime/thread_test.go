package runtime

import (
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// No goroutine runs on the process's first thread, which could not end.
func TestFirstThread(t *testing.T) {
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			for range 50 {
				if unix.Gettid() == os.Getpid() {
					t.Error("a goroutine runs on the first thread")
					return
				}
				unix.Nanosleep(&unix.Timespec{Nsec: 1000}, nil)
			}
		})
	}
	all.Wait()
}
