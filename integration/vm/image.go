package vm

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

//go:embed all:recipe
var recipe embed.FS

// Image returns the directory of the image, and makes it first when the cache
// has none of this recipe: 2 to 6 minutes.
func Image(ctx context.Context) (string, error) {
	return Made(ctx, "image", recipe)
}

// Made returns the directory of the cache that a recipe makes: a tree with
// recipe/build.sh, which is run as root in namespaces of its own with its own
// directory and an empty one to fill. That is done when the cache has none
// that was made by the same recipe; name tells what of.
func Made(ctx context.Context, name string, recipe fs.FS) (string, error) {
	if dir, err := madeDir(name, recipe); err == nil && exists(dir) {
		return dir, nil
	}
	unlock, err := lock(ctx, CacheDir())
	if err != nil {
		return "", err
	}
	defer unlock()
	return makeOnce(ctx, name, recipe)
}

// image is Image for callers that hold the lock.
func image(ctx context.Context) (string, error) { return makeOnce(ctx, "image", recipe) }

// makeOnce is Made for callers that hold the lock.
func makeOnce(ctx context.Context, name string, recipe fs.FS) (string, error) {
	dir, err := madeDir(name, recipe)
	if err != nil || exists(dir) {
		return dir, err
	}
	if os.Geteuid() != 0 {
		return "", fmt.Errorf("this can only be made by root: run once as root, or point VIRTVZD_CACHE at a cache that has %s", filepath.Base(dir))
	}
	start := time.Now()
	progress("making %s, once", dir)
	partial := dir + ".partial" // left behind by a build that was killed
	if err := os.RemoveAll(partial); err != nil {
		return "", err
	}
	out, source := filepath.Join(partial, "out"), filepath.Join(partial, "src")
	if err := os.MkdirAll(out, 0o755); err != nil {
		return "", err
	}
	if err := os.CopyFS(source, recipe); err != nil {
		return "", err
	}
	script := filepath.Join(source, "recipe", "build.sh")
	cmd := exec.CommandContext(ctx, "bash", script, filepath.Dir(script), out)
	// In namespaces of its own: however the build ends, none of its processes
	// and none of its mounts stay, and what it leaves can be removed safely.
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	log := filepath.Join(CacheDir(), "build.log")
	if err := runLogged(cmd, log); err != nil {
		return "", fmt.Errorf("make %s: %w", dir, err)
	}
	if err := os.Rename(out, dir); err != nil {
		return "", err
	}
	os.RemoveAll(partial)
	prune(CacheDir(), name+"-*", filepath.Base(dir))
	progress("made in %s", since(start))
	return dir, nil
}

func imageDir() (string, error) { return madeDir("image", recipe) }

func madeDir(name string, recipe fs.FS) (string, error) {
	key, err := recipeKey(recipe)
	if err != nil {
		return "", err
	}
	return filepath.Join(CacheDir(), name+"-"+key), nil
}

// recipeKey is 12 hexadecimal digits that change with any file of the recipe.
func recipeKey(recipe fs.FS) (string, error) {
	hash := sha256.New()
	err := fs.WalkDir(recipe, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := fs.ReadFile(recipe, path)
		// Lengths keep a moved boundary between name and text from going unseen.
		fmt.Fprintf(hash, "%d %s %d ", len(path), path, len(data))
		hash.Write(data)
		return err
	})
	return hex.EncodeToString(hash.Sum(nil))[:12], err
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
