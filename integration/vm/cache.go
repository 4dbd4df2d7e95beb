package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// CacheDir is where images and running machines are kept: $VIRTVZD_CACHE, else
// virtvzd in $XDG_CACHE_HOME or /var/cache. It may be removed whenever no
// machine runs; about 3 GB are used, and 0.6 for a desktop.
func CacheDir() string {
	if dir := os.Getenv("VIRTVZD_CACHE"); dir != "" {
		return dir
	}
	if dir := os.Getenv("XDG_CACHE_HOME"); dir != "" {
		return filepath.Join(dir, "virtvzd")
	}
	return "/var/cache/virtvzd"
}

// lock takes the cache's lock for building; parallel test packages wait here
// for the first of them. The kernel drops it when the process dies.
func lock(ctx context.Context, cache string) (unlock func(), err error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	start, told := time.Now(), time.Now()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		if time.Since(told) > heartbeat {
			told = time.Now()
			progress("waiting for another process that makes the image, %s so far", since(start))
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// unusedAfter is how long an image that nobody starts is kept: other branches
// and checkouts share the cache.
const unusedAfter = 3 * 24 * time.Hour

// prune removes what other recipes and emulators left behind in dir: entries
// that match pattern, are not keep, and were not used for long. A machine that
// still runs from one holds its files open and does not notice.
func prune(dir, pattern, keep string) {
	os.Chtimes(filepath.Join(dir, keep), time.Time{}, time.Now())
	old, _ := filepath.Glob(filepath.Join(dir, pattern))
	for _, path := range old {
		info, err := os.Stat(path)
		if err == nil && filepath.Base(path) != keep && time.Since(info.ModTime()) > unusedAfter {
			os.RemoveAll(path)
		}
	}
}
