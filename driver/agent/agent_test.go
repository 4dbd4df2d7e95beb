package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"virtvzd/runtime"
)

// guest is an environment of files in memory and one program.
type guest struct {
	Guest
	files   map[string]string
	program func(context.Context, runtime.Command) (syscall.WaitStatus, error)
	frozen  []string

	earlier []runtime.Kept // programs of an earlier daemon
	mu      sync.Mutex
	kept    map[int]*[3]bytes.Buffer // what programs have written that were not forgotten
}

func (g *guest) Exec(ctx context.Context, c runtime.Command) (syscall.WaitStatus, error) {
	if c.Began != nil && c.Args[0] != "missing" {
		c.Began()
	}
	return g.program(ctx, c)
}

func (g *guest) ExecKept(ctx context.Context, c runtime.Command, k runtime.Kept) (syscall.WaitStatus, error) {
	if c.Stdin == nil {
		c.Stdin = strings.NewReader("")
	}
	outputs := &[3]bytes.Buffer{}
	g.mu.Lock()
	if g.kept == nil {
		g.kept = map[int]*[3]bytes.Buffer{}
	}
	g.kept[k.Number] = outputs
	g.mu.Unlock()
	c.Stdout, c.Stderr = &outputs[1], &outputs[2]
	return g.Exec(ctx, c)
}

func (g *guest) Kept() []runtime.Kept { return g.earlier }

func (g *guest) AwaitKept(ctx context.Context, number int) (syscall.WaitStatus, error) {
	return g.ExecKept(ctx, runtime.Command{Args: []string{"earlier"}}, runtime.Kept{Number: number})
}

func (g *guest) KeptOutput(number, output int) ([]byte, bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	body := g.kept[number][output].Bytes()
	return body[:min(len(body), maxOutput)], len(body) > maxOutput, nil
}

func (g *guest) ForgetKept(number int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.kept, number)
	return nil
}

func (g *guest) OpenFile(context.Context, runtime.Owner, string, int, os.FileMode) (*runtime.File, error) {
	return &runtime.File{}, nil
}

