package runtime

import (
	"context"
	"os"
	"path/filepath"
	"strings"
)

// Memory is where the image is of the processes that an environment had when
// one of its layers was made, if they were kept. It is not beside the layer,
// because it would count against the disk's limit there.
func (l *Layers) Memory(id string) string { return filepath.Join(l.memory, id+memorySuffix) }

const memorySuffix = ".save"

func (l *Layers) keepMemory(ctx context.Context, id string, h SavedHeader, dir string, progress func(done, total uint64)) error {
	if err := os.MkdirAll(l.memory, 0o700); err != nil {
		return err
	}
	return WriteSaved(ctx, l.Memory(id), h, dir, progress, func() error { return nil })
}

// sweepMemory deletes images whose layer is no snapshot any more.
func (l *Layers) sweepMemory() error {
	entries, err := os.ReadDir(l.memory)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		id, _, _ := strings.Cut(e.Name(), ".")
		layer, err := l.layer(id)
		if err == nil && !layer.Released || err != nil && exists(l.layerDir(id)) { // a damaged one may be mended
			continue
		}
		if err := os.Remove(filepath.Join(l.memory, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
