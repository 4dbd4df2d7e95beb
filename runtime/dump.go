package runtime

import (
	"context"
	"errors"
	"io"
	"os"

	"virtvzd/xml"
)

// Dump writes CRIU's images of an environment's processes to a file, a tar, for
// crit(1) and the like; it goes on afterwards, with end it is left frozen and cut
// off if all went well, for Kill. After an error it goes on, and path is what it
// was. progress is told of bytes.
func (i *Instance) Dump(ctx context.Context, path string, interfaces []xml.Interface, end bool, progress func(done, total uint64)) error {
	if err := checkPart(path); err != nil { // before anything is frozen
		return err
	}
	dir, err := i.r.workDir(i.uuid, "dump")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	goOn := func() error {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		return i.AbandonCheckpoint(undo, interfaces)
	}
	if err := i.Checkpoint(ctx, dir, interfaces, false); err != nil {
		return err
	}
	if !end { // the rest needs no more than the files
		if err := goOn(); err != nil {
			return err
		}
	}
	files, size, err := checkpointFiles(dir)
	if err == nil {
		err = replaceWhole(path, func() error { return i.noteDump(path) }, func(w io.Writer) error {
			return writeFiles(ctx, w, dir, files, size, progress)
		})
	}
	err = errors.Join(err, i.noteDump(""))
	if err != nil && end {
		err = errors.Join(err, goOn())
	}
	return err
}

// noteDump records which file is being written, for a later daemon.
func (i *Instance) noteDump(path string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rec.Dumping = path
	return i.rec.save(i.dir)
}

// endDumping removes what an earlier daemon has left that was killed while it
// wrote a dump.
func endDumping(rec *record) error {
	if rec.Dumping == "" {
		return nil
	}
	return unlessGone(os.Remove(PartOfSaved(rec.Dumping)))
}
