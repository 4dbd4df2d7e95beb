package main

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// managers are package managers that tell how they were called, answer by
// their first word that is no option, and end as the real ones do.
var managers = map[string]string{
	"apt-get": `case "$*" in *-s*upgrade) printf 'Inst tiny [1] (2 local [all])\nConf tiny (2 local [all])\n' ;; esac`,
	"dnf":     `case "$*" in *check-update) echo; echo tiny.noarch 2-1 local; exit 100 ;; esac`,
	"zypper":  `case "$*" in *list-updates) printf 'S  | Repository | Name\nv  | local      | tiny\n' ;; *update*agree*) exit 102 ;; esac`,
	"apk":     `case "$*" in 'upgrade --simulate') ! grep -q -e --force-refresh "$CALLS" || printf '(1/1) Upgrading tiny (1-r0 -> 2-r0)\nOK: 1 MiB\n' ;; 'info -v') printf 'WARNING: old\ntiny-tool-1.2-r0\n' ;; esac`,
	"pacman": `case "$*" in
		-Qu*) printf 'held 1-1 -> 2-1 [ignored]\ntiny 1-1 -> 2-1\n' ;;
		-Q) echo 'tiny 1-1' ;;
		-Sy\ *) case $(ls -ld "$3") in drwxr-xr-x*) ;; *) exit 1 ;; esac ;; # DownloadUser of pacman.conf has to get there
		-Syu*) [ ! -e "$(pacman-conf DBPath)/db.lck" ] || { echo 'error: failed to synchronize all databases (unable to lock database)' >&2; exit 1; } ;;
	esac`,
}

// unreachable are those whose repository is, or who have none.
var unreachable = map[string]string{
	"apt-get": `case "$*" in *Error-Mode=any*update) echo "E: Failed to fetch" >&2; exit 100 ;; esac`,
	"dnf":     `case "$*" in *skip_if_unavailable=False*) echo "Error: Failed to download metadata for repo 'local'" >&2; exit 1 ;; esac`,
	"zypper":  `case "$*" in *-q*) ;; *) echo 'Warning: There are no enabled repositories defined.' ;; esac; exit 6`,
	"apk":     `echo 'ERROR: 1 unavailable, 0 stale' >&2; exit 1`,
	"pacman":  `case "$*" in -Sy*) echo 'error: failed to synchronize all databases' >&2; exit 1 ;; esac`,
}

// bin is a directory with a package manager and what update.sh needs besides.
func bin(t *testing.T, manager, body string) string {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, tool := range []string{"sed", "grep", "mktemp", "ln", "ls", "chmod", "readlink", "rm"} {
		path, err := exec.LookPath(tool)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(dir, tool)); err != nil {
			t.Fatal(err)
		}
	}
	if manager != "" {
		write(manager, `echo "`+manager+` $*" >>"$CALLS"`+"\n"+body)
	}
	write("dpkg", `echo "dpkg $*" >>"$CALLS"; exit 1`)
	write("dpkg-query", `printf 'ii  tiny:all 1\nrc  gone:all 1\n'`)
	write("rpm", `printf 'tiny.noarch 1-1\n'`)
	write("pacman-conf", "echo "+dir)
	return dir
}

// run is update.sh in a world of one package manager.
func runUpdate(t *testing.T, dir, what string) (out, errs, calls string, status int) {
	log := filepath.Join(t.TempDir(), "calls")
	cmd := exec.Command("/bin/sh", "-c", updateScript, "sh", what)
	cmd.Env = []string{"PATH=" + dir, "CALLS=" + log}
	var reason strings.Builder
	cmd.Stderr = &reason
	text, err := cmd.Output()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		t.Fatal(err)
	}
	body, _ := os.ReadFile(log)
	return string(text), reason.String(), string(body), cmd.ProcessState.ExitCode()
}

