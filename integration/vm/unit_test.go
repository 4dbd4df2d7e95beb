package vm

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseStartTime(t *testing.T) {
	const rest = " 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21"
	for stat, want := range map[string]uint64{
		"7 (qemu) S" + rest:          4711,
		"7 (a) Z 9 (b c)) S" + rest:  4711, // a name may look like fields
		"7 (qemu) Z" + rest:          0,    // waits to be reaped: gone
		"7 (qemu) S 1 2 3":           0,
		"":                           0,
		"7 (qemu":                    0,
		"7 (qemu) S" + rest + " x\n": 4711,
	} {
		if got := parseStartTime(stat); got != want {
			t.Errorf("%q: %d, want %d", stat, got, want)
		}
	}
	if startTime(os.Getpid()) == 0 {
		t.Error("this process has no start time")
	}
}

// What is not alike can not be resumed: the key has to tell it, and nothing
// that differs between copies may be in it.
func TestSnapshotKey(t *testing.T) {
	t.Setenv("VIRTVZD_CACHE", t.TempDir())
	tcg, kvm := newSnapshot("/i", "tcg"), newSnapshot("/i", "kvm")
	if tcg.dir == kvm.dir {
		t.Error("a snapshot of KVM would be resumed by TCG")
	}
	if again := newSnapshot("/j", "tcg"); filepath.Base(again.dir) != filepath.Base(tcg.dir) {
		t.Error("the key depends on where the cache is")
	}
}

func TestMachineArgs(t *testing.T) {
	m := machine{accel: "tcg", image: "/i", memory: "/a,b/memory", incoming: "/s", port: 2222}
	args := strings.Join(m.args(), " ")
	for _, want := range []string{
		"mem-path=/a,,b/memory,share=off", "hostfwd=tcp:127.0.0.1:2222-:22", "-incoming defer", "-no-reboot",
		"hubport,hubid=0,id=wire", "cx16=off",
	} {
		if !strings.Contains(args, want) {
			t.Errorf("no %s in %s", want, args)
		}
	}
	m = machine{accel: "kvm", share: true, reboot: true, wire: "dgram,x"}
	args = strings.Join(m.args(), " ")
	for _, bad := range []string{"share=off", "-incoming", "-no-reboot", "hubport", "max"} {
		if strings.Contains(args, bad) {
			t.Errorf("%s in %s", bad, args)
		}
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "sys-2": true, strings.Repeat("x", 32): true,
		"": false, "-a": false, "a-": false, "a.b": false, "A": false, "a/b": false, "..": false, "a b": false, strings.Repeat("x", 33): false,
	} {
		if validName.MatchString(name) != want {
			t.Errorf("%q: valid is not %v", name, want)
		}
	}
}

func TestQuote(t *testing.T) {
	for _, s := range []string{"", "a b", "it's", `\$HOME "x" *`, "''"} {
		out, err := exec.Command("sh", "-c", "printf %s "+quote(s)).Output()
		if err != nil || string(out) != s {
			t.Errorf("the shell reads %q as %q (%v)", s, out, err)
		}
	}
}

func TestRunLogged(t *testing.T) {
	var said strings.Builder
	defer func() { Progress = os.Stderr }()
	Progress = &said
	log := filepath.Join(t.TempDir(), "log")
	err := runLogged(exec.Command("sh", "-c", "echo '==> one'; echo noise; echo '==> two'; echo why >&2; exit 3"), log)
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "why") {
		t.Errorf("the error does not tell why: %v", err)
	}
	if said.String() != "vm: one\nvm: two\n" {
		t.Errorf("progress was %q", said.String())
	}
	if text, _ := os.ReadFile(log); !strings.Contains(string(text), "noise") {
		t.Errorf("the log is %q", text)
	}
}

func TestPrune(t *testing.T) {
	dir := t.TempDir()
	old := time.Now().Add(-2 * unusedAfter)
	for _, name := range []string{"image-old", "image-new", "image-kept", "other-old"} {
		os.MkdirAll(filepath.Join(dir, name, "content"), 0o755)
		if name != "image-new" {
			os.Chtimes(filepath.Join(dir, name), old, old)
		}
	}
	prune(dir, "image-*", "image-kept")
	left, _ := filepath.Glob(filepath.Join(dir, "*"))
	for i := range left {
		left[i] = filepath.Base(left[i])
	}
	if want := []string{"image-kept", "image-new", "other-old"}; !slices.Equal(left, want) {
		t.Errorf("left are %v, want %v", left, want)
	}
}

// A machine's directory goes when its process is gone, even if another process
// has the number now; that of a running one, or of one being started, stays.
func TestSweep(t *testing.T) {
	t.Setenv("VIRTVZD_CACHE", t.TempDir())
	run := filepath.Join(CacheDir(), "run")
	put := func(name, json string, age time.Duration) {
		dir := filepath.Join(run, name)
		os.MkdirAll(dir, 0o755)
		if json != "" {
			os.WriteFile(filepath.Join(dir, "vm.json"), []byte(json), 0o644)
		}
		at := time.Now().Add(-age)
		os.Chtimes(dir, at, at)
	}
	pid := os.Getpid()
	put("alive", sprintState(pid, startTime(pid)), time.Hour)
	put("recycled", sprintState(pid, startTime(pid)-1), time.Hour)
	put("gone", sprintState(1<<30, 7), 0)
	put("starting", "", time.Minute)
	put("abandoned", "", time.Hour)
	sweep(run)
	left, _ := os.ReadDir(run)
	var names []string
	for _, entry := range left {
		names = append(names, entry.Name())
	}
	if want := []string{"alive", "starting"}; !slices.Equal(names, want) {
		t.Errorf("left are %v, want %v", names, want)
	}
	if got := Running(); !slices.Equal(got, []string{"alive"}) {
		t.Errorf("running are %v", got)
	}
}

func sprintState(pid int, started uint64) string {
	text, _ := json.Marshal(state{PID: pid, Started: started})
	return string(text)
}

func TestLastWords(t *testing.T) {
	noise := strings.Repeat("noise\n", 1000)
	if got := lastWords(noise + "[1.0] BUG: bad\n[1.1] Kernel panic - not syncing\n" + noise); !strings.HasPrefix(got, "[1.0] BUG: bad\n") || len(got) > 2000 {
		t.Errorf("got %q", got)
	}
	if got := lastWords(noise + "end"); !strings.HasSuffix(got, "noise\nend") || len(got) > 2000 {
		t.Errorf("got %q", got)
	}
	if got := lastWords("short"); got != "short" {
		t.Errorf("got %q", got)
	}
}

func TestHostKeys(t *testing.T) {
	if hostKey() != hostKey() || len(hostKey()) != 12 {
		t.Error("the host's key is not stable")
	}
	cpu := hostCPU()
	if cpu != hostCPU() || strings.Count(cpu, "model name") != 1 {
		t.Errorf("the processor is %q", cpu)
	}
}
