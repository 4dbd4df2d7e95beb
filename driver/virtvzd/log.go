package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/journal"
)

// logger sends records to the configured outputs. Outputs and filters are
// strings in libvirt's form and can be changed while the daemon runs
// (virt-admin daemon-log-outputs, daemon-log-filters).
type logger struct {
	mu      sync.Mutex
	outputs []output
	filters []logFilter
	text    struct{ outputs, filters string }
	usual   string // outputs where none are named
}

// output is one place records go to, from a level on.
type output struct {
	level   slog.Level
	handler slog.Handler
	closer  io.Closer
}

// logFilter sets the level from which a component's records are kept.
type logFilter struct {
	level     slog.Level
	component string
}

// levels are libvirt's numbers.
var levels = map[string]slog.Level{"1": slog.LevelDebug, "2": slog.LevelInfo, "3": slog.LevelWarn, "4": slog.LevelError}

// newLog makes the log of the configuration; debug keeps everything.
func newLog(conf *config, debug bool) (*slog.Logger, *logger, error) {
	level := "2"
	if debug {
		level = "1"
	}
	l := &logger{usual: level + ":stderr"}
	if here, _ := journal.StderrIsJournalStream(); here {
		l.usual = level + ":journald"
	}
	if err := l.SetOutputs(conf.LogOutputs); err != nil {
		return nil, nil, fmt.Errorf("log_outputs: %w", err)
	}
	if err := l.SetFilters(conf.LogFilters); err != nil {
		return nil, nil, fmt.Errorf("log_filters: %w", err)
	}
	return slog.New(&logHandler{logger: l}), l, nil
}

// logMemory tells at each SIGUSR1 what the daemon itself needs.
func logMemory(ctx context.Context, log *slog.Logger) {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	defer signal.Stop(asked)
	for {
		select {
		case <-ctx.Done():
			return
		case <-asked:
		}
		var m runtime.MemStats
		runtime.GC() // what is not in use any more does not count
		runtime.ReadMemStats(&m)
		log.Info("memory", "heap", m.HeapAlloc, "objects", m.HeapObjects, "system", m.Sys, "goroutines", runtime.NumGoroutine())
	}
}

// Outputs gives the outputs in force.
func (l *logger) Outputs() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.outputs
}

// Filters gives the filters in force.
func (l *logger) Filters() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.filters
}

// SetOutputs replaces the outputs; on an error the old ones stay. None are the
// usual ones, as virt-admin(1) says.
func (l *logger) SetOutputs(text string) error {
	var list []output
	words := strings.Fields(text)
	if len(words) == 0 {
		words = strings.Fields(l.usual)
	}
	for _, word := range words {
		o, err := parseOutput(word)
		if err != nil {
			closeOutputs(list)
			return err
		}
		list = append(list, o)
	}
	l.mu.Lock()
	old := l.outputs
	l.outputs, l.text.outputs = list, strings.Join(words, " ")
	l.mu.Unlock()
	closeOutputs(old)
	return nil
}

func closeOutputs(list []output) {
	for _, o := range list {
		if o.closer != nil {
			o.closer.Close()
		}
	}
}

// parseOutput reads "LEVEL:stderr", "LEVEL:journald" or "LEVEL:file:/path".
func parseOutput(word string) (output, error) {
	number, place, _ := strings.Cut(word, ":")
	level, ok := levels[number]
	if !ok {
		return output{}, fmt.Errorf("%q has no level from 1 (debug) to 4 (error)", word)
	}
	options := &slog.HandlerOptions{Level: slog.LevelDebug}
	switch kind, path, _ := strings.Cut(place, ":"); {
	case kind == "stderr":
		return output{level: level, handler: slog.NewTextHandler(os.Stderr, options)}, nil
	case kind == "journald":
		return output{level: level, handler: journalHandler{}}, nil
	case kind == "file" && strings.HasPrefix(path, "/"):
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return output{}, err
		}
		return output{level, slog.NewTextHandler(f, options), f}, nil
	}
	return output{}, fmt.Errorf("%q is no output: use LEVEL:stderr, LEVEL:journald or LEVEL:file:/path", word)
}

// SetFilters replaces the filters; on an error the old ones stay.
func (l *logger) SetFilters(text string) error {
	var list []logFilter
	for _, word := range strings.Fields(text) {
		number, component, _ := strings.Cut(word, ":")
		level, ok := levels[number]
		if !ok || component == "" {
			return fmt.Errorf("%q is no filter: use LEVEL:component with a level from 1 (debug) to 4 (error)", word)
		}
		list = append(list, logFilter{level, component})
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.filters, l.text.filters = list, strings.Join(strings.Fields(text), " ")
	return nil
}

// logHandler is the slog side: attributes of a derived logger and the name
// of the component it belongs to.
type logHandler struct {
	logger    *logger
	component string
	attrs     []slog.Attr
}

func (h *logHandler) Enabled(_ context.Context, level slog.Level) bool {
	h.logger.mu.Lock()
	defer h.logger.mu.Unlock()
	for _, f := range h.logger.filters {
		if f.component == h.component {
			return level >= f.level
		}
	}
	return slices.ContainsFunc(h.logger.outputs, func(o output) bool { return level >= o.level })
}

func (h *logHandler) Handle(ctx context.Context, r slog.Record) error {
	r.AddAttrs(h.attrs...)
	h.logger.mu.Lock()
	outputs := slices.Clone(h.logger.outputs)
	h.logger.mu.Unlock()
	for _, o := range outputs {
		if r.Level >= o.level {
			o.handler.Handle(ctx, r)
		}
	}
	return nil
}

func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	next.attrs = append(slices.Clone(h.attrs), attrs...)
	for _, a := range attrs {
		if a.Key == "component" {
			next.component = a.Value.String()
		}
	}
	return &next
}

// WithGroup is not used: records stay flat, as the journal's fields are.
func (h *logHandler) WithGroup(string) slog.Handler { return h }

// journalHandler writes records with their attributes as journal fields.
type journalHandler struct{}

func (journalHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h journalHandler) WithAttrs([]slog.Attr) slog.Handler     { return h }
func (h journalHandler) WithGroup(string) slog.Handler          { return h }
func (journalHandler) Handle(_ context.Context, r slog.Record) error {
	message := r.Message
	fields := map[string]string{"SYSLOG_IDENTIFIER": "virtvzd"}
	r.Attrs(func(a slog.Attr) bool {
		value := a.Value.String()
		fields["VIRTVZD_"+strings.ToUpper(a.Key)] = value
		message += " " + a.Key + "=" + quoted(value)
		return true
	})
	return journal.Send(message, priority(r.Level), fields)
}

func quoted(value string) string {
	if value == "" || strings.ContainsAny(value, " \"\n\t") {
		return strconv.Quote(value)
	}
	return value
}

func priority(level slog.Level) journal.Priority {
	switch {
	case level >= slog.LevelError:
		return journal.PriErr
	case level >= slog.LevelWarn:
		return journal.PriWarning
	case level >= slog.LevelInfo:
		return journal.PriInfo
	}
	return journal.PriDebug
}