// TestUpdateScript: what each package manager is asked for, that its own ways
// of ending well are understood, and that its failures are failures.
func TestUpdateScript(t *testing.T) {
	for manager, want := range map[string]struct{ list, pending, update string }{
		"apt-get": {"tiny:all 1", "tiny [1] (2 local [all])", "dpkg --force-confdef --force-confold --configure -a\napt-get -q -y "},
		"dnf":     {"tiny.noarch 1-1", "tiny.noarch 2-1 local", "dnf -y --refresh --setopt=skip_if_unavailable=False upgrade\n"},
		"zypper":  {"tiny.noarch 1-1", "v  | local      | tiny", "zypper --non-interactive update --auto-agree-with-licenses\n"},
		"apk":     {"tiny-tool 1.2-r0", "(1/1) Upgrading tiny (1-r0 -> 2-r0)", "apk --force-refresh update\napk upgrade\n"},
		"pacman":  {"tiny 1-1", "tiny 1-1 -> 2-1", "pacman -Syu --noconfirm\n"},
	} {
		dir := bin(t, manager, managers[manager])
		for what, wanted := range map[string]string{"list": want.list, "pending": want.pending} {
			if out, _, calls, status := runUpdate(t, dir, what); strings.TrimSpace(out) != wanted || status != 0 {
				t.Errorf("%s %s: %q, status %d, want %q; called\n%s", manager, what, out, status, wanted, calls)
			}
		}
		if _, _, calls, status := runUpdate(t, dir, "update"); !strings.Contains(calls, want.update) || status != 0 {
			t.Errorf("%s update: status %d, want %q; called\n%s", manager, status, want.update, calls)
		}
		broken := bin(t, manager, "exit 1")
		for _, what := range []string{"pending", "update"} {
			if out, _, _, status := runUpdate(t, broken, what); out != "" || status != 1 {
				t.Errorf("%s %s fails: %q, status %d", manager, what, out, status)
			}
		}
		alone := bin(t, manager, unreachable[manager])
		for _, what := range []string{"pending", "update"} {
			out, errs, _, status := runUpdate(t, alone, what)
			if what == "update" {
				errs += out
			}
			if errs == "" || status == 0 {
				t.Errorf("%s %s without its repository: %q, status %d", manager, what, errs, status)
			}
		}
	}
	if _, _, _, status := runUpdate(t, bin(t, "", ""), "update"); status != noManager {
		t.Errorf("without one: status %d", status)
	}
}

// TestPacmanLock: the lock that an interrupted pacman has left is removed, that
// of one that works is not.
func TestPacmanLock(t *testing.T) {
	dir := bin(t, "pacman", managers["pacman"])
	lock, err := os.Create(filepath.Join(dir, "db.lck"))
	if err != nil {
		t.Fatal(err)
	}
	if _, errs, _, status := runUpdate(t, dir, "update"); status != 1 || !strings.Contains(errs, "unable to lock database") {
		t.Errorf("another one works: %q, status %d", errs, status)
	}
	lock.Close()
	if _, errs, _, status := runUpdate(t, dir, "update"); status != 0 {
		t.Errorf("an interrupted one: %q, status %d", errs, status)
	}
}

// TestKillScript: who can end by itself does, who will not is killed, and those
// without the mark are left alone.
func TestKillScript(t *testing.T) {
	const token = mark + "of-a-test"
	begin := func(script string, env ...string) (*exec.Cmd, *bufio.Reader) {
		cmd := exec.Command("/bin/sh", "-c", script)
		cmd.Env = append(basicEnv, env...)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill() })
		r := bufio.NewReader(out)
		if line, err := r.ReadString('\n'); line != "ready\n" {
			t.Fatal(line, err)
		}
		return cmd, r
	}
	kill := func() error {
		cmd := exec.Command("/bin/sh", "-c", killScript, "sh", token)
		cmd.Env = basicEnv
		return cmd.Run()
	}
	bystander, _ := begin("echo ready; exec sleep 600")
	_, polite := begin(`trap "echo goodbye; exit" TERM; echo ready; while :; do sleep 0.05; done`, token)
	if err := kill(); err != nil {
		t.Errorf("who ends when asked: %v", err)
	}
	if line, err := polite.ReadString('\n'); line != "goodbye\n" {
		t.Errorf("who ends when asked says %q, %v", line, err)
	}
	stubborn, _ := begin(`trap "" TERM; echo ready; sleep 600 & while :; do sleep 600; done`, token)
	if err := kill(); err != nil {
		t.Errorf("who will not end: %v", err)
	}
	stubborn.Wait()
	if s := stubborn.ProcessState.String(); s != "signal: killed" {
		t.Errorf("who will not end: %s", s)
	}
	if err := bystander.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("one without the mark: %v", err)
	}
}

// TestCache: the package manager inside is told of the cache, whether it looks
// for updates or makes them.
func TestCache(t *testing.T) {
	f, err := parseFleet(nil, strings.Fields("update --all --updates-pending --cache http://192.0.2.1:3142 --env A=b"))
	if err != nil {
		t.Fatal(err)
	}
	a := &telling{}
	if err := f.filtered(f.update)(t.Context(), &guest{ask: a.ask}, &result{}); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(a.ran, " "), "pending list update list"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// telling is an environment whose package manager prints what it was called
// for, where it was told of the cache.
type telling struct {
	fake
	ran []string
}

func (a *telling) ask(command string, arguments, answer any) error {
	if p, ok := arguments.(program); ok && command == "guest-exec" {
		if slices.Contains(p.Env, "http_proxy=http://192.0.2.1:3142") && slices.Contains(p.Env, "A=b") {
			a.ran = append(a.ran, p.Arg[3])
		}
		p.Arg = append(slices.Clone(p.Arg[:3]), "print "+p.Arg[3]+" 1")
		arguments = p
	}
	return a.fake.ask(command, arguments, answer)
}
