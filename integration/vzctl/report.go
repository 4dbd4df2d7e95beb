package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
)

// report is what vzctl fleet --json prints, once, at the end.
type report struct {
	Verb    string    `json:"verb"` // exec, update or copy
	Results []*result `json:"results"`
	Summary summary   `json:"summary"`
	Error   string    `json:"error,omitempty"` // why nothing was done at all
}

func (r report) print(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// result is of one environment. What does not apply is left out.
type result struct {
	Name   string `json:"name"`   // that of the domain; DOMAIN@URI where it occurs twice
	URI    string `json:"uri"`    // of the connection
	Domain string `json:"domain"` // its name there
	Status status `json:"status"`
	Reason string `json:"reason,omitempty"` // of a status other than ok, where no program gave it

	Exit   *int `json:"exit,omitempty"`   // of the program that ended
	Signal int  `json:"signal,omitempty"` // that ended it, instead

	Stdout       string  `json:"stdout,omitempty"`
	Stderr       string  `json:"stderr,omitempty"`
	Truncated    bool    `json:"truncated,omitempty"`     // there was more of what is told here
	StillRunning bool    `json:"still_running,omitempty"` // it could not be killed
	Seconds      float64 `json:"seconds"`

	Files    []string        `json:"files,omitempty"`    // copy: as they are called inside
	Changes  []packageChange `json:"changes,omitempty"`  // update
	Snapshot string          `json:"snapshot,omitempty"` // update --snapshot
	Reverted bool            `json:"reverted,omitempty"` // update --revert-failed

	down bool // skipped because of its state
}

// status of an environment.
type status string

const (
	ok          status = "ok"
	failed      status = "failed" // by exit, signal or reason
	timedOut    status = "timeout"
	interrupted status = "interrupted"
	skipped     status = "skipped"
)

// summary counts the results.
type summary struct {
	OK          int `json:"ok"`
	Failed      int `json:"failed"`
	Timeout     int `json:"timeout"`
	Interrupted int `json:"interrupted"`
	Skipped     int `json:"skipped"`
}

func count(results []*result) (s summary) {
	for _, r := range results {
		*map[status]*int{ok: &s.OK, failed: &s.Failed, timedOut: &s.Timeout, interrupted: &s.Interrupted, skipped: &s.Skipped}[r.Status]++
	}
	return s
}

// skip is the error of work that is not to be done, with why.
type skip string

func (s skip) Error() string { return string(s) }

func seconds(d time.Duration) float64 {
	return float64(d.Round(10*time.Millisecond)) / float64(time.Second)
}

// ended takes over what a program printed and how it ended; nil is nothing.
func (r *result) ended(e *ended) {
	if e == nil || !e.Exited {
		return
	}
	r.Stdout, r.Stderr = strings.ToValidUTF8(string(e.Out), "\uFFFD"), strings.ToValidUTF8(string(e.Err), "\uFFFD")
	r.Truncated = r.Truncated || e.OutTruncated || e.ErrTruncated
	r.Exit, r.Signal = nil, e.Signal
	if e.Signal == 0 && !e.Unknown {
		r.Exit = &e.ExitCode
	}
}

// byExit is the status by how the program ended.
func (r *result) byExit() status {
	if r.Signal != 0 || r.Exit != nil && *r.Exit != 0 {
		return failed
	}
	return ok
}

// settle gives the status by the error of the work.
func (r *result) settle(err error, ctx context.Context) {
	var no skip
	var s *stopped
	switch {
	case err == nil:
		r.Status = r.byExit()
	case errors.As(err, &no):
		r.Status, r.Reason = skipped, no.Error()
	case ctx.Err() != nil:
		r.Status, r.Reason = interrupted, "by a signal to vzctl"
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			r.Status, r.Reason = timedOut, "the time was over"
		}
		r.Exit, r.Signal = nil, 0 // that was us
		if errors.As(err, &s) && s.still {
			r.StillRunning = true
			r.Reason += ", and what runs could not be killed: vzctl exec or enter looks after it"
		} else if s != nil {
			r.Reason += ", what ran is killed"
		}
	default:
		r.Status, r.Reason = failed, printable(message(err))
	}
}

// bound keeps the first bytes of each stream.
func (r *result) bound(limit int) {
	for _, text := range []*string{&r.Stdout, &r.Stderr} {
		if len(*text) > limit {
			*text, r.Truncated = strings.ToValidUTF8((*text)[:limit], ""), true
		}
	}
}

