package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"virtvzd/systemd"
)

// cleanup removes whatever there is of an environment, except its private layer.
// It looks at nothing but the record, may be repeated, and may be killed and
// repeated: what is needed to find the rest, the record, goes last.
//
// No mount is undone here: every mount of an environment is in a mount
// namespace that ended with its last process.
func (r *Runtime) cleanup(ctx context.Context, rec *record) error {
	return r.cleanupWithin(ctx, ctx, rec)
}

// cleanupWithin is cleanup that asks libvirt's daemons only until asking ends:
// what they have not done by then is tried again later.
func (r *Runtime) cleanupWithin(ctx, asking context.Context, rec *record) error {
	uuid, ok := parseUUID(rec.UUID)
	if !ok {
		return fmt.Errorf("record of %s: bad UUID %q", rec.Name, rec.UUID)
	}
	if _, _, err := thawAll(rec.Frozen); err != nil {
		return fmt.Errorf("clean up after %s: %w", rec.Name, err)
	}
	ending, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	atStep("undo scope")
	if err := endRestore(ending, rec); err != nil {
		return fmt.Errorf("clean up after %s: %w", rec.Name, err)
	}
	if err := r.endScope(ending, rec); err != nil {
		return fmt.Errorf("clean up after %s: %w", rec.Name, err)
	}
	if err := errors.Join(r.endCheckpoint(ending, rec.UUID, rec.Checkpoint), endDumping(rec)); err != nil {
		return fmt.Errorf("clean up after %s: %w", rec.Name, err)
	}
	atStep("undo disks")
	if err := r.endDisks(ending, rec); err != nil {
		return fmt.Errorf("clean up after %s: %w", rec.Name, err)
	}
	atStep("undo links")
	if err := r.removeLinks(asking, uuid, rec); err != nil {
		return fmt.Errorf("clean up after %s: %w", rec.Name, err)
	}
	atStep("undo oci")
	err := os.RemoveAll(filepath.Join(r.ociRoot(), rec.UUID))
	atStep("undo fds")
	r.dropFD(initFDName(rec.UUID))
	r.dropFD(consoleFDName(rec.UUID, 0)) // before it is recorded
	for _, c := range rec.Consoles {
		r.dropFD(consoleFDName(rec.UUID, c.Number))
	}
	atStep("undo dir")
	return errors.Join(err, removeStateDir(r.dir(uuid)))
}

// endRestore kills those who restore an environment: its end does not end them.
func endRestore(ctx context.Context, rec *record) error {
	if rec.Restoring == "" {
		return nil
	}
	if err := killCgroup(rec.Restoring); err != nil {
		return err
	}
	for _, dir := range []string{filepath.Join(rec.Restoring, crunProxy), rec.Restoring} {
		for wait := time.Millisecond; ; wait *= 2 { // until the last is reaped
			err := os.Remove(filepath.Join(cgroupRoot, dir))
			if err == nil || errors.Is(err, os.ErrNotExist) {
				break
			}
			if ctx.Err() != nil || wait > time.Second {
				return err
			}
			time.Sleep(wait)
		}
	}
	return nil
}

// removeStateDir deletes the record after everything else.
func removeStateDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != recordName {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(dir)
}

// endScope kills what is in the scope and waits until systemd has dropped it.
func (r *Runtime) endScope(ctx context.Context, rec *record) error {
	if rec.Scope == "" {
		return nil
	}
	cgroup := rec.Cgroup
	if cgroup == "" {
		cgroup = findScope(rec.Scope)
	}
	if cgroup != "" && !exists(filepath.Join(cgroupRoot, cgroup)) {
		return nil
	}
	if err := killCgroup(cgroup); err != nil {
		return err
	}
	if rec.Cgroup == "" {
		// The start was cut off around the creation of the scope. It may be there
		// without a cgroup yet, so systemd has to say that it is not. While D-Bus is
		// away nobody says so; then it ends by itself, as the stub it was for has.
		err := r.config.Scopes.Stop(ctx, rec.Scope)
		var away *systemd.UnavailableError
		if err != nil && !errors.Is(err, systemd.ErrNoSuchUnit) && !errors.As(err, &away) {
			return err
		}
	}
	return awaitCgroupGone(ctx, cgroup)
}

// findScope looks for the scope's cgroup in the slices, whose depth is bounded by
// how partitions are written.
func findScope(name string) string {
	found := ""
	var walk func(dir string, depth int)
	walk = func(dir string, depth int) {
		entries, _ := os.ReadDir(filepath.Join(cgroupRoot, dir))
		for _, e := range entries {
			switch {
			case e.Name() == name:
				found = filepath.Join("/", dir, name)
			case e.IsDir() && depth > 0 && filepath.Ext(e.Name()) == ".slice":
				walk(filepath.Join(dir, e.Name()), depth-1)
			}
		}
	}
	walk("", 8)
	return found
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}
