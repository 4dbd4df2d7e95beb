//go:build vm

package runtime

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// The crash tests run a second manager, this test binary again, that kills itself
// with SIGKILL at a step; then the first one recovers. The descriptors the
// child stores go over a socket to the first one's store, as they would to the
// service manager's.

// socketStore is the child's end.
type socketStore struct{ conn *net.UnixConn }

func (s socketStore) Store(name string, f *os.File) error {
	fd, err := dupFD(f)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, _, err = s.conn.WriteMsgUnix([]byte(name), unix.UnixRights(fd), nil)
	return err
}

func (s socketStore) Remove(name string) error {
	_, err := s.conn.Write([]byte("-" + name))
	return err
}

// serveStore fills vmStore from the other end.
func serveStore(conn *net.UnixConn, done chan<- bool) {
	defer close(done)
	for {
		text, oob := make([]byte, 512), make([]byte, 64)
		n, oobn, _, _, err := conn.ReadMsgUnix(text, oob)
		if err != nil || n == 0 {
			return
		}
		name := string(text[:n])
		if name[0] == '-' {
			vmStore.Remove(name[1:])
			continue
		}
		messages, _ := unix.ParseSocketControlMessage(oob[:oobn])
		fds, _ := unix.ParseUnixRights(&messages[0])
		f := os.NewFile(uintptr(fds[0]), name)
		vmStore.Store(name, f)
		f.Close()
	}
}

func init() {
	childManager = func(step string) int {
		file := os.NewFile(3, "store")
		conn, err := net.FileConn(file)
		if err != nil {
			panic(err)
		}
		file.Close()
		r, err := newVMRuntime()
		if err != nil {
			panic(err)
		}
		r.config.FDs = socketStore{conn.(*net.UnixConn)}
		atStep = func(name string) error {
			fmt.Println(name)
			if name == step {
				unix.Kill(os.Getpid(), unix.SIGKILL)
				select {}
			}
			return nil
		}
		what, later, _ := strings.Cut(step, " ")
		if child := map[string]func(*Runtime, string, func()) int{
			"save": savingChild, "snapshot": savingChild, "tune": tuningChild, "untune": tuningChild,
		}[what]; child != nil {
			step = "" // not of the start
			return child(r, what, func() { step = later })
		}
		env := vmEnvironment(&testing.T{}, "busybox")
		env.Consoles = []xml.Console{{ID: "lxc 0"}, {ID: "lxc 1"}}
		with := *env
		with.Interfaces = vmInterfaces()
		later, attach := strings.CutPrefix(step, "attach ")
		detach := false
		if !attach {
			later, detach = strings.CutPrefix(step, "detach ")
			env = &with
		}
		i, err := r.Start(context.Background(), env, StartOptions{})
		if err != nil {
			fmt.Println(err)
			return 1
		}
		if attach || detach {
			step = later // is come by once more
			without := with
			without.Interfaces = nil
			if detach {
				i.Tune(context.Background(), &with, &without, nil)
			} else {
				i.Tune(context.Background(), &without, &with, nil)
			}
			return 1
		}
		if step == "running" {
			unix.Kill(os.Getpid(), unix.SIGKILL)
		}
		i.Kill(context.Background())
		i.Release(context.Background())
		atStep("released")
		return 0
	}
}

// runChild runs a manager that dies at a step and returns the steps it came by.
func runChild(t *testing.T, step string) []string {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "store"), os.NewFile(uintptr(pair[1]), "store")
	conn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	ours.Close()
	done := make(chan bool)
	go serveStore(conn.(*net.UnixConn), done)
	out := &strings.Builder{}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "VIRTVZD_TEST_CHILD="+step)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = out, out, []*os.File{theirs}
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	children.add(cmd.Process.Pid)
	theirs.Close()
	if after, err := time.ParseDuration(step); err == nil {
		time.AfterFunc(after, func() { cmd.Process.Kill() })
	}
	err = cmd.Wait()
	children.remove(cmd.Process.Pid)
	// A stub that outlives its manager for a moment holds nothing of the store.
	<-done
	conn.Close()
	var killed *exec.ExitError
	_, timed := time.ParseDuration(step)
	if step != "never" && timed != nil && (!errors.As(err, &killed) || killed.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL) {
		t.Fatalf("the manager was not killed at %q: %v\n%s", step, err, out)
	}
	return strings.Fields(strings.ReplaceAll(out.String(), "undo ", "undo_"))
}

