package driver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"virtvzd/driver/protocol"
	"virtvzd/xml"
)

// Snapshots are known by files below configDir, under the UUID of their
// domain: a domain can be renamed.
//
//	snapshot/UUID/NAME.xml   what snapshot-dumpxml prints
//	snapshot/UUID/current    the name of the current one

func (s store) snapshotDir(id protocol.UUID) string {
	return filepath.Join(s.configDir, "snapshot", id.String())
}

func (s store) saveSnapshot(id protocol.UUID, snap *xml.Snapshot) error {
	doc, err := xml.FormatSnapshot(snap, xml.FormatOptions{Secure: true})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.snapshotDir(id), 0o700); err != nil {
		return fmt.Errorf("cannot keep the snapshot: %w", err)
	}
	return writeFile(filepath.Join(s.snapshotDir(id), snap.Name+".xml"), []byte(doc))
}

// removeSnapshot forgets one, and the directory with the last.
func (s store) removeSnapshot(id protocol.UUID, name string) error {
	dir := s.snapshotDir(id)
	if err := os.Remove(filepath.Join(dir, name+".xml")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if os.Remove(dir) == nil {
		return syncDir(filepath.Dir(dir))
	}
	return syncDir(dir)
}

func (s store) saveCurrentSnapshot(id protocol.UUID, name string) error {
	file := filepath.Join(s.snapshotDir(id), "current")
	if name != "" {
		return writeFile(file, []byte(name+"\n"))
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// snapshots reads those of a domain. What cannot be read is reported, and left
// where it is.
func (s store) snapshots(id protocol.UUID, facts func() xml.HostFacts, skip func(file string, err error)) (found snapshots) {
	dir := s.snapshotDir(id)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		skip(dir, err)
	}
	for _, entry := range entries {
		name, isXML := strings.CutSuffix(entry.Name(), ".xml")
		if !isXML || strings.HasPrefix(name, ".") {
			continue
		}
		file := filepath.Join(dir, entry.Name())
		doc, err := readFile(file)
		var snap *xml.Snapshot
		if err == nil {
			snap, err = xml.ParseSnapshot(string(doc), facts(), true, xml.ParseOptions{Stored: true})
		}
		if err == nil && snap.Name != name {
			err = fmt.Errorf("the file is of snapshot '%s', which its name does not say", snap.Name)
		}
		if err == nil && len(found.all) >= maxSnapshots {
			err = fmt.Errorf("there are %d snapshots of this domain already", maxSnapshots)
		}
		if err != nil {
			skip(file, err)
			continue
		}
		found = found.with(snap)
	}
	// Files that were mended by hand may have parents in a circle.
	for _, snap := range found.all {
		if found.checkParent(snap) != nil {
			snap.Parent = ""
		}
	}
	if name, err := readFile(filepath.Join(dir, "current")); err == nil {
		if snap := found.find(strings.TrimSuffix(string(name), "\n")); snap != nil {
			found.current = snap.Name
		}
	}
	return found
}
