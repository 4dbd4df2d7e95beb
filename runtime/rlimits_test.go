package runtime

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestNewRlimit(t *testing.T) {
	of := func(cur, most uint64) unix.Rlimit { return unix.Rlimit{Cur: cur, Max: most} }
	for _, c := range []struct{ old, from, to, want unix.Rlimit }{
		{ordinaryFiles, ordinaryFiles, of(100, 100), of(100, 100)},
		{of(100, 100), of(100, 100), ordinaryFiles, ordinaryFiles},
		{of(100, 100), of(100, 100), of(200, 200), of(200, 200)},
		{of(100, 100), of(100, 100), of(50, 50), of(50, 50)},
		// by its own choice
		{of(70, 100), of(100, 100), of(200, 200), of(70, 200)},
		{of(70, 100), of(100, 100), of(50, 50), of(50, 50)},
		{of(30, 40), of(100, 100), of(200, 200), of(30, 40)},
		{of(30, 40), of(100, 100), of(50, 50), of(30, 40)},
		{of(30, 40), of(100, 100), of(20, 20), of(20, 20)},
		{of(4096, 524288), ordinaryFiles, of(100, 100), of(100, 100)},
		{of(8<<20, 8<<20), noRlimit, of(1<<20, 1<<20), of(1<<20, 1<<20)},
		{noRlimit, noRlimit, of(0, 0), of(0, 0)},
	} {
		if got := newRlimit(c.old, c.from, c.to); got != c.want {
			t.Errorf("of %v, from %v to %v: %v, want %v", c.old, c.from, c.to, got, c.want)
		}
	}
}
