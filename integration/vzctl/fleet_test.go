package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"libvirt.org/go/libvirtxml"
)

// hosts are environments on two of them.
func hosts() []*guest {
	var all []*guest
	for _, w := range []struct {
		uri, name, title, template, status, tags string
	}{
		{"vz:///system", "web1", "shop", "debian13@0123abcd", "running", "prod,web"},
		{"vz:///system", "web2", "", "busybox", "running", "web"},
		{"vz:///system", "db1", "", "debian13", "stopped", "prod"},
		{"vz+ssh://two/system", "web1", "", "busybox", "paused", ""},
	} {
		r := &row{CTID: w.name, Name: w.title, OSTemplate: w.template, Status: w.status}
		if w.tags != "" {
			r.Tags = strings.Split(w.tags, ",")
		}
		all = append(all, &guest{row: r, uri: w.uri})
	}
	return all
}

// TestSelect: who is chosen by a command line, and under what names.
func TestSelect(t *testing.T) {
	for args, want := range map[string]string{
		"--all":                              "db1 web1@vz+ssh://two/system web1@vz:///system web2",
		"web*":                               "web1@vz+ssh://two/system web1@vz:///system web2",
		"shop":                               "web1",
		"web[2-9] db?":                       "db1 web2",
		"--tag prod":                         "db1 web1",
		"--tag prod --tag web":               "db1 web1 web2",
		"--tag prod web*":                    "web1",
		"--template debian13":                "db1 web1",
		"--template debian13@* --all":        "web1",
		"web1 --parallel 2 --tag=web shop":   "web1",
		"--updates-pending --template busy*": "web1 web2",
		"--updates-pending":                  "db1 web1@vz+ssh://two/system web1@vz:///system web2",
		"":                                   "no environment is selected",
		"web9":                               `no environment is called "web9"`,
		"web1 nobody*":                       `no environment is called "nobody*"`,
		"--tag nothing":                      "the selection is empty: of 4 environments none fits it",
		"web2 --tag prod":                    "the selection is empty",
		"[":                                  "is not a pattern",
	} {
		got := ""
		f, err := parseFleet([]string{"vz:///system"}, append(append([]string{"exec"}, strings.Fields(args)...), "--", "true"))
		if err == nil {
			var chosen []*guest
			chosen, err = f.selector.choose(hosts())
			var names []string
			for _, g := range chosen {
				names = append(names, g.name)
			}
			got = strings.Join(names, " ")
		}
		if err != nil {
			if got = err.Error(); !strings.Contains(got, want) {
				t.Errorf("%s: %s, want %s", args, got, want)
			}
		} else if got != want {
			t.Errorf("%s: %s, want %s", args, got, want)
		}
	}
}

func TestFleetRefused(t *testing.T) {
	for args, want := range map[string]int{
		"": exitParameter, "dance --all": exitParameter, "exec --all": exitParameter, "exec --all --": exitParameter,
		"copy --all -- one": exitParameter, "update --all -- x": exitParameter, "copy --all --env A=b -- one /two": exitParameter,
		"exec --all --parallel 0 -- true": exitValue, "exec --all --output -1 -- true": exitValue, "exec --all --timeout -1s -- true": exitValue,
		"update --all --cache 192.0.2.1:3142": exitValue, "update --all --cache https://192.0.2.1": exitValue, "exec --all --cache http://192.0.2.1 -- true": exitParameter,
		"exec --all --env A -- true": exitValue, "exec -- true": exitNoConfig, "exec --all --nonsense -- true": exitParameter,
	} {
		_, err := parseFleet(nil, strings.Fields(args))
		if err == nil || codeOf(err) != want {
			t.Errorf("%s: %v, want the code %d", args, err, want)
		}
	}
}

func TestTags(t *testing.T) {
	got, _, err := options{"tag": {"a,b", "c,a"}}.edit(`<ve><hostname>h</hostname><tag>old</tag></ve>`)
	if want := `<ve><hostname>h</hostname><tag>a</tag><tag>b</tag><tag>c</tag></ve>`; err != nil || got != want {
		t.Errorf("%s %v, want %s", got, err, want)
	}
	got, changed, err := options{"tag": {""}}.edit(got)
	if want := `<ve><hostname>h</hostname></ve>`; err != nil || got != want || !changed {
		t.Errorf("%s %v, want %s", got, err, want)
	}
	for _, bad := range []string{"a b", "*", "-x", "<x>"} {
		if _, _, err := (options{"tag": {bad}}).edit(""); err == nil {
			t.Errorf("the tag %q is accepted", bad)
		}
	}
	def := &libvirtxml.Domain{}
	if err := def.Unmarshal(`<domain><metadata><v:ve xmlns:v='http://virtvzd.org/ve/1.0'><v:tag>a</v:tag><v:tag>b</v:tag></v:ve></metadata></domain>`); err != nil {
		t.Fatal(err)
	}
	if tags := rowOf(def).Tags; strings.Join(tags, " ") != "a b" {
		t.Errorf("tags %q", tags)
	}
}

