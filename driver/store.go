package driver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"virtvzd/driver/protocol"
)

// store keeps what must outlive the daemon. Definitions and autostart links
// lie in configDir and outlive the host's restart; the status of active
// domains lies in statusDir, on a tmpfs, and outlives the daemon only.
type store struct {
	configDir string // /etc/libvirt/vz
	statusDir string // /run/libvirt/vz/status
}

// maxDefinition bounds what is read of one file: the wire's string limit.
const maxDefinition = 4 << 20

// savedStatus is an active domain's entry in statusDir.
type savedStatus struct {
	Name        string `json:"name"`
	State       State  `json:"state"`
	Reason      int32  `json:"reason"`
	Persistent  bool   `json:"persistent"`
	Live        string `json:"live"` // domain XML of the running environment
	Autodestroy bool   `json:"autodestroy,omitempty"`
	Rebooting   bool   `json:"rebooting,omitempty"`
	Restarting  bool   `json:"restarting,omitempty"`
	Updated     bool   `json:"updated,omitempty"`
}

func (s store) definition(name string) string {
	return filepath.Join(s.configDir, name+".xml")
}

func (s store) autostartLink(name string) string {
	return filepath.Join(s.configDir, "autostart", name+".xml")
}

func (s store) onceLink(name string) string {
	return filepath.Join(s.configDir, "autostart", name+".xml.once")
}

func (s store) status(id protocol.UUID) string {
	return filepath.Join(s.statusDir, id.String()+".json")
}

// prepare makes the directories.
func (s store) prepare() error {
	for _, dir := range []string{s.configDir, filepath.Join(s.configDir, "autostart"), s.statusDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("cannot make the state directory: %w", err)
		}
	}
	return nil
}

// refuseSkipped tells of a file that is there for a name that no domain has: it
// was skipped because it cannot be read, and is somebody's all the same.
func (s store) refuseSkipped(name string) error {
	if _, err := os.Lstat(s.definition(name)); err == nil {
		return errorf(protocol.ErrOperationInvalid, "%s is there, and of no domain that is known: take it away, or choose another name", s.definition(name))
	}
	return nil
}

// saveDefinition writes a definition; on any failure the old one stays.
func (s store) saveDefinition(name, doc string) error {
	file := s.definition(name)
	for strings.Contains(name, "--") {
		name = strings.ReplaceAll(name, "--", "- -")
	}
	return writeFile(file, []byte(headerBegin+name+headerEnd+doc))
}

// What a definition's file begins with: a comment.
const (
	headerBegin = "<!--\nThis file belongs to virtvzd and is overwritten by it. Change it with:\n  virsh -c vz:///system edit "
	headerEnd   = "\n-->\n\n"
)

// Definition is what a file has after its header, which earlier versions wrote so
// that a name with several dashes made it no XML.
func Definition(file []byte) []byte {
	if bytes.HasPrefix(file, []byte(headerBegin)) {
		if _, doc, ok := bytes.Cut(file, []byte(headerEnd)); ok {
			return doc
		}
	}
	return file
}

// removeDefinition forgets a definition and its autostart links. The links
// go first: a link without its definition would be the leftover to explain.
func (s store) removeDefinition(name string) error {
	for _, path := range []string{s.autostartLink(name), s.onceLink(name), s.definition(name)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot remove %s: %w", path, err)
		}
	}
	return syncDir(s.configDir)
}

// definitions names the domains that have a file.
func (s store) definitions() (names []string, err error) {
	entries, err := os.ReadDir(s.configDir)
	if err != nil {
		return nil, fmt.Errorf("cannot read the definitions: %w", err)
	}
	for _, entry := range entries {
		name, isXML := strings.CutSuffix(entry.Name(), ".xml")
		if isXML && !strings.HasPrefix(name, ".") {
			names = append(names, name)
		}
	}
	return names, nil
}

// links tells which autostart links there are, by their path.
func (s store) links() (map[string]bool, error) {
	dir := filepath.Dir(s.autostartLink(""))
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read what is started automatically: %w", err)
	}
	links := map[string]bool{}
	for _, entry := range entries {
		links[filepath.Join(dir, entry.Name())] = true
	}
	return links, nil
}

func (s store) saveStatus(id protocol.UUID, status savedStatus) error {
	data, err := json.Marshal(status)
	if err != nil {
		return err
	}
	return writeFile(s.status(id), data)
}

func (s store) removeStatus(id protocol.UUID) error {
	err := os.Remove(s.status(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// statuses reads the entries of all domains that were active.
func (s store) statuses(use func(protocol.UUID, savedStatus), skip func(path string, err error)) error {
	entries, err := os.ReadDir(s.statusDir)
	if err != nil {
		return fmt.Errorf("cannot read the status of active domains: %w", err)
	}
	for _, entry := range entries {
		base, isJSON := strings.CutSuffix(entry.Name(), ".json")
		if !isJSON {
			continue
		}
		path := filepath.Join(s.statusDir, entry.Name())
		id, err := protocol.ParseUUID(base)
		if err != nil {
			skip(path, err)
			continue
		}
		var status savedStatus
		data, err := readFile(path)
		if err == nil {
			err = json.Unmarshal(data, &status)
		}
		if err != nil {
			skip(path, err)
			continue
		}
		use(id, status)
	}
	return nil
}

// setLink makes or removes an autostart link.
func (s store) setLink(link, name string, on bool) error {
	if !on {
		err := os.Remove(link)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	err := os.Symlink(s.definition(name), link)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// readFile reads a regular file of bounded size.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	var data bytes.Buffer
	data.Grow(int(min(info.Size(), maxDefinition)) + bytes.MinRead)
	if _, err := data.ReadFrom(io.LimitReader(f, maxDefinition+1)); err != nil {
		return nil, err
	}
	if data.Len() > maxDefinition {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxDefinition)
	}
	return data.Bytes(), nil
}

// writeFile replaces a file as a whole: after a crash or on a full disk
// either the old or the new content is there, never a part. Only root can read
// it (mode 0600).
func writeFile(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".new-*") // 0600
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("cannot write %s: %w", path, err)
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes a rename or removal in a directory last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
