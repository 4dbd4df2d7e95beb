package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

const fleetUsage = `usage: vzctl fleet exec   [OPTION…] [NAME…] -- COMMAND [ARGUMENT…]
       vzctl fleet update [OPTION…] [NAME…]
       vzctl fleet copy   [OPTION…] [NAME…] -- FILE… PATH
which environments: NAME with * ? [ ], --tag TAG, --template NAME, --updates-pending, --all
  Each kind that is given narrows the choice; one given again widens its own. Those that do not run are skipped.
how: --connect URI (again: several)  -P, --parallel N  --timeout TIME (0: none)  --output BYTES of each stream  --json
exec: --stdin FILE  --env K=V        update: --env K=V  --cache URL  --snapshot  --revert-failed
It ends with 0 when all is well, 8 when something failed in one of them, 14 when none is selected, 31 when none of the
selected runs, and 130 when it was interrupted.
`

// fleet is one call of vzctl fleet.
type fleet struct {
	verb     string
	uris     words
	selector selector
	parallel int
	timeout  time.Duration
	output   int
	json     bool

	stdin          string
	env            words
	cache          string
	snapshot       bool
	revertFailed   bool
	updatesPending bool

	args []string // behind --
}

// words is an option that may be repeated.
type words []string

func (w *words) String() string { return strings.Join(*w, " ") }

func (w *words) Set(value string) error {
	*w = append(*w, value)
	return nil
}

// Bounds of --parallel, and of --output: what guest-exec keeps is a MiB.
const (
	maxParallel   = 256
	defaultOutput = 64 << 10
	maxOutput     = 1 << 20
)

func parseFleet(uris []string, args []string) (*fleet, error) {
	if len(args) == 0 || !slices.Contains([]string{"exec", "update", "copy"}, args[0]) {
		return nil, failf(exitParameter, "%s", strings.TrimSuffix(fleetUsage, "\n"))
	}
	f := &fleet{verb: args[0], selector: selector{}}
	args = args[1:]
	behind := slices.Index(args, "--")
	if behind >= 0 {
		args, f.args = args[:behind], args[behind+1:]
	}
	o := flag.NewFlagSet("", flag.ContinueOnError)
	o.SetOutput(io.Discard)
	o.Var(&f.uris, "connect", "")
	o.Var(&f.uris, "c", "")
	o.IntVar(&f.parallel, "parallel", 8, "")
	o.IntVar(&f.parallel, "P", 8, "")
	timeout := 10 * time.Minute
	if f.verb == "update" {
		timeout = time.Hour
	}
	o.DurationVar(&f.timeout, "timeout", timeout, "")
	o.IntVar(&f.output, "output", defaultOutput, "")
	o.BoolVar(&f.json, "json", false, "")
	o.Var(&f.selector.tags, "tag", "")
	o.Var(&f.selector.templates, "template", "")
	o.BoolVar(&f.selector.all, "all", false, "")
	o.BoolVar(&f.updatesPending, "updates-pending", false, "")
	if f.verb == "exec" {
		o.StringVar(&f.stdin, "stdin", "", "")
	}
	if f.verb != "copy" {
		o.Var(&f.env, "env", "")
	}
	if f.verb == "update" {
		o.StringVar(&f.cache, "cache", "", "")
		o.BoolVar(&f.snapshot, "snapshot", false, "")
		o.BoolVar(&f.revertFailed, "revert-failed", false, "")
	}
	for {
		if err := o.Parse(args); err != nil {
			return nil, failf(exitParameter, "%v\n%s", err, strings.TrimSuffix(fleetUsage, "\n"))
		}
		if args = o.Args(); len(args) == 0 {
			break
		}
		f.selector.names, args = append(f.selector.names, args[0]), args[1:]
	}
	if len(f.uris) == 0 {
		f.uris = uris
	}
	f.snapshot = f.snapshot || f.revertFailed
	if err := f.check(behind >= 0); err != nil {
		return nil, err
	}
	if f.cache != "" {
		f.env = append(f.env, "http_proxy="+f.cache) // every package manager's downloads heed it
	}
	return f, nil
}

func (f *fleet) check(dashes bool) error {
	if f.parallel < 1 || f.parallel > maxParallel {
		return failf(exitValue, "--parallel is %d: 1 to %d are accepted", f.parallel, maxParallel)
	}
	if f.output < 0 || f.output > maxOutput {
		return failf(exitValue, "--output is %d: 0 to %d bytes are accepted", f.output, maxOutput)
	}
	if f.timeout < 0 {
		return failf(exitValue, "--timeout is %s: a time such as 90s or 10m is accepted, 0 for none", f.timeout)
	}
	for _, pair := range f.env {
		if name, _, ok := strings.Cut(pair, "="); !ok || name == "" {
			return failf(exitValue, "--env is %q: NAME=VALUE is accepted", pair)
		}
	}
	if u, err := url.Parse(f.cache); f.cache != "" && (err != nil || u.Scheme != "http" || u.Hostname() == "") {
		return failf(exitValue, "--cache is %q: the address of a proxy such as http://192.0.2.1:3142 is accepted", f.cache)
	}
	switch {
	case f.verb == "exec" && len(f.args) == 0:
		return failf(exitParameter, "the command is missing: it stands behind --")
	case f.verb == "copy" && len(f.args) < 2:
		return failf(exitParameter, "what to copy is missing: FILE… PATH stand behind --")
	case f.verb == "update" && dashes && len(f.args) > 0:
		return failf(exitParameter, "update has no arguments behind --")
	}
	if f.updatesPending && f.selector.empty() {
		f.selector.all = true
	}
	return f.selector.check()
}

