//go:build vm

package runtime

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"virtvzd/systemd"
	"virtvzd/xml"
)

// Both hosts are this machine: two managers with directories of their own. What
// comes is called otherwise, because there is one scope of a name.
const (
	vmStateB = "/run/virtvzd-test-b"
	vmDataB  = "/var/lib/virtvzd-test-b"
)

var vmStoreB = &memoryStore{}

func vmDestination(t *testing.T) *Runtime {
	t.Helper()
	conn, err := systemd.Connect(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(Config{StateDir: vmStateB, DataDir: vmDataB, OCI: "crun", Scopes: conn, FDs: vmStoreB, Networks: vmNetworks{vmPorts}, Filters: vmFilters{vmBindings}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		os.RemoveAll(vmStateB)
		os.RemoveAll(vmDataB)
	})
	return r
}

// vmMove is one migration between two managers.
type vmMove struct {
	t        *testing.T
	from, to *Runtime
	env      *xml.Environment // at the destination
	session  Session
	incoming *Incoming
	listener net.Listener
	served   chan error
}

func beginMove(t *testing.T, i *Instance, env *xml.Environment, from, to *Runtime, name string) (*vmMove, Outgoing) {
	t.Helper()
	m := &vmMove{t: t, from: from, to: to, session: NewSession(), served: make(chan error, 16)}
	offer, err := i.Offer(t.Context(), env)
	if err != nil {
		t.Fatal(err)
	}
	there := *env
	there.Name, there.Interfaces = name, slices.Clone(env.Interfaces)
	for k := range there.Interfaces {
		there.Interfaces[k].Target = "" // the name is taken, on the same host
	}
	m.env = &there
	if m.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.listener.Close() })
	if m.incoming, err = to.PrepareMigration(t.Context(), m.env, offer, IncomingOptions{Session: m.session, Address: m.listener.Addr().String()}); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := m.listener.Accept()
			if err != nil {
				return
			}
			go func() { m.served <- to.ServeMigration(context.Background(), conn) }()
		}
	}()
	return m, Outgoing{
		Session: m.session, Address: m.listener.Addr().String(), Dial: m.dial, Interfaces: env.Interfaces, Root: offer.Root, Live: true,
		Control: NewMigrationControl(0, DefaultDowntime), Begun: func(int) {}, Frozen: func() {},
	}
}

func (m *vmMove) dial(ctx context.Context) (io.ReadWriteCloser, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", m.listener.Addr().String())
}

