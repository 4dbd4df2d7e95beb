package runtime

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"virtvzd/systemd"
)

// A qcow2 image is read by qemu-nbd of the package qemu-utils, in a transient
// service of its own that neither a restart nor a crash of the daemon
// touches. It serves a socket, the kernel makes a block device of that, and what
// is on the device is mounted like a raw image:
//
//	daemon               systemd             qemu-nbd             kernel
//	  | StartTransientUnit -> | -- fork --------> |                   |
//	  | <---------- JobRemoved (it listens)       |                   |
//	  | connect, handshake ---------------------> |                   |
//	  | the socket -------------------------------------------------> | /dev/nbdN
//	  | open it, "disconnect on close" -----------------------------> |
//	  | mount it, close it -----------------------------------------> |
//	  :                                           :                   :
//	  | (the last mount is gone)                  | <---- disconnect  |
//	                                              exit
//
// So nobody has to clean up after an environment. Until the device is to end
// with its last user there is a directory images/ID below the state
// directory: what a daemon that was killed has left is found by it.
//
// A qcow2 image can name other files of the host, and who makes one need not be
// who may read those. Such an image is refused; and the service sees no file
// but the image and the host's programs. That an image is qcow2 is taken from the
// definition, never from the image: what is inside of a raw one is written by
// the environment.

// qcow2Header is the beginning of an image (docs/interop/qcow2.rst of QEMU).
type qcow2Header struct {
	Magic                [4]byte
	Version              uint32
	BackingOffset        uint64
	BackingSize, Cluster uint32
	Size                 uint64 // bytes, of the disk
	Encryption, L1       uint32
	L1Offset, Refcount   uint64
	Refcounts, Snapshots uint32
	SnapshotOffset       uint64
	Incompatible, _, _   uint64 // from version 3 on
}

const qcow2Magic = "QFI\xfb"

// Incompatible features of a qcow2 image.
const (
	qcow2Corrupt  = 1 << 1
	qcow2DataFile = 1 << 2
)

// maxImageSize is more than the kernel's file systems are made for.
const maxImageSize = 1 << 56

// readQcow2 reads the header of an image and refuses what cannot be used, or
// names other files.
func readQcow2(image io.ReaderAt) (h qcow2Header, err error) {
	size := binary.Size(h)
	head := io.NewSectionReader(image, 0, int64(size))
	if err := binary.Read(head, binary.BigEndian, &h); err != nil || string(h.Magic[:]) != qcow2Magic {
		return h, errors.New("it is no qcow2 image: for a raw one leave <driver> out")
	}
	if h.Version == 2 {
		h.Incompatible = 0 // there is something else in version 2
	}
	switch {
	case h.Version != 2 && h.Version != 3:
		return h, fmt.Errorf("it is a qcow2 image of version %d: 2 and 3 can be used", h.Version)
	case h.BackingOffset != 0:
		return h, errors.New("it has a backing file, which could be any file of the host: make an image of its own with 'qemu-img convert -O qcow2'")
	case h.Incompatible&qcow2DataFile != 0:
		return h, errors.New("it has its data in another file, which could be any of the host: make an image of its own with 'qemu-img convert -O qcow2'")
	case h.Incompatible&qcow2Corrupt != 0:
		return h, errors.New("it is marked as damaged: mend it with 'qemu-img check -r all'")
	case h.Encryption != 0:
		return h, errors.New("it is encrypted: convert it with 'qemu-img convert'")
	case h.Size > maxImageSize:
		return h, fmt.Errorf("it claims a size of %d bytes", h.Size)
	}
	return h, nil
}

// qemuNBD is where Debian and others have it.
const qemuNBD = "/usr/bin/qemu-nbd"

// flock is of util-linux.
const flock = "/usr/bin/flock"

func (r *Runtime) imagesDir() string { return filepath.Join(r.config.StateDir, "images") }

func imageUnit(id string) string { return "virtvzd-image-" + id + ".service" }

// openQcow2 makes a block device of a qcow2 image, which ends with its last
// user.
func (r *Runtime) openQcow2(ctx context.Context, source string, readOnly bool) (*os.File, error) {
	path, err := servedPath(source, "qcow2", readOnly)
	if err != nil {
		return nil, err
	}
	if err := readyToServe(ctx); err != nil {
		return nil, err
	}
	id := newLayerID()
	dir := filepath.Join(r.imagesDir(), id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	device, err := r.serveQcow2(ctx, id, path, readOnly)
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		return nil, errors.Join(err, r.endImage(undo, id))
	}
	atStep("image done")
	return device, os.RemoveAll(dir)
}

// readyToServe tells whether this host has what serves images. Of what is in one
// the kernel is to look for no partitions.
func readyToServe(ctx context.Context) error {
	if !exists(qemuNBD) {
		return fmt.Errorf("it needs %s: install the package qemu-utils: %w", qemuNBD, ErrUnsupported)
	}
	if exists("/sys/module/nbd") {
		return nil
	}
	if text, err := exec.CommandContext(ctx, "modprobe", "nbd", "max_part=0").CombinedOutput(); err != nil {
		return fmt.Errorf("it needs the kernel's module nbd: modprobe nbd: %w: %s", err, printable(string(text), 200))
	}
	return nil
}

// servedPath is findImage of an image that is to be served, which nobody else
// may have in use then.
func servedPath(source, format string, readOnly bool) (string, error) {
	path, err := findImage(source, format)
	if err != nil {
		return "", err
	}
	image, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return "", errnoOf(err)
	}
	defer image.Close()
	return path, lockImage(image, readOnly)
}