// work is what a verb does to one environment. It tells by the result, and
// what is not an exit status of a program is its error.
type work func(context.Context, *guest, *result) error

func (f *fleet) work() (work, error) {
	switch f.verb {
	case "exec":
		return f.exec()
	case "copy":
		return f.copy()
	}
	return f.update, nil
}

func runFleet(uris, args []string) error {
	f, err := parseFleet(uris, args)
	if err != nil {
		return err
	}
	do, err := f.work()
	if err != nil {
		return f.nothing(os.Stdout, err)
	}
	guests, hosts, err := f.find()
	for _, h := range hosts {
		defer h.close()
	}
	if err != nil {
		return f.nothing(os.Stdout, err)
	}
	// The first Ctrl-C ends what runs; the next one ends this program. Two at
	// once are one: timeout(1) sends its signal to the child and to the group.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, func() { time.AfterFunc(time.Second, stop) })

	r := newReporter(f, os.Stdout, os.Stderr, len(guests))
	results := f.run(ctx, guests, f.filtered(do), r)
	if err := r.finish(results); err != nil {
		return err
	}
	return verdict(results, ctx.Err() != nil)
}

// nothing was done, because of err: who reads the JSON is told so by it.
func (f *fleet) nothing(out io.Writer, err error) error {
	if !f.json {
		return err
	}
	return errors.Join(err, report{Verb: f.verb, Results: []*result{}, Error: message(err)}.print(out))
}

// verdict is the exit status of a whole run.
func verdict(results []*result, interrupted bool) error {
	sum := count(results)
	switch {
	case interrupted:
		return exitCode(130)
	case !slices.ContainsFunc(results, func(r *result) bool { return !r.down }):
		return exitCode(exitStopped)
	case sum.OK+sum.Skipped < len(results):
		return exitCode(exitCommand)
	}
	return nil
}

// run does the work to all, some at a time. The results are in their order.
func (f *fleet) run(ctx context.Context, guests []*guest, do work, report *reporter) []*result {
	results := make([]*result, len(guests))
	turn, done := make(chan int), make(chan struct{})
	workers := min(f.parallel, len(guests))
	for range workers {
		go func() {
			for n := range turn {
				results[n] = f.one(ctx, guests[n], do, report)
			}
			done <- struct{}{}
		}()
	}
	for n := range guests {
		turn <- n
	}
	close(turn)
	for range workers {
		<-done
	}
	return results
}

// one does the work to one environment, and says what came of it.
func (f *fleet) one(ctx context.Context, g *guest, do work, report *reporter) *result {
	r := &result{Name: g.name, URI: g.uri, Domain: g.row.CTID}
	started := time.Now()
	switch {
	case g.row.Status != "running":
		r.Status, r.Reason, r.down = skipped, "it is "+g.row.Status, true
	case ctx.Err() != nil:
		r.Status, r.Reason = skipped, "the run was interrupted before its turn"
	default:
		report.begin(g.name)
		g.reconnect(ctx) // it may have waited for its turn for long
		limited, cancel := ctx, context.CancelFunc(func() {})
		if f.timeout > 0 {
			limited, cancel = context.WithTimeout(ctx, f.timeout)
		}
		r.settle(do(limited, g, r), limited)
		cancel()
		f.afterwards(g, r)
		r.Seconds = seconds(time.Since(started))
	}
	r.bound(f.output)
	report.end(r)
	return r
}

// exec runs the command as it stands, found by the PATH of the environment.
func (f *fleet) exec() (work, error) {
	var input []byte
	if f.stdin != "" {
		file, err := os.Open(f.stdin)
		if err != nil {
			return nil, failf(exitSystem, "--stdin cannot be read: %v", err)
		}
		defer file.Close()
		if input, err = io.ReadAll(io.LimitReader(file, maxInput+1)); err != nil {
			return nil, failf(exitSystem, "--stdin cannot be read: %v", err)
		}
		if len(input) > maxInput {
			return nil, failf(exitValue, "--stdin has more than %d bytes: copy it with vzctl fleet copy", maxInput)
		}
	}
	return func(ctx context.Context, g *guest, r *result) error {
		e, err := g.shell(ctx, `exec "$@"`, f.args, f.env, input)
		r.ended(e)
		return err
	}, nil
}

// names of those that are told, and what to do before the work.
func (f *fleet) filtered(do work) work {
	if !f.updatesPending {
		return do
	}
	return func(ctx context.Context, g *guest, r *result) error {
		e, err := g.packages(ctx, "pending", f.env)
		if err != nil {
			return fmt.Errorf("whether updates are pending cannot be told: %w", err)
		}
		if e.none() {
			return skip("it has no package manager that is known")
		}
		if !e.ok() {
			r.ended(e)
			return nil
		}
		if len(e.lines()) == 0 {
			return skip("no updates are pending")
		}
		return do(ctx, g, r)
	}
}

// afterwards is what has to be done whatever became of the time.
func (f *fleet) afterwards(g *guest, r *result) {
	if r.Status == ok || r.Status == skipped || !f.revertFailed || r.Snapshot == "" {
		return
	}
	g.reconnect(context.Background())
	if err := g.revert(r.Snapshot); err != nil {
		r.Reason = strings.TrimPrefix(cmp.Or(r.Reason, "")+"; reverting it failed: "+message(err), "; ")
		return
	}
	r.Reverted, r.Changes, r.StillRunning = true, nil, false
}
