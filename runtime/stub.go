package runtime

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	goruntime "runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// stubName is argv[0] of the stub: what a process is called that is our binary
// run a second time. No user types it.
const stubName = "virtvzd-stub"

// Stub is called first of all in main. It returns false in an ordinary process.
// In a stub it does the stub's work and does not come back, except with true
// after an error that it has reported on standard error.
//
// The stub is what stands between our process and the OCI runtime. It was forked
// into a mount namespace of its own, so what it mounts is seen by nobody
// else and is gone with it, whatever happens to us:
//
//	daemon                        stub                          systemd
//	  | fork(CLONE_NEWNS) ----->   |                                |
//	  | StartTransientUnit(PIDs=stub) ----------------------------> |
//	  | rootRequest -------------> | id space, layers, overlay      |
//	  | <------------------ Root   | (which init, which users)      |
//	  | plan, config.json          |                                | (at the same time)
//	  | workRequest -------------> | /run, mounts, drop-ins         |
//	  | <----------------- ready   |                                |
//	  | <---------------------------------------------- JobRemoved  |
//	  | chown the scope's cgroup   |                                |
//	  | go ----------------------> | exec crun create               |
//	  | <---- console master, pid file, exit status of crun         |
//
// Both directions are pipes (crun chowns what it gets as standard streams to the
// environment's root, which must never be the host's /dev/null). End of
// file in place of the next message means the daemon died: the stub exits, and
// with it all it mounted. After the exec the scope is what finds it.
func Stub() bool {
	if len(os.Args) == 0 {
		return false
	}
	if filepath.Base(os.Args[0]) == actionName {
		if err := runAction(filepath.Dir(os.Args[0])); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return true
	}
	switch os.Args[0] {
	case stubName:
	case builderName, stepName:
		runBuildProcess()
		return true
	default:
		return false
	}
	goruntime.LockOSThread() // fsuid and mount namespace belong to the thread
	unix.Umask(0o022)
	if err := runStub(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

// rootRequest is the first message to the stub: the root to mount.
type rootRequest struct {
	Dir        string    // work directory with lower/, layers/ and rootfs/ to mount on
	UIDs, GIDs []idRange // empty: the host's own ids
	Lower      string    // template's tree; empty: Root is a directory of its own
	Chain      []string  // trees between the two, top down, for chain/0, chain/1, … in Dir
	Layers     string    // directory with upper/ and work/ for an overlay
	Cloned     bool      // it must not be taken for the one it was cloned from
	Root       string    // directory, when Lower is empty
	Tree       int       // descriptor of a mount that is the root instead; Root is what it is of
	Foreign    bool      // Root is not the environment's: its owners are nobody inside
	ReadOnly   bool
	Init       []string // as configured; empty: look for one
	User       string   // to look up in the root's /etc/passwd, "" or number: not looked up
	Group      string
}

// workRequest is the second message: what to put into the root, and what to
// become.
type workRequest struct {
	Mounts []stubMount
	Files  []runFile
	Names  string // resolv.conf; "": leave it alone
	Nodes  []deviceNode
	Argv   []string // the OCI runtime, by absolute path
	Env    []string
}

const maxMessage = 1 << 20

// writeMessage sends v as a length and JSON.
func writeMessage(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}

func readMessage(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxMessage {
		return fmt.Errorf("message of %d bytes between daemon and stub", size)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	return json.Unmarshal(body, v)
}

// errOrphaned tells nobody anything: the daemon is gone.
var errOrphaned = errors.New("the daemon is gone")

func runStub(in io.Reader, out io.Writer) error {
	var root rootRequest
	if err := readMessage(in, &root); err != nil {
		return errOrphaned
	}
	if err := mountRoot(root); err != nil {
		return err
	}
	facts, err := inspectRoot(root)
	if err != nil {
		return err
	}
	if root.Cloned {
		if err := root.forgetIdentity(facts.Kind); err != nil {
			return err
		}
	}
	if err := writeMessage(out, facts); err != nil {
		return errOrphaned
	}
	var work workRequest
	if err := readMessage(in, &work); err != nil {
		return errOrphaned
	}
	if err := furnish(root, work); err != nil {
		return err
	}
	if _, err := out.Write([]byte{'r'}); err != nil {
		return errOrphaned
	}
	var start [1]byte
	if _, err := io.ReadFull(in, start[:]); err != nil {
		return errOrphaned
	}
	ordinaryProcess()
	err = syscall.Exec(work.Argv[0], work.Argv, work.Env)
	if errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("the OCI runtime %s is gone: install its package again", work.Argv[0])
	}
	return fmt.Errorf("run %s: %w", work.Argv[0], err)
}

// ordinaryFiles is what systemd gives a service; a high soft limit makes old
// programs close a million descriptors.
var (
	ordinaryFiles = unix.Rlimit{Cur: 1024, Max: 524288}
	noRlimit      = unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
)

// ordinaryProcess undoes what an environment would inherit from the way the
// daemon itself was started.
func ordinaryProcess() {
	files, none := ordinaryFiles, noRlimit
	unix.Setrlimit(unix.RLIMIT_NOFILE, &files)
	// Counted for the whole user namespace from its creation on (Linux 5.14), so
	// it would be a second limit of tasks; the scope's TasksMax is the one.
	// And for all environments together, because root made all their user
	// namespaces: locked memory and queued signals are limited inside, if at all.
	for _, resource := range []int{unix.RLIMIT_NPROC, unix.RLIMIT_MEMLOCK, unix.RLIMIT_SIGPENDING} {
		unix.Setrlimit(resource, &none)
	}
	os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0)
}