// printable takes away what a terminal would obey.
func printable(line string) string {
	return strings.Map(func(c rune) rune {
		if c == '\t' || unicode.IsPrint(c) {
			return c
		}
		return '\uFFFD'
	}, line)
}

// reporter prints results as they come, and on a terminal what is being done.
// A line of an environment's own has a bar behind the name, so that none can
// be taken for a line about it.
type reporter struct {
	mu             sync.Mutex
	out, err       io.Writer
	verb           string
	json, terminal bool
	total, done    int
	busy           []string
}

func newReporter(f *fleet, out io.Writer, err *os.File, total int) *reporter {
	info, e := err.Stat()
	return &reporter{out: out, err: err, verb: f.verb, json: f.json, total: total, terminal: e == nil && info.Mode()&os.ModeCharDevice != 0}
}

func (p *reporter) begin(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy = append(p.busy, name)
	p.progress()
}

func (p *reporter) end(r *result) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done++
	p.busy = slices.DeleteFunc(p.busy, func(name string) bool { return name == r.Name })
	if p.terminal {
		fmt.Fprint(p.err, "\r\x1b[K")
	}
	if !p.json {
		p.print(r)
	}
	p.progress()
}

// progress is the last line of a terminal.
func (p *reporter) progress() {
	if p.terminal && p.done < p.total {
		line := []rune(fmt.Sprintf("%d of %d done: %s", p.done, p.total, strings.Join(p.busy, " ")))
		fmt.Fprintf(p.err, "\r\x1b[K%s", string(line[:min(len(line), 78)]))
	}
}

func (p *reporter) print(r *result) {
	var out, err bytes.Buffer
	if p.verb != "update" || r.Status != ok {
		prefixed(&out, r.Name, r.Stdout)
		prefixed(&err, r.Name, r.Stderr)
	}
	for _, c := range r.Changes {
		prefixed(&out, r.Name, c.String())
	}
	p.out.Write(out.Bytes())
	p.err.Write(err.Bytes())
	fmt.Fprintf(p.out, "%s: %s\n", r.Name, r.told())
}

func (c packageChange) String() string {
	switch {
	case c.Before == "":
		return c.Package + " " + c.After + " installed"
	case c.After == "":
		return c.Package + " " + c.Before + " removed"
	}
	return c.Package + " " + c.Before + " -> " + c.After
}

func prefixed(b *bytes.Buffer, name, text string) {
	if text == "" {
		return
	}
	for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
		fmt.Fprintf(b, "%s | %s\n", name, printable(strings.TrimSuffix(line, "\r")))
	}
}

// told is the line about a result.
func (r *result) told() string {
	words := []string{string(r.Status)}
	add := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	switch {
	case r.Signal != 0:
		add("signal %d", r.Signal)
	case r.Exit != nil && *r.Exit != 0:
		add("exit status %d", *r.Exit)
	}
	if r.Reason != "" {
		add("%s", r.Reason)
	}
	if len(r.Files) > 0 {
		add("%s", strings.Join(r.Files, " "))
	}
	if r.Truncated {
		add("there was more output")
	}
	if r.Snapshot != "" && !r.Reverted {
		add("snapshot %s", r.Snapshot)
	}
	if r.Reverted {
		add("reverted to %s and started", r.Snapshot)
	}
	if r.Status != skipped {
		add("%.1f s", r.Seconds)
	}
	return strings.Join(words, ", ")
}

// finish prints the summary, or the JSON.
func (p *reporter) finish(results []*result) error {
	sum := count(results)
	if p.json {
		return report{Verb: p.verb, Results: results, Summary: sum}.print(p.out)
	}
	parts := []string{fmt.Sprintf("%d ok", sum.OK)}
	for _, c := range []struct {
		n    int
		word status
	}{{sum.Failed, failed}, {sum.Timeout, timedOut}, {sum.Interrupted, interrupted}, {sum.Skipped, skipped}} {
		if c.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", c.n, c.word))
		}
	}
	noun := "environments"
	if len(results) == 1 {
		noun = "environment"
	}
	_, err := fmt.Fprintf(p.out, "%d %s: %s\n", len(results), noun, strings.Join(parts, ", "))
	return err
}