// fake is an agent whose programs do what their first argument says: "exit 3",
// "print TEXT", "hang" until they are killed.
type fake struct {
	mu       sync.Mutex
	last     int
	programs map[int]string
	killed   bool
	env      []string
}

func (a *fake) ask(command string, arguments, answer any) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch command {
	case "guest-exec":
		p := arguments.(program)
		what := strings.Join(p.Arg[3:], " ")
		if p.Arg[1] == killScript {
			what, a.killed = "exit 0", true
		} else {
			a.env = p.Env
		}
		a.last++
		if a.programs == nil {
			a.programs = map[int]string{}
		}
		a.programs[a.last] = what
		return into(answer, fmt.Sprintf(`{"pid":%d}`, a.last))
	case "guest-exec-status":
		what := a.programs[arguments.(map[string]int)["pid"]]
		e := map[string]any{"exited": true, "exitcode": 0}
		verb, rest, _ := strings.Cut(what, " ")
		switch {
		case what == "hang" && a.killed:
			e["signal"], e["out-data"] = 9, []byte("so far\n")
		case verb == "hang":
			e = map[string]any{"exited": false}
		case verb == "exit":
			e["exitcode"] = json.RawMessage(rest)
		case verb == "print":
			e["out-data"] = []byte(rest)
		}
		text, err := json.Marshal(e)
		if err != nil {
			return err
		}
		return into(answer, string(text))
	}
	return errors.New("the agent has no " + command)
}

func into(answer any, text string) error { return json.Unmarshal([]byte(text), answer) }

// TestFleetJSON: the shape that is documented, and lines, of all that can
// become of an environment.
func TestFleetJSON(t *testing.T) {
	f := &fleet{verb: "exec", parallel: 2, output: 16, timeout: time.Hour}
	var guests []*guest
	programs := map[string]string{
		"a": "exit 0", "b": "exit 3", "c": "print a line\x1b[2J\nand more than sixteen bytes\n", "d": "hang", "e": "off", "f": "broken",
	}
	for name := range programs {
		guests = append(guests, &guest{row: &row{CTID: name, Status: "running"}, uri: "vz:///system", ask: (&fake{}).ask})
		g := guests[len(guests)-1]
		if name == "e" {
			g.row.Status = "stopped"
		}
		if name == "f" {
			g.ask = func(string, any, any) error { return errors.New("the host\nis gone") }
		}
	}
	guests, err := (&selector{all: true}).choose(guests)
	if err != nil {
		t.Fatal(err)
	}
	do := func(ctx context.Context, g *guest, r *result) error {
		if g.name == "d" { // its time is over from the start
			late, cancel := context.WithDeadline(ctx, time.Now())
			defer cancel()
			e, err := g.shell(late, "", []string{programs[g.name]}, nil, nil)
			r.ended(e)
			r.settle(err, late)
			return skip(r.Reason)
		}
		e, err := g.shell(ctx, "", []string{programs[g.name]}, nil, nil)
		r.ended(e)
		return err
	}
	var plain, shape bytes.Buffer
	results := f.run(t.Context(), guests, do, &reporter{out: &plain, err: &plain, verb: "exec", json: true})
	for _, r := range results {
		r.Seconds = 0.1
		if r.Name == "d" {
			r.Status = timedOut
		}
	}
	lines := &reporter{out: &plain, err: &plain, verb: "exec"}
	for _, r := range results {
		lines.print(r)
	}
	if err := lines.finish(results); err != nil {
		t.Fatal(err)
	}
	if err := (&reporter{out: &shape, verb: "exec", json: true}).finish(results); err != nil {
		t.Fatal(err)
	}
	golden(t, "fleet.golden", plain.String()+"----\n"+shape.String())
	current := &result{} // nothing is to be done to it
	current.settle(skip("no updates are pending"), t.Context())
	for _, c := range []struct {
		wanted int
		list   []*result
	}{
		{0, results[:1]}, {exitCommand, results[:2]}, {exitStopped, results[4:5]}, {0, []*result{current}}, {0, []*result{current, results[4]}},
	} {
		var code exitCode
		if errors.As(verdict(c.list, false), &code); int(code) != c.wanted {
			t.Errorf("ends with %d, want %d", code, c.wanted)
		}
	}
	if verdict(results, true) != exitCode(130) {
		t.Error("an interruption is not told")
	}
}

