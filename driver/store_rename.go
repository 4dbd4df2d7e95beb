package driver

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"virtvzd/runtime"
)

// A definition moves to another name in steps, and a daemon that is killed
// between them leaves two files of one domain. A link that is made first and
// removed last, .rename-OLD -> NEW, tells them from a copy that somebody made.

const renamePrefix = ".rename-"

func (s store) renameLink(old string) string { return filepath.Join(s.configDir, renamePrefix+old) }

// renameDefinition replaces a definition and its autostart links by those of
// another name. After an error all is as it was.
func (s store) renameDefinition(old, name, doc string) error {
	if err := s.refuseSkipped(name); err != nil {
		return err
	}
	linked, err := s.links()
	if err != nil {
		return err
	}
	if err := os.Symlink(name, s.renameLink(old)); err != nil {
		return err
	}
	runtime.AtStep("rename save")
	err = s.saveDefinition(name, doc)
	if err == nil {
		err = s.finishRename(old, name)
	}
	if err == nil {
		return nil
	}
	if _, gone := os.Lstat(s.definition(old)); errors.Is(gone, fs.ErrNotExist) {
		os.Remove(s.renameLink(old))
		return nil // all that failed is to make it last
	}
	return errors.Join(err,
		s.setLink(s.autostartLink(old), old, linked[s.autostartLink(old)]),
		s.setLink(s.onceLink(old), old, linked[s.onceLink(old)]),
		s.removeDefinition(name), os.Remove(s.renameLink(old)))
}

// finishRename is what is left to do once the new definition is there.
func (s store) finishRename(old, name string) error {
	linked, err := s.links()
	if err != nil {
		return err
	}
	for from, to := range map[string]string{s.autostartLink(old): s.autostartLink(name), s.onceLink(old): s.onceLink(name)} {
		if !linked[from] {
			continue
		}
		if err := s.setLink(to, name, true); err != nil {
			return err
		}
	}
	runtime.AtStep("rename remove")
	if err := s.removeDefinition(old); err != nil {
		return err
	}
	runtime.AtStep("rename done")
	return os.Remove(s.renameLink(old))
}

// settleRenames finishes what an earlier daemon was killed in.
func (s store) settleRenames() error {
	entries, err := os.ReadDir(s.configDir)
	if err != nil {
		return err
	}
	var failures []error
	for _, entry := range entries {
		old, isRename := strings.CutPrefix(entry.Name(), renamePrefix)
		if !isRename {
			continue
		}
		name, err := os.Readlink(s.renameLink(old))
		if err == nil {
			err = s.settleRename(old, name)
		}
		failures = append(failures, err)
	}
	return errors.Join(failures...)
}

func (s store) settleRename(old, name string) error {
	if _, err := os.Lstat(s.definition(name)); errors.Is(err, fs.ErrNotExist) {
		return os.Remove(s.renameLink(old)) // it had not begun
	} else if err != nil {
		return err
	}
	return s.finishRename(old, name)
}