// findImage checks an image and tells where it is, without links.
func findImage(source, format string) (string, error) {
	image, err := os.OpenFile(source, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return "", errnoOf(err)
	}
	defer image.Close()
	info, err := image.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return "", errors.Join(err, errors.New("it is not a regular file: an image must be one"))
	}
	switch {
	case format == "qcow2":
		_, err = readQcow2(image)
	case info.Size() < sector:
		err = fmt.Errorf("it has %d bytes: make it larger with 'truncate -s'", info.Size())
	}
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(source)
}

// serveQcow2 starts the server and connects the kernel with it.
func (r *Runtime) serveQcow2(ctx context.Context, id, path string, readOnly bool) (*os.File, error) {
	server, e, err := r.startServer(ctx, id, filepath.Join(r.imagesDir(), id), path, "qcow2", readOnly)
	if err != nil {
		return nil, err
	}
	defer server.Close()
	return attachNBD(server, e, imageUnit(id), readOnly)
}

// startServer starts the server of an image and connects to its socket, which it
// makes in dir.
func (r *Runtime) startServer(ctx context.Context, id, dir, path, format string, readOnly bool) (*net.UnixConn, export, error) {
	remote, err := Remote(path)
	if err != nil {
		return nil, export{}, err
	}
	const sockets = "/socket" // by the server
	argv := serverCommand(imageSeen, format, sockets+"/nbd", readOnly, remote)
	props := append(imageService(path, readOnly, systemd.Bind{Source: dir, Target: sockets}),
		systemd.Description(format+" image "+path), systemd.ServiceType("forking"), systemd.ExecStart(argv...))
	atStep("image serve")
	if err := r.config.Scopes.StartService(ctx, imageUnit(id), props...); err != nil {
		return nil, export{}, fmt.Errorf("qemu-nbd cannot open it: 'journalctl -u %s' tells why: %w", imageUnit(id), err)
	}
	atStep("image connect")
	server, err := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(dir, "nbd"))
	if err != nil {
		return nil, export{}, fmt.Errorf("qemu-nbd: %w", errnoOf(err))
	}
	deadline := time.Now().Add(30 * time.Second)
	if at, ok := ctx.Deadline(); ok && at.Before(deadline) {
		deadline = at
	}
	server.SetDeadline(deadline)
	e, err := nbdHandshake(server)
	if err != nil {
		server.Close()
		return nil, export{}, fmt.Errorf("qemu-nbd: %w", err)
	}
	return server.(*net.UnixConn), e, nil
}

// serverCommand is what serves an image. One that is qcow2 QEMU opens alone to
// write, or with others who read. Of a raw one it does not care who else has it,
// so that has the lock of lockImage: flock(1) becomes the server, which keeps it.
func serverCommand(image, format, socket string, readOnly, remote bool) []string {
	argv := []string{qemuNBD, "--fork", "--socket=" + socket, "--cache=writeback"}
	lock := "--exclusive"
	if readOnly {
		argv, lock = append(argv, "--read-only"), "--shared"
	} else {
		argv = append(argv, "--discard=unmap")
	}
	if format == "qcow2" {
		return append(argv, `json:{"driver":"qcow2","backing":null,"file":{"driver":"file","filename":"`+image+`"}}`)
	}
	locking := "on"
	if remote { // both are one kind of lock to another host
		locking = "off"
	}
	argv = append(argv, `json:{"driver":"raw","file":{"driver":"file","locking":"`+locking+`","filename":"`+image+`"}}`)
	return append([]string{flock, "--no-fork", "--nonblock", lock, image}, argv...)
}

// imageSeen is where a service sees the image that it is for.
const imageSeen = "/image"

// imageService is a service that sees nothing of the host but an image and
// programs.
func imageService(path string, readOnly bool, more ...systemd.Bind) []systemd.Property {
	const mayOpenAll = 1 << unix.CAP_DAC_OVERRIDE
	return append(systemd.Confined(mayOpenAll, append(more,
		systemd.Bind{Source: path, Target: imageSeen, ReadOnly: readOnly},
		systemd.Bind{Source: "/usr", Target: "/usr", ReadOnly: true},
		systemd.Bind{Source: "/lib", Target: "/lib", ReadOnly: true},
		systemd.Bind{Source: "/lib64", Target: "/lib64", ReadOnly: true},
		systemd.Bind{Source: "/etc/ld.so.cache", Target: "/etc/ld.so.cache", ReadOnly: true})...),
		systemd.CollectMode("inactive-or-failed"), systemd.TimeoutStart(30*time.Second), systemd.TimeoutStop(10*time.Second),
		systemd.DefaultDependencies(false), // a shutdown of the host stops environments first
		systemd.MemoryMax(512<<20), systemd.MemorySwapMax(0), systemd.TasksMax(64))
}

// endImage ends what serveQcow2 has begun.
func (r *Runtime) endImage(ctx context.Context, id string) error {
	if err := errors.Join(detachNBD(imageUnit(id)), r.config.Scopes.Stop(ctx, imageUnit(id))); err != nil {
		return fmt.Errorf("end the server of an image: %w", err)
	}
	return os.RemoveAll(filepath.Join(r.imagesDir(), id))
}

// endUnfinishedImages ends those that a daemon was about to open when it was
// killed.
func (r *Runtime) endUnfinishedImages(ctx context.Context) error {
	entries, err := os.ReadDir(r.imagesDir())
	if err != nil {
		return nil // there never was one
	}
	for _, e := range entries {
		switch id, served := strings.CutSuffix(e.Name(), againSuffix); {
		case !validLayerID(id):
		case served:
			err = errors.Join(err, os.RemoveAll(filepath.Join(r.imagesDir(), e.Name())))
		default:
			err = errors.Join(err, r.endImage(ctx, id))
		}
	}
	return err
}