func (g *guest) ReadFile(_ context.Context, _ runtime.Owner, name string, limit int) ([]byte, error) {
	body, ok := g.files[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return []byte(body), nil
}

func (g *guest) ReadFiles(_ context.Context, _ runtime.Owner, name string, most, limit int) (list [][]byte, err error) {
	err = fs.ErrNotExist
	for _, path := range slices.Sorted(maps.Keys(g.files)) {
		if strings.HasPrefix(path, name+"/") {
			list, err = append(list, []byte(g.files[path])), nil
		}
	}
	return list, err
}

func (g *guest) ReplaceFile(_ context.Context, who runtime.Owner, name string, body []byte, mode os.FileMode) error {
	g.files[name] = fmt.Sprintf("%d %o\n%s", who.UID, mode, body)
	return nil
}

func (g *guest) Account(_ context.Context, name string) (runtime.Account, error) {
	if name != "web" {
		return runtime.Account{}, errors.New("there is no such user")
	}
	return runtime.Account{Owner: runtime.Owner{UID: 1000, GID: 1000}, Home: "/home/web"}, nil
}

func (g *guest) Hostname() (string, error)       { return "web1", nil }
func (g *guest) CPUs() []int                     { return []int{2, 5} }
func (g *guest) Memory() (uint64, uint64, error) { return 1, 1 << 28, nil }
func (g *guest) Mounts(int) ([]runtime.Mount, error) {
	return []runtime.Mount{{Point: "/", Type: "overlay", Source: "overlay"}}, nil
}
func (g *guest) FilesystemSpace(context.Context, string) (uint64, uint64, error) { return 100, 7, nil }

func (g *guest) InsideLinks() ([]runtime.InsideLink, error) {
	return []runtime.InsideLink{{Name: "eth0", MAC: "52:54:00:00:00:01", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24"), netip.MustParsePrefix("2001:db8::7/64")},
		Stats: runtime.InterfaceStats{Received: runtime.Traffic{Bytes: 5}}}}, nil
}

func (g *guest) FreezeFilesystems(_ context.Context, points []string) (int, error) {
	if slices.Contains(points, "/") {
		return 0, errors.New("suspend the environment instead")
	}
	g.frozen = []string{"/srv"}
	return 1, nil
}

func (g *guest) ThawFilesystems(context.Context, []string) (int, error) {
	n := len(g.frozen)
	g.frozen = nil
	return n, nil
}

func (g *guest) FrozenFilesystems(context.Context) ([]string, error) { return g.frozen, nil }

func (g *guest) TrimFilesystems(_ context.Context, _ []string, minimum uint64) ([]runtime.Trimmed, error) {
	return []runtime.Trimmed{{Point: "/srv", Bytes: 4096, Minimum: minimum}, {Point: "/opt", Err: errors.New("no discard")}}, nil
}

func newAgent(t *testing.T, g *guest) *Agent {
	a := New(g, func(_ context.Context, mode string) error { return errors.New("asked to " + mode) })
	t.Cleanup(a.Close)
	return a
}

func TestCommands(t *testing.T) {
	a := newAgent(t, &guest{
		files: map[string]string{"/etc/os-release": "# x\nID=debian\nPRETTY_NAME=\"Debian \\\"13\\\"\"\n", "/run/utmp": string(utmp("root", 7, 50)) + string(utmp("root", 7, 40)) + string(utmp("boot", 2, 1))},
		program: func(_ context.Context, c runtime.Command) (syscall.WaitStatus, error) {
			io.WriteString(c.Stdout, "0.25 1.50 2.00 1/5 77\n")
			return 0, nil
		},
	})
	for _, c := range []struct{ command, want string }{
		{`{"execute":"guest-ping"}`, `{"return":{}}`},
		{`{"execute":"guest-ping","id":7}`, `{"return":{},"id":7}`},
		{`{"execute":"guest-sync","arguments":{"id":42}}`, `{"return":42}`},
		{`{"execute":"guest-get-host-name"}`, `{"return":{"host-name":"web1"}}`},
		{`{"execute":"guest-get-osinfo"}`, `"id":"debian"`},
		{`{"execute":"guest-get-osinfo"}`, `"pretty-name":"Debian \"13\""`},
		{`{"execute":"guest-get-users"}`, `{"return":[{"user":"root","login-time":40}]}`},
		{`{"execute":"guest-get-timezone"}`, `{"return":{"offset":0,"zone":"UTC"}}`},
		{`{"execute":"guest-get-vcpus"}`, `{"return":[{"logical-id":0,"online":true,"can-offline":false},{"logical-id":1,"online":true,"can-offline":false}]}`},
		{`{"execute":"guest-get-memory-block-info"}`, `{"return":{"size":268435456}}`},
		{`{"execute":"guest-get-fsinfo"}`, `{"return":[{"name":"overlay","mountpoint":"/","type":"overlay","total-bytes":100,"used-bytes":7,"disk":[]}]}`},
		{`{"execute":"guest-network-get-interfaces"}`, `{"return":[{"name":"eth0","hardware-address":"52:54:00:00:00:01","ip-addresses":[{"ip-address-type":"ipv4","ip-address":"192.0.2.7","prefix":24},{"ip-address-type":"ipv6","ip-address":"2001:db8::7","prefix":64}],"statistics":{"rx-bytes":5,`},
		{`{"execute":"guest-get-load"}`, `{"return":{"load15m":2,"load1m":0.25,"load5m":1.5}}`},
		{`{"execute":"guest-fsfreeze-status"}`, `{"return":"thawed"}`},
		{`{"execute":"guest-info"}`, `{"name":"guest-shutdown","enabled":true,"success-response":false}`},
		{`{"execute":"guest-fsfreeze-freeze-list","arguments":{"mountpoints":["/srv","/"]}}`, `!suspend the environment instead`},
		{`{"execute":"guest-fsfreeze-thaw"}`, `{"return":0}`},
		{`{"execute":"guest-fstrim","arguments":{"minimum":7}}`, `{"return":{"paths":[{"minimum":7,"path":"/srv","trimmed":4096},{"error":"no discard","path":"/opt"},{"error":"it lies on a file system of the host, which fstrim.timer of the host trims","path":"/"}]}}`},
		{`{"execute":"guest-fstrim","arguments":{"minimum":-1}}`, `!must not be negative`},
		{`{"execute":"guest-shutdown"}`, `!asked to powerdown`},
		{`{"execute":"guest-shutdown","arguments":{"mode":"reboot"}}`, `!asked to reboot`},
		{`{"execute":"guest-shutdown","arguments":{"mode":"x"}}`, `!none of powerdown, halt and reboot`},
		{`{"execute":"guest-nonsense"}`, `!unable to execute QEMU agent command 'guest-nonsense': The command guest-nonsense has not been found`},
		{`{"execute":"guest-ping","arguments":{"x":1}}`, `!unknown field`},
		{`{"execute":"guest-sync","arguments":{"id":"x"}}`, `!its arguments are wrong`},
		{`{"execute"`, `!is not the agent's JSON`},
		{`null`, `!has not been found`},
	} {
		got, err := a.Do(t.Context(), c.command)
		if problem, fails := strings.CutPrefix(c.want, "!"); fails {
			if err == nil || !strings.Contains(err.Error(), problem) {
				t.Errorf("%s: %q, %v, want %q", c.command, got, err, problem)
			}
		} else if err != nil || !strings.Contains(got, c.want) {
			t.Errorf("%s: %s, %v, want %s", c.command, got, err, c.want)
		}
	}
}

// TestLoadPatience: a program inside that is called cat and never ends does not
// keep waiting who asks for the load.
func TestLoadPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t, &guest{program: func(ctx context.Context, _ runtime.Command) (syscall.WaitStatus, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		}})
		began := time.Now()
		if _, err := a.Do(t.Context(), `{"execute":"guest-get-load"}`); !strings.Contains(fmt.Sprint(err), context.DeadlineExceeded.Error()) || time.Since(began) > 10*time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