// TestFleetNothing: also who is not told of any environment can read the JSON.
func TestFleetNothing(t *testing.T) {
	for args, want := range map[string]string{
		"exec -c test:///default --tag nobody -- true":      "the selection is empty: of 1 environments none fits it",
		"exec -c test:///no/such/file --all -- true":        "test:///no/such/file: ",
		"exec -c test:///default --all --stdin /no -- true": "--stdin cannot be read: ",
		"copy -c test:///default --all -- /no /srv":         "/no",
	} {
		printed, ended := stdout(t, func() error {
			return runFleet(nil, append(strings.Fields(args)[:1:1], append([]string{"--json"}, strings.Fields(args)[1:]...)...))
		})
		var got report
		if err := json.Unmarshal([]byte(printed), &got); err != nil || got.Results == nil || !strings.Contains(got.Error, want) || got.Summary != (summary{}) {
			t.Errorf("%s: %v, %q", args, err, printed)
		}
		if code := codeOf(ended); code == 0 || ended == nil {
			t.Errorf("%s: ends with %v", args, ended)
		}
	}
}

// stdout is what do prints there.
func stdout(t *testing.T, do func() error) (string, error) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "stdout"))
	if err != nil {
		t.Fatal(err)
	}
	defer func(was *os.File) { os.Stdout = was }(os.Stdout)
	os.Stdout = f
	ended := do()
	f.Close()
	text, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(text), ended
}

// TestFleetParallel: as many at once as are allowed, and no more.
func TestFleetParallel(t *testing.T) {
	for _, c := range []struct{ parallel, guests int }{{1, 5}, {3, 12}, {8, 2}} {
		var guests []*guest
		for n := range c.guests {
			guests = append(guests, &guest{name: fmt.Sprint(n), row: &row{CTID: fmt.Sprint(n), Status: "running"}})
		}
		want := min(c.parallel, c.guests)
		var mu sync.Mutex
		now, most, all := 0, 0, make(chan bool)
		do := func(context.Context, *guest, *result) error {
			mu.Lock()
			if now++; now > most {
				if most = now; most == want {
					close(all)
				}
			}
			mu.Unlock()
			<-all // nobody ends before all have begun that may, nor at once
			time.Sleep(5 * time.Millisecond)
			mu.Lock()
			defer mu.Unlock()
			now--
			return nil
		}
		f := &fleet{verb: "exec", parallel: c.parallel}
		results := f.run(t.Context(), guests, do, &reporter{out: &bytes.Buffer{}, err: &bytes.Buffer{}})
		if most != want || count(results).OK != c.guests {
			t.Errorf("%d of %d at once, %d did it, want %d", most, c.guests, count(results).OK, want)
		}
	}
}

// TestStopped: what has no time left is killed, and what cannot be is told.
func TestStopped(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a, r := &fake{}, &result{}
	e, err := (&guest{ask: a.ask}).shell(ctx, "", []string{"hang"}, []string{"A=b"}, nil)
	r.ended(e)
	r.settle(err, ctx)
	if r.Status != interrupted || r.StillRunning || r.Stdout != "so far\n" || !a.killed {
		t.Errorf("%+v", r)
	}
	if !strings.Contains(strings.Join(a.env, " "), "A=b "+mark) {
		t.Errorf("the environment is %q", a.env)
	}
	r = &result{}
	r.settle(&stopped{ctx.Err(), true}, ctx)
	if !r.StillRunning || !strings.Contains(r.Reason, "could not be killed") {
		t.Errorf("%+v", r)
	}
}

// TestEndUnknown: what a daemon started that was restarted meanwhile did not end
// well, whatever it may have done.
func TestEndUnknown(t *testing.T) {
	ask := func(command string, _, answer any) error {
		if command == "guest-exec" {
			return into(answer, `{"pid":1}`)
		}
		return into(answer, `{"exited":true,"out-data":"ZG9uZQo="}`)
	}
	f, r := &fleet{args: []string{"true"}}, &result{}
	do, err := f.exec()
	if err != nil {
		t.Fatal(err)
	}
	r.settle(do(t.Context(), &guest{ask: ask}, r), t.Context())
	if r.Status != failed || r.Exit != nil || r.Stdout != "done\n" || !strings.Contains(r.Reason, "how it ended is not known") {
		t.Errorf("%+v", r)
	}
}

