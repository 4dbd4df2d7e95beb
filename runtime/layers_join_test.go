package runtime

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNotJoinable(t *testing.T) {
	l := newTestLayers(t)
	write(t, l.upper(layersUUID), "d/a=1")
	one := must[string](t)(l.Push(layersUUID))
	write(t, l.upper(layersUUID), "e/")
	if err := unix.Setxattr(l.upper(layersUUID)+"/e", overlayAttribute+"redirect", []byte("d"), 0); err != nil {
		t.Fatal(err)
	}
	if err := l.Release(layersUUID, one); err != nil {
		t.Fatal(err)
	}
	if left := l.left(t); !slices.Equal(left, []string{one}) {
		t.Errorf("a layer that a directory was renamed from is gone: %v", left)
	}
}

// Whatever lies in two layers, joined they show what they showed, above
// anything.
func TestJoinShowsTheSame(t *testing.T) {
	newTestLayers(t) // only for root
	names := []string{"a", "a/b", "a/b/c", "d", "d/a", "d/b"}
	for seed := range uint64(150) {
		random := rand.New(rand.NewPCG(seed, 1))
		dir := t.TempDir()
		var layers []string
		for n := range 3 {
			layer := filepath.Join(dir, strconv.Itoa(n))
			write(t, layer, "/")
			for _, name := range names {
				if info, err := os.Lstat(filepath.Dir(filepath.Join(layer, name))); err != nil || !info.IsDir() {
					continue
				}
				switch random.IntN(6) {
				case 0:
					write(t, layer, name+"="+strconv.Itoa(n))
				case 1:
					write(t, layer, "-"+name)
				case 2:
					write(t, layer, "!"+name+"/")
				case 3, 4:
					write(t, layer, name+"/")
				}
			}
			layers = append(layers, layer)
		}
		before := view(t, layers...)
		for {
			// As long as it is killed it is done again.
			died := func() (died bool) {
				defer func() { atStep = func(string) error { return nil } }()
				defer func() { died = recover() != nil }()
				left := random.IntN(4)
				atStep = func(string) error {
					if left--; left < 0 {
						panic(killed{})
					}
					return nil
				}
				if err := joinTrees(layers[1], layers[0]); err != nil {
					t.Fatal(err)
				}
				return false
			}()
			if now := view(t, layers...); now != before {
				t.Fatalf("seed %d: %q became %q", seed, before, now)
			}
			if !died {
				break
			}
		}
		if now := view(t, layers[0], layers[2]); now != before {
			t.Fatalf("seed %d: %q became %q without the joined layer", seed, before, now)
		}
	}
}