// TestFrozen: while a file system is frozen, no command is begun that might
// wait for it.
func TestFrozen(t *testing.T) {
	a := newAgent(t, &guest{files: map[string]string{"/etc/passwd": "x"}})
	for _, c := range []struct{ command, want string }{
		{"guest-fsfreeze-freeze", "1"},
		{"guest-fsfreeze-status", `"frozen"`},
		{"guest-ping", "{}"},
		{"guest-fsfreeze-freeze", "!guest-fsfreeze-freeze has been disabled: the agent is in frozen state"},
		{"guest-file-open", "!guest-file-open has been disabled"},
		{"guest-get-users", "!guest-get-users has been disabled"},
		{"guest-shutdown", "!asked to powerdown"},
		{"guest-fsfreeze-thaw", "1"},
		{"guest-fsfreeze-status", `"thawed"`},
		{"guest-get-users", "[]"},
	} {
		got, err := a.Do(t.Context(), `{"execute":"`+c.command+`"}`)
		if err != nil {
			got = "!" + err.Error()
		}
		if problem, fails := strings.CutPrefix(c.want, "!"); fails && !strings.Contains(got, problem) || !fails && got != `{"return":`+c.want+"}" {
			t.Errorf("%s: %s, want %s", c.command, got, c.want)
		}
	}
}

// TestUsers: Debian 13 has no utmp(5) any more, but logind's sessions.
func TestUsers(t *testing.T) {
	const sessions = "/run/systemd/sessions/"
	session := func(user, class, since string) string {
		return "# This is private data. Do not parse.\nUID=0\nUSER=" + user + "\nCLASS=" + class + "\nREALTIME=" + since + "\n"
	}
	for want, files := range map[string]map[string]string{
		`[]`:                                  {},
		`[{"user":"root","login-time":40.5}]`: {sessions + "1": session("root", "user", "41000000"), sessions + "2": session("root", "user-early", "40500000")},
		`[{"user":"root","login-time":40},{"user":"web","login-time":7}]`: {"/run/utmp": string(utmp("root", 7, 40)),
			sessions + "1": session("root", "user", "41000000"), sessions + "3": session("web", "user", "7000000"),
			sessions + "c1": session("gdm", "greeter", "1"), sessions + "4": session("web", "manager", "1"),
			sessions + "5": session("x", "user", "-1"), sessions + "6": "nonsense", sessions + "7": session("", "user", "1")},
	} {
		text, err := newAgent(t, &guest{files: files}).Do(t.Context(), `{"execute":"guest-get-users"}`)
		if err != nil || text != `{"return":`+want+`}` {
			t.Errorf("%s, %v, want %s", text, err, want)
		}
	}
}

func utmp(name string, kind uint16, at uint32) []byte {
	b := make([]byte, 384)
	binary.NativeEndian.PutUint16(b, kind)
	copy(b[44:], name)
	binary.NativeEndian.PutUint32(b[340:], at)
	return b
}

// do is a command that must succeed, with its answer.
func do(t *testing.T, a *Agent, command string) map[string]any {
	t.Helper()
	text, err := a.Do(t.Context(), command)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	var answer struct{ Return map[string]any }
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		t.Fatal(err)
	}
	return answer.Return
}

