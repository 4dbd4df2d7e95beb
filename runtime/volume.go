package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The directory of the templates is a libvirt storage pool of type dir as it
// is. A file in it is a volume, as `virsh vol-upload` makes it: a root tar. Its
// name is the name of a template. When the first environment starts from it,
// it becomes a generation; when it is written anew, the next environment
// makes it a new one.
//
//	template/.volume/NAME    "DIGEST STATE" of the generation made from it last

// volumeState changes whenever the file does.
func volumeState(name string) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "", unix.EINVAL
	}
	return fmt.Sprintf("%x:%x:%x.%x:%x.%x", st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec), nil
}

// lookupVolume finds the generation of a volume as the file is now.
func (t *Templates) lookupVolume(name string) (digest string, err error) {
	state, err := volumeState(filepath.Join(t.dir, name))
	if err != nil {
		return "", err
	}
	body, _ := os.ReadFile(filepath.Join(t.dir, ".volume", name))
	digest, of, _ := strings.Cut(strings.TrimSpace(string(body)), " ")
	if of != state || digest == "" {
		return "", fmt.Errorf("volume %s: no environment was started from it as it is now", name)
	}
	return digest, nil
}

// importVolume makes a generation of the volume of that name, unless the name
// is no volume's or there is one already.
func (t *Templates) importVolume(ctx context.Context, name string) error {
	if err := checkTemplateName(name); err != nil {
		return err
	}
	file := filepath.Join(t.dir, name)
	state, err := volumeState(file)
	if err != nil {
		return nil
	}
	if digest, err := t.lookupVolume(name); err == nil && exists(t.digestDir(digest)) {
		return nil
	}
	_, err = t.makeGeneration(ctx, name, func(dir string) (Generation, error) {
		made, err := importTar(ctx, file, dir, ImportOptions{Limits: DefaultLimits})
		if err != nil {
			return made, fmt.Errorf("volume %s: %w", name, err)
		}
		made.Volume = state
		if now, _ := volumeState(file); now != state {
			return made, fmt.Errorf("volume %s is being written: start the environment when that is done", name)
		}
		return made, nil
	})
	return err
}

func (t *Templates) setVolume(g Generation) error {
	dir := filepath.Join(t.dir, ".volume")
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return replaceFile(filepath.Join(dir, g.Name), []byte(g.Digest+" "+g.Volume+"\n"), 0o600)
}

func (t *Templates) forgetVolume(name string) error {
	err := os.Remove(filepath.Join(t.dir, ".volume", name))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return err
}