func TestKilledAtEveryStep(t *testing.T) {
	vmTemplate(t, "busybox")
	steps := runChild(t, "never")
	t.Logf("steps: %v", steps)
	if len(steps) < 15 || steps[len(steps)-1] != "released" {
		t.Fatalf("a start and an end have the steps %v", steps)
	}
	for _, part := range []string{"linked_bridge", "linked_ethernet", "linked_direct", "linked_hostdev", "filter", "undo_link", "undo_filter", "undo_port"} {
		if !slices.Contains(steps, part) {
			t.Errorf("a start and an end come by no step %s", part)
		}
	}
	nothingLeft(t)
	for _, step := range steps {
		step = strings.ReplaceAll(step, "undo_", "undo ")
		t.Run(step, func(t *testing.T) {
			runChild(t, step)
			r := vmRuntime(t)
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
			defer cancel()
			adopted, ended, err := r.Recover(ctx, vmStore.take())
			if err != nil {
				t.Errorf("recover: %v", err)
			}
			if len(adopted) > 0 {
				t.Errorf("adopted %d", len(adopted))
			}
			for _, e := range ended {
				if e.UUID != testUUID {
					t.Errorf("ended: %+v", e)
				}
			}
			nothingLeft(t)
			// and the same environment starts again
			i, err := r.Start(ctx, vmEnvironment(t, "busybox"), StartOptions{})
			if err != nil {
				t.Fatal(err)
			}
			vmEnd(t, r, i)
		})
	}
}

// Between two steps is not all: the moment is random, in the middle of what crun or
// systemd do, and what is found is adopted or removed, never half of it.
func TestKilledAnytime(t *testing.T) {
	vmTemplate(t, "busybox")
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewSource(seed))
	for range 25 {
		after := time.Duration(random.Intn(2500)) * time.Millisecond
		runChild(t, after.String())
		r := vmRuntime(t)
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		adopted, ended, err := r.Recover(ctx, vmStore.take())
		if err != nil {
			t.Errorf("after %v: %v", after, err)
		}
		t.Logf("after %v: adopted %d, ended %d", after, len(adopted), len(ended))
		for _, i := range adopted {
			if out, err := inside(i, "echo alive"); out != "alive" {
				t.Errorf("after %v: adopted, but %q, %v", after, out, err)
			}
			vmEnd(t, r, i)
		}
		r.RemovePrivate(testUUID)
		nothingLeft(t)
		cancel()
	}
}

// A killed manager's environment goes on, and so does its console.
func TestAdopt(t *testing.T) {
	runChild(t, "running")
	r := vmRuntime(t)
	adopted, ended, err := r.Recover(context.Background(), vmStore.take())
	if err != nil || len(adopted) != 1 || len(ended) != 0 {
		t.Fatalf("adopted %v, ended %v, %v", adopted, ended, err)
	}
	i := adopted[0]
	defer vmEnd(t, r, i)
	if i.Name() != "test-busybox" || i.InitKind() != Busybox || !i.Started() {
		t.Errorf("%s, %s, %v", i.Name(), i.InitKind(), i.Started())
	}
	for id, terminal := range map[string]string{"lxc 0": "/dev/console", "lxc 1": "/dev/tty2"} {
		c, err := i.Console(id)
		if err != nil {
			t.Fatal(err)
		}
		a, err := c.Attach(false)
		if err != nil {
			t.Fatal(err)
		}
		if out, err := inside(i, "echo from inside > "+terminal); err != nil {
			t.Fatal(out, err)
		}
		readUntil(t, a, "from inside")
	}
	if _, err := r.Start(context.Background(), vmEnvironment(t, "busybox"), StartOptions{}); !errors.Is(err, ErrRunning) {
		t.Errorf("start of an adopted one: %v", err)
	}
}

