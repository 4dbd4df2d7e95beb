package runtime

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// compressed lets do write to w, compressed if that was asked for.
func (m *outgoing) compressed(w io.Writer, do func(io.Writer) error) error {
	if !m.Compress {
		return do(w)
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	return errors.Join(do(z), z.Close())
}

// sendBelow sends what is missing at the destination of what the disk stands on,
// which nobody writes to.
func (m *outgoing) sendBelow(ctx context.Context) error {
	if m.welcome.Template {
		if err := m.sendTemplate(ctx); err != nil {
			return fmt.Errorf("template %s: %w", m.Root.Template.ID(), err)
		}
	}
	layers := m.i.r.Layers()
	for n := len(m.Root.Layers) - 1; n >= 0; n-- { // from the bottom
		id := m.Root.LayerIDs[n]
		if !slices.Contains(m.welcome.Layers, id) {
			continue
		}
		about, err := json.Marshal(m.Root.Layers[n])
		if err != nil {
			return err
		}
		if err := m.sendTree(ctx, filepath.Join(layers.layerDir(id), "rootfs"), part{What: partLayer, Name: id, About: about}); err != nil {
			return fmt.Errorf("layer %s: %w", id, err)
		}
	}
	return nil
}

func (m *outgoing) sendTemplate(ctx context.Context) error {
	g := m.Root.Template
	about, err := json.Marshal(g)
	if err != nil {
		return err
	}
	packages, err := os.ReadFile(filepath.Join(filepath.Dir(g.Path), "packages"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(packages) > maxFrame/2 {
		packages = nil // the destination looks for itself
	}
	return m.sendTree(ctx, g.Path, part{What: partTemplate, Name: m.Root.Name, About: about, Packages: packages})
}

func (m *outgoing) sendTree(ctx context.Context, dir string, p part) error {
	source, err := newMirrorSource(dir)
	if err != nil {
		return err
	}
	defer source.close()
	return m.send(ctx, p, m.sentDisk, func(w io.Writer) error {
		_, err := source.pass(ctx, w, true, nil)
		return err
	})
}

func (m *outgoing) sentDisk(n int) {
	m.Control.note(func(s *MigrationStats) { s.DiskSent += uint64(n); s.DiskTotal = max(s.DiskTotal, s.DiskSent) })
}

func (m *outgoing) sentMemory(n int) {
	m.Control.note(func(s *MigrationStats) { s.MemorySent += uint64(n) })
}

func (m *outgoing) openMirror() (err error) {
	if !m.welcome.Disk {
		return nil
	}
	m.mirror, err = newMirrorSource(m.Root.Dir)
	return err
}

// sendDisk sends a pass of the disk; still says that it is the last.
func (m *outgoing) sendDisk(ctx context.Context, still bool) error {
	if m.mirror == nil {
		if still && m.Root.Dir != "" { // it is shared: what is written must be there
			return syncTree(m.Root.Dir)
		}
		return nil
	}
	began, before := time.Now(), m.Control.Stats().DiskSent
	err := m.send(ctx, part{What: partDisk, Still: still}, m.sentDisk, func(w io.Writer) error {
		_, err := m.mirror.pass(ctx, w, still, nil)
		return err
	})
	m.sped(began, m.Control.Stats().DiskSent-before)
	if err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	return nil
}

// sped notes how fast a part was sent.
func (m *outgoing) sped(began time.Time, bytes uint64) {
	if took := time.Since(began).Seconds(); took > 0 && bytes > 1<<16 {
		m.Control.note(func(s *MigrationStats) { s.Rate = uint64(float64(bytes) / took) })
	}
}

// sendImages sends what CRIU has written to a directory below the migration's.
func (m *outgoing) sendImages(ctx context.Context, name string, about json.RawMessage) error {
	files, size, err := m.imageFiles(name)
	if err != nil {
		return err
	}
	m.Control.note(func(s *MigrationStats) { s.MemoryTotal = max(s.MemoryTotal, s.MemorySent+uint64(size)) })
	began := time.Now()
	err = m.send(ctx, part{What: partImages, Name: name, Parent: m.parent, About: about, Lazy: name == "images" && m.memory != nil}, m.sentMemory, func(w io.Writer) error {
		t := tar.NewWriter(w)
		for _, file := range files {
			if _, err := addFile(ctx, t, m.dir, file); err != nil {
				return err
			}
		}
		return t.Close()
	})
	m.sped(began, uint64(size))
	if err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	return nil
}

func (m *outgoing) imageFiles(name string) (files []string, size int64, err error) {
	entries, err := os.ReadDir(filepath.Join(m.dir, name))
	if err != nil {
		return nil, 0, err
	}
	if name == "images" {
		files = append(files, manifestName)
	}
	for _, e := range entries {
		if e.Type()&os.ModeSymlink != 0 { // "parent": the other side makes it by itself
			continue
		}
		if !e.Type().IsRegular() || !imageFile.MatchString(e.Name()) {
			return nil, 0, fmt.Errorf("CRIU has written %q, which is no image", e.Name())
		}
		files = append(files, filepath.Join(name, e.Name()))
	}
	for _, file := range files {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(m.dir, file), &st); err != nil {
			return nil, 0, err
		}
		size += st.Size
	}
	return files, size, nil
}