// TestFilesLeft: what clients leave open takes no room for ever, and what is in
// use keeps its own.
func TestFilesLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t, &guest{})
		const open = `{"execute":"guest-file-open","arguments":{"path":"/f"}}`
		for range maxFiles {
			if _, err := a.Do(t.Context(), open); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if _, err := a.Do(t.Context(), open); err == nil || !strings.Contains(err.Error(), "the limit is 64") {
			t.Errorf("one too many: %v", err)
		}
		if _, err := a.file(1); err != nil { // a use
			t.Error(err)
		}
		time.Sleep(fileIdle - (maxFiles-2)*time.Second) // the first three were opened longer ago
		for n := range 2 {
			if text, err := a.Do(t.Context(), open); err != nil {
				t.Errorf("%d: %s, %v", n, text, err)
			}
		}
		if _, err := a.Do(t.Context(), open); err == nil {
			t.Error("one that was used lately makes room")
		}
		for handle, kept := range map[int]bool{1: true, 2: false, 3: false, 4: true, maxFiles + 2: true} {
			if _, err := a.file(handle); (err == nil) != kept {
				t.Errorf("%d: %v", handle, err)
			}
		}
	})
}

func TestKeys(t *testing.T) {
	g := &guest{files: map[string]string{}}
	a := newAgent(t, g)
	const file = "/home/web/.ssh/authorized_keys"
	keys := func() string {
		return fmt.Sprint(do(t, a, `{"execute":"guest-ssh-get-authorized-keys","arguments":{"username":"web"}}`)["keys"])
	}
	if keys() != "[]" {
		t.Errorf("without a file: %s", keys())
	}
	do(t, a, `{"execute":"guest-ssh-add-authorized-keys","arguments":{"username":"web","keys":["ssh-ed25519 A","ssh-ed25519 B","ssh-ed25519 A"]}}`)
	if want := "1000 600\nssh-ed25519 A\nssh-ed25519 B\n"; g.files[file] != want {
		t.Errorf("%q, want %q", g.files[file], want)
	}
	g.files[file] = "# mine\nssh-ed25519 A\n"
	do(t, a, `{"execute":"guest-ssh-add-authorized-keys","arguments":{"username":"web","keys":["ssh-ed25519 C",""]}}`)
	if want := "1000 600\n# mine\nssh-ed25519 A\nssh-ed25519 C\n"; g.files[file] != want {
		t.Errorf("%q, want %q", g.files[file], want)
	}
	do(t, a, `{"execute":"guest-ssh-remove-authorized-keys","arguments":{"username":"web","keys":["ssh-ed25519 A","other"]}}`)
	do(t, a, `{"execute":"guest-ssh-add-authorized-keys","arguments":{"username":"web","keys":["ssh-ed25519 D"],"reset":true}}`)
	if want := "1000 600\nssh-ed25519 D\n"; g.files[file] != want {
		t.Errorf("%q, want %q", g.files[file], want)
	}
	for _, wrong := range []string{`{"username":"x","keys":["a"]}`, `{"username":"web","keys":["# no"]}`, `{"username":"web","keys":["a\nb"]}`} {
		if _, err := a.Do(t.Context(), `{"execute":"guest-ssh-add-authorized-keys","arguments":`+wrong+`}`); err == nil {
			t.Errorf("%s is accepted", wrong)
		}
	}
}

func TestPassword(t *testing.T) {
	var ran string
	status := syscall.WaitStatus(0)
	a := newAgent(t, &guest{program: func(_ context.Context, c runtime.Command) (syscall.WaitStatus, error) {
		body, _ := io.ReadAll(c.Stdin)
		ran = fmt.Sprint(c.Args, string(body))
		io.WriteString(c.Stderr, "no such user\n")
		return status, nil
	}})
	do(t, a, `{"execute":"guest-set-user-password","arguments":{"username":"root","password":"czNjcmV0","crypted":true}}`)
	if want := "[chpasswd -e]root:s3cret\n"; ran != want {
		t.Errorf("ran %q, want %q", ran, want)
	}
	status = 1 << 8
	for _, c := range []struct{ args, want string }{
		{`{"username":"x","password":"eA=="}`, "failed to set user password: no such user"},
		{`{"username":"a:b","password":"eA=="}`, "colon"},
		{`{"username":"a","password":"eAp5"}`, "forbidden characters"},
	} {
		if _, err := a.Do(t.Context(), `{"execute":"guest-set-user-password","arguments":`+c.args+`}`); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.args, err)
		}
	}
}