// Where no service manager keeps descriptors the console is lost, and nothing
// else: neither the end of the environment nor that of the manager stumbles.
func TestAdoptWithoutStore(t *testing.T) {
	runChild(t, "running")
	for _, f := range vmStore.take() {
		f.Close()
	}
	first, err := newVMRuntime()
	if err != nil {
		t.Fatal(err)
	}
	adopted, _, err := first.Recover(context.Background(), nil)
	if err != nil || len(adopted) != 1 {
		t.Fatalf("adopted %v, %v", adopted, err)
	}
	if _, err := adopted[0].Console("lxc 0"); !errors.Is(err, ErrNoConsole) {
		t.Errorf("the lost console: %v", err)
	}
	first.Close()
	adopted, _, err = vmRuntime(t).Recover(context.Background(), nil)
	if err != nil || len(adopted) != 1 {
		t.Fatalf("adopted %v, %v", adopted, err)
	}
	vmEnd(t, adopted[0].r, adopted[0])
}

// A record that cannot be read is left alone with all that belongs to it, for
// whoever mends it.
func TestUnreadableRecord(t *testing.T) {
	runChild(t, "running")
	file := filepath.Join(vmState, formatUUID(testUUID), recordName)
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, good[:len(good)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	first, err := newVMRuntime()
	if err != nil {
		t.Fatal(err)
	}
	adopted, ended, err := first.Recover(context.Background(), vmStore.take())
	first.Close()
	if err == nil || len(adopted) != 0 || len(ended) != 0 {
		t.Errorf("adopted %v, ended %v, %v", adopted, ended, err)
	}
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	adopted, _, err = vmRuntime(t).Recover(context.Background(), vmStore.take())
	if err != nil || len(adopted) != 1 {
		t.Fatalf("adopted %v, %v", adopted, err)
	}
	if _, err := adopted[0].Console("lxc 0"); err != nil {
		t.Error(err)
	}
	vmEnd(t, adopted[0].r, adopted[0])
}

// What ended while no manager looked is reported, and removed.
func TestEndedMeanwhile(t *testing.T) {
	runChild(t, "running")
	rec, err := loadRecord(filepath.Join(vmState, formatUUID(testUUID)))
	if err != nil || rec == nil {
		t.Fatal(err)
	}
	if err := killCgroup(rec.Cgroup); err != nil {
		t.Fatal(err)
	}
	for processState(rec.Init) != 0 && processState(rec.Init) != 'Z' {
		time.Sleep(10 * time.Millisecond)
	}
	r := vmRuntime(t)
	adopted, ended, err := r.Recover(context.Background(), vmStore.take())
	if err != nil || len(adopted) != 0 || len(ended) != 1 || !ended[0].Started || ended[0].Name != "test-busybox" {
		t.Fatalf("adopted %v, ended %+v, %v", adopted, ended, err)
	}
	t.Logf("ended: %v", ended[0].Exit)
	if err := r.RemovePrivate(testUUID); err != nil {
		t.Error(err)
	}
	nothingLeft(t)
}

// A record that names another process's PID must not make that process ours.
func TestForeignPID(t *testing.T) {
	runChild(t, "running")
	dir := filepath.Join(vmState, formatUUID(testUUID))
	rec, err := loadRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	rec.Init = os.Getpid()
	rec.InitStart = startTime(os.Getpid())
	if err := rec.save(dir); err != nil {
		t.Fatal(err)
	}
	r := vmRuntime(t)
	adopted, ended, err := r.Recover(context.Background(), vmStore.take())
	if err != nil || len(adopted) != 0 || len(ended) != 1 {
		t.Fatalf("adopted %v, ended %+v, %v", adopted, ended, err)
	}
	r.RemovePrivate(testUUID)
	nothingLeft(t)
}