// TestMigrate: a whole system moves there and back, with its connections,
// memory, disk and cgroups.
func TestMigrate(t *testing.T) {
	for _, template := range []string{"busybox", "debian13-systemd"} {
		t.Run(template, func(t *testing.T) {
			a, b := vmRuntime(t), vmDestination(t)
			env := vmEnvironment(t, template)
			env.Interfaces = vmInterfaces()[:2]
			env.Interfaces[0].Routes = []xml.Route{{To: netip.MustParsePrefix("203.0.113.0/24"), Gateway: netip.MustParseAddr("192.0.2.1")}}
			i := vmStart(t, a, env, StartOptions{})
			next := func(*Instance, int) {}
			if template == "debian13-systemd" {
				eventually(t, i, 240*time.Second, "systemctl is-system-running", "running")
				next = keptTalk(t, i)
			}
			vmExec(t, i, counting)
			vmExec(t, i, "mkdir -p /srv/deep; echo one > /srv/deep/file; ln /srv/deep/file /srv/other; rm -f /etc/hostname; echo kept > /run/in-memory")
			next(i, 5)
			before, _ := strconv.Atoi(vmExec(t, i, counted))
			late := 0 // a hop may need one round only
			for _, hop := range []struct {
				from, to *Runtime
				name     string
			}{{a, b, "test-there"}, {b, a, env.Name}} {
				m, o := beginMove(t, i, env, hop.from, hop.to, hop.name)
				o.Begun = func(round int) {
					if round == 2 { // what is written meanwhile comes, too
						late++
						vmExec(t, i, "echo two > /srv/deep/file; echo late > /srv/late; echo more >> /run/in-memory")
					}
				}
				began := time.Now()
				if err := i.Migrate(t.Context(), o); err != nil {
					log, _ := os.ReadFile(filepath.Join(hop.to.saveDir(), ".incoming-"+formatUUID(i.uuid), "work", "restore.log"))
					t.Fatalf("%v\n%s", err, lastLines(string(log), 30))
				}
				stats := o.Control.Stats()
				moved, err := m.incoming.Commit(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%d rounds, %d KiB of memory, %d KiB of disk; stood still for %v of %v", stats.Round, stats.MemorySent>>10, stats.DiskSent>>10, time.Since(stats.Frozen), time.Since(began))
				if outcome, err := i.SettleMigration(t.Context(), m.dial); outcome != Committed || err != nil {
					t.Errorf("the destination says %q, %v", outcome, err)
				}
				if err := i.EndMigration(t.Context(), Committed, env.Interfaces); err != nil {
					t.Error(err)
				}
				if left, err := hop.from.ForgetLeft(i.uuid); !left || err != nil {
					t.Errorf("%v, %v", left, err)
				}
				vmLeft(t, hop.from, i)
				i, env = moved, m.env
				next(i, 5)
			}
			t.Cleanup(func() { vmEnd(t, a, i) })
			if after, _ := strconv.Atoi(vmExec(t, i, counted)); before == 0 || after <= before {
				t.Errorf("the counter was %d and is %d", before, after)
			}
			if got := vmExec(t, i, "cat /srv/deep/file /srv/other /srv/late /run/in-memory; ls /etc/hostname 2>/dev/null; true"); late == 0 || got != "two\ntwo\nlate\nkept"+strings.Repeat("\nmore", late) {
				t.Errorf("it has %q", got)
			}
			if template == "debian13-systemd" {
				if state := vmExec(t, i, "systemctl is-system-running; systemctl --failed --no-legend"); state != "running" {
					t.Errorf("systemd says %s", state)
				}
				vmExec(t, i, "systemctl restart systemd-journald && systemd-run --wait -q true")
			}
			for _, dir := range []string{vmData, vmDataB} {
				if left, _ := filepath.Glob(dir + "/migration/*"); len(left) > 0 {
					t.Errorf("left are %v", left)
				}
			}
		})
	}
}

// vmLeft ends an environment that runs elsewhere.
func vmLeft(t *testing.T, r *Runtime, i *Instance) {
	t.Helper()
	if err := errors.Join(i.Kill(t.Context()), i.Release(t.Context())); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(r.config.DataDir + "/save/.*"); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
}

func lastLines(text string, n int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// remembering begins a process inside with much in its memory, and says what
// that sums up to when it is asked to.
const remembering = `mkdir -p /run/memory; cd /run/memory; cat > remember <<'END'
v=$(head -c 8000000 /dev/urandom | base64)
trap 'printf %s "$v" | md5sum > new; mv new sum' USR1
echo > ready
while :; do sleep 0.1; done
END
setsid sh remember </dev/null >/dev/null 2>&1 & echo $! > pid; until [ -e ready ]; do sleep 0.1; done`

const remembered = `cd /run/memory; rm -f sum; kill -USR1 $(cat pid); until [ -s sum ]; do sleep 0.1; done; cat sum`

// TestPostCopy: memory follows when the environment runs at the destination,
// with and without rounds before; all of it, and not before it moved.
func TestPostCopy(t *testing.T) {
	for _, rounds := range []int{0, 2} {
		t.Run(strconv.Itoa(rounds), func(t *testing.T) {
			a, b := vmRuntime(t), vmDestination(t)
			env := vmEnvironment(t, "busybox")
			i := vmStart(t, a, env, StartOptions{})
			vmExec(t, i, remembering)
			before := vmExec(t, i, remembered)
			m, o := beginMove(t, i, env, a, b, "test-there")
			o.Control.AllowPostCopy()
			if rounds == 0 {
				o.Control.PostCopy()
			}
			o.Begun = func(round int) {
				if round == rounds {
					o.Control.PostCopy()
				}
			}
			if err := i.Migrate(t.Context(), o); err != nil {
				log, _ := os.ReadFile(filepath.Join(b.saveDir(), ".incoming-"+formatUUID(i.uuid), "work", "restore.log"))
				lazy, _ := os.ReadFile(filepath.Join(b.saveDir(), ".incoming-"+formatUUID(i.uuid), "work", "lazy.log"))
				t.Fatalf("%v\n%s\n%s", err, lastLines(string(log), 30), lazy)
			}
			sent := o.Control.Stats().MemorySent
			if rounds == 0 && sent > 4<<20 {
				t.Errorf("%d KiB of memory came before the environment", sent>>10)
			}
			moved, err := m.incoming.Commit(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := m.incoming.AwaitMemory(); err != nil {
				t.Fatal(err)
			}
			if err := i.EndMigration(t.Context(), Committed, env.Interfaces); err != nil {
				t.Error(err)
			}
			if left, err := a.ForgetLeft(i.uuid); !left || err != nil {
				t.Errorf("%v, %v", left, err)
			}
			vmLeft(t, a, i)
			if after := vmExec(t, moved, remembered); after != before {
				t.Errorf("it remembers %s and not %s", after, before)
			}
			if err := errors.Join(moved.Kill(t.Context()), moved.Release(t.Context())); err != nil {
				t.Error(err)
			}
			a.RemovePrivate(env.UUID)
			if text := readText(faultsInside); strings.TrimSpace(text) != "0" {
				t.Errorf("%s is left at %s", faultsInside, text)
			}
		})
	}
}

// TestPostCopyCutOff: the destination's daemon ends while memory is still to come,
// which cannot be had any more. What was let go is lost and killed, and its source
// is told so; what was only decided goes on at the source, with all its memory.
func TestPostCopyCutOff(t *testing.T) {
	a, b := vmRuntime(t), vmDestination(t)
	env := vmEnvironment(t, "busybox")
	i := vmStart(t, a, env, StartOptions{})
	vmExec(t, i, remembering)
	before := vmExec(t, i, remembered)
	for _, want := range []Outcome{Aborted, Lost} {
		m, o := beginMove(t, i, env, a, b, "test-there")
		o.Control.AllowPostCopy()
		o.Control.PostCopy()
		if err := i.Migrate(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		m.incoming.lazy.cmd.Process.Signal(syscall.SIGSTOP) // nothing comes from here on
		if want == Lost {
			if _, err := m.incoming.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
		} else if err := b.decide(m.session.ID, Committed); err != nil {
			t.Fatal(err)
		}
		m.incoming.deciding.Lock() // a daemon that has ended decides nothing
		i.mu.Lock()
		i.migration.ch.close(nil)
		i.mu.Unlock()
		m.to = vmDestination(t) // has the same directories
		adopted, ended, err := m.to.Recover(t.Context(), nil)
		if len(adopted) != 0 || len(ended) != 1 || (err != nil) != (want == Lost) {
			t.Errorf("%s: the next daemon takes over %v, ended are %+v: %v", want, adopted, ended, err)
		}
		conn := func(context.Context) (io.ReadWriteCloser, error) {
			ours, theirs := net.Pipe()
			go m.to.ServeMigration(context.Background(), theirs)
			return ours, nil
		}
		if outcome, err := i.SettleMigration(t.Context(), conn); outcome != want || err != nil {
			t.Errorf("the next daemon says %q, %v, want %q", outcome, err, want)
		}
		if err := i.EndMigration(t.Context(), want, env.Interfaces); err != nil {
			t.Error(err)
		}
		m.incoming.lazy.end()
		b = m.to
		if want == Aborted {
			if after := vmExec(t, i, remembered); after != before {
				t.Errorf("it remembers %s and not %s", after, before)
			}
		}
	}
	if left, err := a.ForgetLeft(i.uuid); !left || err != nil {
		t.Errorf("%v, %v", left, err)
	}
	vmLeft(t, a, i)
	a.RemovePrivate(env.UUID)
}