func TestChanged(t *testing.T) {
	before := installed([]string{"a:amd64 1", "b 1", "kernel 1", "kernel 2", "nonsense", "evil\x1b 1"})
	after := installed([]string{"a:amd64 2", "c 1", "kernel 1", "kernel 2", "kernel 3", "evil\x1b 1"})
	var got []string
	for _, c := range changed(before, after) {
		got = append(got, c.String())
	}
	want := "a:amd64 1 -> 2; b 1 removed; c 1 installed; kernel 1, 2 -> 1, 2, 3"
	if strings.Join(got, "; ") != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// files is an agent with the files and programs of this host, whose disk takes
// less than it is given.
type files struct {
	fake
	t     *testing.T
	open  *os.File
	ended ended
}

func (a *files) ask(command string, arguments, answer any) (err error) {
	switch command {
	case "guest-file-open":
		a.open, err = os.Create(arguments.(map[string]string)["path"])
		return errors.Join(err, into(answer, "7"))
	case "guest-file-write":
		body := arguments.(map[string]any)["buf-b64"].([]byte)
		n, err := a.open.Write(body[:min(len(body), chunk-1)])
		return errors.Join(err, into(answer, fmt.Sprintf(`{"count":%d}`, n)))
	case "guest-file-flush":
		return nil
	case "guest-file-close":
		return a.open.Close()
	case "guest-exec":
		p := arguments.(program)
		var out, errs bytes.Buffer
		e, err := relay(asker(a.t), program{Path: p.Path, Arg: p.Arg, Env: p.Env}, nil, &out, &errs)
		if err != nil {
			return err
		}
		a.ended = ended{Exited: true, ExitCode: e.ExitCode, Out: out.Bytes(), Err: errs.Bytes()}
		return into(answer, `{"pid":1}`)
	case "guest-exec-status":
		text, err := json.Marshal(map[string]any{"exited": true, "exitcode": a.ended.ExitCode, "out-data": a.ended.Out, "err-data": a.ended.Err})
		return errors.Join(err, into(answer, string(text)))
	}
	return a.fake.ask(command, arguments, answer)
}

func TestCopy(t *testing.T) {
	here, there := t.TempDir(), t.TempDir()
	path := filepath.Join(here, "file")
	content := bytes.Repeat([]byte("0123456789"), chunk/8)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o751); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(there, "taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(there, "full", "file"), 0o700); err != nil {
		t.Fatal(err)
	}
	for to, want := range map[string]struct{ file, says string }{
		"/to":    {"/to", ""},
		"":       {"/file", ""},
		"/taken": {"/taken/file", ""},
		"/full":  {"", there + "/full/file is a directory: "}, // where a directory has the file's name
	} {
		do, err := (&fleet{args: []string{path, there + to}}).copy()
		if err != nil {
			t.Fatal(err)
		}
		a, r := &files{t: t}, &result{}
		err = do(t.Context(), &guest{ask: a.ask}, r)
		r.settle(err, t.Context())
		if want.file == "" {
			left, err := os.ReadDir(filepath.Join(there, to, "file"))
			if r.Status != failed || !strings.HasPrefix(r.Stderr, want.says) || len(r.Files) > 0 || err != nil || len(left) > 0 {
				t.Errorf("to %s: %+v, %v, %v", to, r, left, err)
			}
			continue
		}
		body, err := os.ReadFile(there + want.file)
		if err != nil || r.Status != ok || strings.Join(r.Files, " ") != there+want.file || !bytes.Equal(body, content) {
			t.Errorf("to %s: %+v, %v, %d bytes of %d", to, r, err, len(body), len(content))
		}
		if info, err := os.Stat(there + want.file); err != nil || info.Mode() != 0o751 {
			t.Errorf("to %s: %v, %v", to, info, err)
		}
	}
	for _, dir := range []string{"", "taken", "full"} {
		if left, err := filepath.Glob(filepath.Join(there, dir, ".vzctl-*")); err != nil || len(left) > 0 {
			t.Errorf("%v are left (%v)", left, err)
		}
	}
	for _, args := range [][]string{{path, "relative"}, {t.TempDir(), "/to"}, {"/dev/null", "/to"}, {path + "-missing", "/to"}} {
		if _, err := (&fleet{args: args}).copy(); err == nil {
			t.Errorf("copying %q is accepted", args)
		}
	}
	do, err := (&fleet{args: []string{path, there}}).copy()
	if err != nil {
		t.Fatal(err)
	}
	if err := do(t.Context(), &guest{ask: (&fake{}).ask}, &result{}); err == nil {
		t.Error("an agent without files has got one")
	}
}
