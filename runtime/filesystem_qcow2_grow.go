package runtime

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"virtvzd/systemd"
)

// A qcow2 image that is served has its server's lock and one size. It grows
// with another server, to which the kernel's device is connected anew:
//
//	freeze the file system: who writes waits, and all that was written is in the image
//	let the device wait for a server
//	end the server, make the image larger, start the server again
//	connect the device with it, give it the new size
//	thaw
//
// It is recorded before, so that a daemon that is killed in between has the
// next one do the last two steps.

// recordedServer is the server of an image that is being replaced.
type recordedServer struct {
	ID    string // of imageUnit
	Image string
	Index uint32 // of the network block device
	Disk  string `json:",omitempty"` // format of one that is a disk, in which no file system is the host's
}

// againSuffix marks a directory that is not of an image about to be opened.
const againSuffix = ".again"

// growServed makes the qcow2 image that the root is in larger. The caller keeps
// its file systems from being frozen by others.
func (i *Instance) growServed(ctx context.Context, source string, size uint64) (err error) {
	s, err := i.rootServer(source)
	if err != nil {
		return err
	}
	if err := i.noteServer(&s); err != nil {
		return err
	}
	atStep("image grows")
	if _, err := i.freezeFilesystems(ctx, []string{"/"}); err != nil {
		return errors.Join(err, i.noteServer(nil))
	}
	atStep("image frozen")
	err = s.wait(true)
	if err == nil {
		err = i.r.endServer(ctx, s.ID)
	}
	atStep("image ended")
	if err == nil {
		err = i.r.growQcow2(ctx, s.Image, size)
	}
	later, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return errors.Join(err, i.serveAgain(later))
}

// serveAgain has the image that is recorded served, and its file system go on.
func (i *Instance) serveAgain(ctx context.Context) error {
	i.mu.Lock()
	s := i.rec.Server
	i.mu.Unlock()
	if s == nil {
		return nil
	}
	err := s.wait(true)
	if err == nil {
		err = i.r.replaceServer(ctx, *s)
	}
	if err == nil {
		err = s.wait(false)
	}
	if err != nil {
		return fmt.Errorf("the image %s is not served, and %s waits for it: 'systemctl restart virtvzd' tries again: %w", s.Image, i.Name(), err)
	}
	atStep("image thaws")
	if s.Disk == "" {
		if _, err := i.thawFilesystems(nil); err != nil {
			return err
		}
	}
	return i.noteServer(nil)
}

func (i *Instance) noteServer(s *recordedServer) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rec.Server = s
	return i.rec.save(i.dir)
}

// rootServer finds what serves the root's image.
func (i *Instance) rootServer(source string) (s recordedServer, err error) {
	if i.rec.Root == nil {
		return s, fmt.Errorf("the root of %s is on no device: %w", i.Name(), ErrUnsupported)
	}
	node, err := nodeOf(i.rec.Root.Device)
	if err != nil {
		return s, err
	}
	text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(node), "backend"))
	if err != nil {
		return s, fmt.Errorf("the root of %s is in no image that is served: %w", i.Name(), errnoOf(err))
	}
	index, err := strconv.ParseUint(strings.TrimPrefix(filepath.Base(node), "nbd"), 10, 32)
	if err != nil {
		return s, err
	}
	id := strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(string(text)), "virtvzd-image-"), ".service")
	if !validLayerID(id) {
		return s, fmt.Errorf("the root of %s is served by another program", i.Name())
	}
	pids, err := processesOf(filepath.Join(cgroupRoot, "system.slice", imageUnit(id)))
	if err != nil || len(pids) == 0 {
		return s, errors.Join(err, fmt.Errorf("what serves the root of %s has ended", i.Name()))
	}
	var served, of unix.Stat_t
	err = errors.Join(unix.Stat(fmt.Sprintf("/proc/%d/root%s", pids[0], imageSeen), &served), unix.Stat(source, &of))
	if err == nil && (served.Dev != of.Dev || served.Ino != of.Ino) {
		err = fmt.Errorf("the root of %s is not in %s any more, but in what had that name when it started", i.Name(), source)
	}
	if err != nil {
		return s, err
	}
	s = recordedServer{ID: id, Index: uint32(index)}
	s.Image, err = findImage(source, "qcow2")
	return s, err
}

// wait has the device wait for another server, and ask it again for what the one
// before has not answered.
func (s recordedServer) wait(on bool) error {
	t := nbdTimes{}
	if on {
		t = nbdTimes{answer: 5 * time.Second, server: 2 * time.Minute}
	}
	return renewNBD(s.Index, imageUnit(s.ID), t.attributes()...)
}

func (r *Runtime) endServer(ctx context.Context, id string) error {
	return errors.Join(r.config.Scopes.Stop(ctx, imageUnit(id)), r.config.Scopes.ResetFailed(ctx, imageUnit(id)))
}

// replaceServer starts a server in place of what there is of the one before.
func (r *Runtime) replaceServer(ctx context.Context, s recordedServer) error {
	if err := r.endServer(ctx, s.ID); err != nil {
		return err
	}
	dir := filepath.Join(r.imagesDir(), s.ID+againSuffix)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for {
		server, e, err := r.startServer(ctx, s.ID, dir, s.Image, cmp.Or(s.Disk, "qcow2"), false)
		if errors.Is(err, systemd.ErrUnitExists) && ctx.Err() == nil { // systemd has not yet forgotten it
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if err != nil {
			return err
		}
		defer server.Close()
		if err := reattachNBD(server, e, s.Index, imageUnit(s.ID)); err != nil {
			return errors.Join(err, r.endServer(ctx, s.ID)) // which nobody else would
		}
		return nil
	}
}
