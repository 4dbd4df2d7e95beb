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
	if dir, err := imageDir(); err == nil && exists(dir) {
		return dir, nil
	}
	cache := CacheDir()
	unlock, err := lock(ctx, cache)
	if err != nil {
		return "", err
	}
	defer unlock()
	return image(ctx, cache)
}

// image is Image for callers that hold the lock.
func image(ctx context.Context, cache string) (string, error) {
	dir, err := imageDir()
	if err != nil || exists(dir) {
		return dir, err
	}
	if os.Geteuid() != 0 {
		return "", fmt.Errorf("the VM's image can only be made by root: run once as root, or point VIRTVZD_CACHE at a cache that has %s", filepath.Base(dir))
	}
	start := time.Now()
	progress("making the image %s, once", dir)
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
	log := filepath.Join(cache, "build.log")
	if err := runLogged(cmd, log); err != nil {
		return "", fmt.Errorf("make the VM's image: %w", err)
	}
	if err := os.Rename(out, dir); err != nil {
		return "", err
	}
	os.RemoveAll(partial)
	prune(cache, "image-*", filepath.Base(dir))
	progress("image made in %s", since(start))
	return dir, nil
}

func imageDir() (string, error) {
	key, err := recipeKey(recipe)
	if err != nil {
		return "", err
	}
	return filepath.Join(CacheDir(), "image-"+key), nil
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
