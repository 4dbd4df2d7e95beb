package runtime

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// InitKind is the sort of program that runs as PID 1: how it is stopped, and
// what it wants to find, depends on it.
type InitKind string

const (
	Systemd   InitKind = "systemd"
	Sysvinit  InitKind = "sysvinit"
	OpenRC    InitKind = "openrc" // openrc-init; OpenRC below sysvinit or busybox counts as those
	Busybox   InitKind = "busybox"
	OtherInit InitKind = "other"
)

// Root is what was found out about a mounted root before it is planned for.
type Root struct {
	Init []string // resolved command line
	Kind InitKind
	// ids of the configured user and group, and of that user's supplementary
	// groups, as the root's own /etc/passwd and /etc/group say
	UID, GID uint32
	Home     string
}

// inits are tried in this order, the kernel's own with systemd's homes added for
// images that lack the /sbin/init link.
var inits = []string{"/sbin/init", "/etc/init", "/bin/init", "/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd"}

// mountPoints must be directories of the root itself: the OCI runtime mounts on
// them, and a link there once led it onto the host (CVE-2026-47766).
var mountPoints = []string{"/dev", "/proc", "/sys", "/run"}

func inspectRoot(q rootRequest) (*Root, error) {
	t, err := openTreeRoot(filepath.Join(q.Dir, "rootfs"))
	if err != nil {
		return nil, err
	}
	defer t.Close()
	return inspect(t, q)
}

func inspect(t *tree, q rootRequest) (*Root, error) {
	for _, dir := range mountPoints {
		link, err := t.isLink(dir)
		if err != nil {
			return nil, fmt.Errorf("look at %s of the root: %w", dir, err)
		}
		if link {
			return nil, fmt.Errorf("%s of the root is a symbolic link: replace it with a directory", dir)
		}
	}
	root := &Root{}
	if err := root.findInit(t, q.Init); err != nil {
		return nil, err
	}
	return root, root.findUser(t, q.User, q.Group)
}

func (r *Root) findInit(t *tree, configured []string) error {
	if len(configured) > 0 {
		kind, err := initKind(t, configured[0])
		if err != nil {
			return fmt.Errorf("init %s %w", configured[0], err)
		}
		r.Init, r.Kind = configured, kind
		return nil
	}
	for _, name := range inits {
		if kind, err := initKind(t, name); err == nil {
			r.Init, r.Kind = []string{name}, kind
			return nil
		}
	}
	return fmt.Errorf("the root has no init: none of %s is an executable file; name one in <os><init>", strings.Join(inits, ", "))
}

// initKind says what program name is. Its errors continue a sentence that
// starts with the program's name.
func initKind(t *tree, name string) (InitKind, error) {
	if !strings.HasPrefix(name, "/") {
		return "", errors.New("is not an absolute path")
	}
	fd, err := t.open(name, unix.O_PATH)
	if err != nil {
		return "", fmt.Errorf("cannot be run in the root: %w", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "", errors.New("is not a file")
	}
	if st.Mode&0o111 == 0 {
		return "", errors.New("is not executable")
	}
	if head, err := t.read(name, 4); err == nil && !strings.HasPrefix(string(head), "\x7fELF") && !strings.HasPrefix(string(head), "#!") {
		return "", errors.New("is neither a program nor a script with #!")
	}
	real, err := t.path(fd)
	if err != nil {
		return "", err
	}
	switch base := path.Base(real); {
	case base == "systemd":
		return Systemd, nil
	case base == "openrc-init":
		return OpenRC, nil
	case path.Base(name) != "init" && base != "init":
		return OtherInit, nil // also busybox called as a shell
	case strings.HasPrefix(base, "busybox"):
		return Busybox, nil
	}
	return kindByContent(t, name), nil
}

// kindByContent tells apart the programs that are really called init: each has
// a string in it that the others lack. Both are far below the limit.
func kindByContent(t *tree, name string) InitKind {
	body, err := t.read(name, 4<<20)
	switch {
	case err != nil || !bytes.HasPrefix(body, []byte("\x7fELF")):
		return OtherInit
	case bytes.Contains(body, []byte("BusyBox v")):
		return Busybox
	case bytes.Contains(body, []byte("INIT_VERSION")):
		return Sysvinit
	}
	return OtherInit
}

// findUser resolves inituser and initgroup, names or numbers, with the root's
// own files: the host's accounts mean nothing inside.
func (r *Root) findUser(t *tree, user, group string) error {
	if user != "" {
		passwd, err := t.read("/etc/passwd", 1<<20)
		line := accountLine(passwd, user)
		id, numErr := strconv.ParseUint(user, 10, 32)
		switch {
		case line != nil:
			r.UID, r.GID, r.Home = number(line[2]), number(line[3]), line[5]
		case numErr == nil:
			r.UID = uint32(id)
		case err != nil:
			return fmt.Errorf("inituser %s: the root's /etc/passwd cannot be read: %w", user, err)
		default:
			return fmt.Errorf("inituser %s is not in the root's /etc/passwd", user)
		}
	}
	if group == "" {
		return nil
	}
	if id, err := strconv.ParseUint(group, 10, 32); err == nil {
		r.GID = uint32(id)
		return nil
	}
	groups, _ := t.read("/etc/group", 1<<20)
	for line := range strings.Lines(string(groups)) {
		if f := strings.Split(strings.TrimSpace(line), ":"); len(f) >= 3 && f[0] == group {
			r.GID = number(f[2])
			return nil
		}
	}
	return fmt.Errorf("initgroup %s is not in the root's /etc/group", group)
}

func accountLine(passwd []byte, user string) []string {
	for line := range strings.Lines(string(passwd)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) >= 7 && (f[0] == user || f[2] == user) {
			return f
		}
	}
	return nil
}

func number(s string) uint32 {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 65534
	}
	return uint32(n)
}
