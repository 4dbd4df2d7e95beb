package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// saveDir is where checkpoints are on their way into and out of images: on a
// disk, because there may be as much as all environments have in memory.
func (r *Runtime) saveDir() string { return filepath.Join(r.config.DataDir, "save") }

// ManagedSave is where the image is that the next start of an environment goes on
// from.
func (r *Runtime) ManagedSave(name string) string { return filepath.Join(r.saveDir(), name+".save") }

// workDir makes an empty directory for one checkpoint.
func (r *Runtime) workDir(uuid [16]byte, what string) (string, error) {
	if err := os.MkdirAll(r.saveDir(), 0o700); err != nil {
		return "", err
	}
	dir := filepath.Join(r.saveDir(), "."+what+"-"+formatUUID(uuid))
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	return dir, os.Mkdir(dir, 0o700)
}

// Save writes the environment to an image, and leaves it frozen and cut off: it
// is for Kill. After an error it goes on, and path is what it was. progress is
// told of bytes.
func (i *Instance) Save(ctx context.Context, path string, h SavedHeader, interfaces []xml.Interface, progress func(done, total uint64)) error {
	dir, err := i.r.workDir(i.uuid, "save") // which makes that of managed images, too
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := checkPart(path); err != nil { // before anything is frozen
		return err
	}
	if err := i.Checkpoint(ctx, dir, interfaces, true); err != nil {
		return err
	}
	h.ID, h.UUID = newPortID(), formatUUID(i.uuid)
	err = WriteSaved(ctx, path, h, dir, progress, func() error { return i.noteImage(path, h.ID) })
	atStep("saved")
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		err = errors.Join(err, i.AbandonCheckpoint(undo, interfaces))
	}
	return err
}

// noteImage records which image a checkpoint goes to, before anything of it is
// written: a later daemon removes what is not whole.
func (i *Instance) noteImage(path, id string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rec.Checkpoint.Path, i.rec.Checkpoint.ID = path, id
	defer atStep("saving")
	return i.rec.save(i.dir)
}

// FinishSave does what an earlier daemon could not do that was killed while it
// saved the environment, and tells whether the image is whole: then it is for
// Kill, and otherwise it goes on.
func (i *Instance) FinishSave(ctx context.Context, interfaces []xml.Interface) (saved bool, err error) {
	i.mu.Lock()
	c, m := i.rec.Checkpoint, i.rec.Migration
	i.mu.Unlock()
	if c == nil || m != nil && m.Sent {
		return false, nil
	}
	if m != nil {
		return false, errors.Join(i.r.endCheckpoint(ctx, i.rec.UUID, c), i.abandonMigration(ctx, interfaces))
	}
	if err := i.r.endCheckpoint(ctx, i.rec.UUID, c); err != nil {
		return false, err
	}
	if c.Path != "" {
		if h, err := ReadSaved(c.Path); err == nil && h.ID == c.ID {
			return true, nil
		}
	}
	return false, i.AbandonCheckpoint(ctx, interfaces)
}

// endCheckpoint ends what makes a checkpoint, and removes it with what is not
// whole of its image.
func (r *Runtime) endCheckpoint(ctx context.Context, uuid string, c *recordedCheckpoint) error {
	if c == nil {
		return nil
	}
	if err := r.endDump(ctx, uuid); err != nil { // it may still write there
		return err
	}
	if c.Path != "" {
		os.Remove(PartOfSaved(c.Path))
	}
	return os.RemoveAll(c.Dir)
}

// Restore starts an environment from an image. After an error nothing of it
// runs, and the image is as it was.
func (r *Runtime) Restore(ctx context.Context, env *xml.Environment, path string, paused bool, progress func(done, total uint64)) (*Instance, error) {
	h, err := ReadSaved(path)
	if err != nil {
		return nil, err
	}
	if h.UUID != formatUUID(env.UUID) {
		return nil, &NotSavedError{path, fmt.Errorf("it is of another environment, %s (%s)", h.Name, h.UUID)}
	}
	dir, err := r.workDir(env.UUID, "restore")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err == nil && h.Size > int64(fs.Bavail)*fs.Bsize {
		return nil, fmt.Errorf("there is no room for the %d MiB of %s in %s", h.Size>>20, path, r.saveDir())
	}
	if _, err := ExtractSaved(ctx, path, dir, progress); err != nil {
		return nil, err
	}
	return r.Start(ctx, env, StartOptions{Paused: paused, Checkpoint: dir})
}

// sweepSaves removes what was cut off, but for what FinishSave looks at. Of the
// images that are not whole these are the daemon's own; others are in records.
func (r *Runtime) sweepSaves(adopted []*Instance) error {
	var errs []error
	kept := map[string]bool{}
	for _, i := range adopted {
		if i.rec.Dumping != "" {
			errs = append(errs, endDumping(i.rec), i.noteDump(""))
		}
		if i.rec.Checkpoint != nil {
			kept[i.rec.Checkpoint.Dir] = true
		}
	}
	left, err := filepath.Glob(filepath.Join(r.saveDir(), ".*-*"))
	err = errors.Join(append(errs, err)...)
	for _, dir := range left {
		if !kept[dir] {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}
	for _, image := range []string{r.ManagedSave("*"), r.Layers().Memory("*")} {
		parts, bad := filepath.Glob(PartOfSaved(image))
		err = errors.Join(err, bad)
		for _, part := range parts {
			err = errors.Join(err, os.Remove(part))
		}
	}
	return err
}
