// Package agent answers the commands of the QEMU guest agent for
// environments, with nothing installed inside: the daemon does what the agent
// would do in a virtual machine (qga/qapi-schema.json in QEMU's source tells
// what that is).
//
//	agent.go     a command, from its JSON to its answer
//	exec.go      programs: guest-exec
//	stream.go    their input and output while they run: verbs of our own
//	file.go      files: guest-file-*
//	system.go    what kind of system it is: guest-get-*, guest-network-*
//	freeze.go    its file systems stand still: guest-fsfreeze-*, guest-fstrim
//	account.go   passwords and authorized keys
package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"

	"virtvzd/runtime"
)

// Guest is a running environment.
type Guest interface {
	Exec(context.Context, runtime.Command) (syscall.WaitStatus, error)
	ExecKept(context.Context, runtime.Command, runtime.Kept) (syscall.WaitStatus, error)
	Kept() []runtime.Kept
	AwaitKept(ctx context.Context, number int) (syscall.WaitStatus, error)
	KeptOutput(number, output int) (body []byte, more bool, err error)
	ForgetKept(number int) error
	OpenFile(ctx context.Context, who runtime.Owner, name string, flags int, mode os.FileMode) (*runtime.File, error)
	ReadFile(ctx context.Context, who runtime.Owner, name string, limit int) ([]byte, error)
	ReadFiles(ctx context.Context, who runtime.Owner, name string, most, limit int) ([][]byte, error)
	ReplaceFile(ctx context.Context, who runtime.Owner, name string, body []byte, mode os.FileMode) error
	Account(ctx context.Context, name string) (runtime.Account, error)
	FilesystemSpace(ctx context.Context, point string) (total, used uint64, err error)
	Mounts(limit int) ([]runtime.Mount, error)
	Hostname() (string, error)
	CPUs() []int
	Memory() (current, limit uint64, err error)
	InsideLinks() ([]runtime.InsideLink, error)
	FreezeFilesystems(ctx context.Context, points []string) (int, error)
	ThawFilesystems(ctx context.Context, points []string) (int, error)
	FrozenFilesystems(context.Context) ([]string, error)
	TrimFilesystems(ctx context.Context, points []string, minimum uint64) ([]runtime.Trimmed, error)
}

// Agent is that of one environment, from its start to its end.
type Agent struct {
	guest Guest
	// shutdown asks init to "powerdown", "halt" or "reboot".
	shutdown func(ctx context.Context, mode string) error

	ctx  context.Context // ends with the environment
	stop context.CancelFunc

	mu        sync.Mutex
	last      int // the last handle given
	files     map[int]*openFile
	processes map[int]*process
}

// New makes the agent of an environment. It goes on with what was begun by that
// of an earlier daemon.
func New(guest Guest, shutdown func(ctx context.Context, mode string) error) *Agent {
	ctx, stop := context.WithCancel(context.Background())
	a := &Agent{guest: guest, shutdown: shutdown, ctx: ctx, stop: stop, files: map[int]*openFile{}, processes: map[int]*process{}}
	for _, k := range guest.Kept() {
		a.last = max(a.last, k.Number)
		a.run(k.Number, &process{}, func() (syscall.WaitStatus, error) { return guest.AwaitKept(ctx, k.Number) })
	}
	return a
}

// Close ends what still runs and closes what is open.
func (a *Agent) Close() {
	a.stop()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, f := range a.files {
		f.Close()
	}
	clear(a.files)
	clear(a.processes)
}

// command is a request in the agent's JSON.
type command struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
	ID        json.RawMessage `json:"id,omitempty"`
}

// Error is a command that failed, with what to tell of it.
type Error struct{ Command, Reason string }

func (e *Error) Error() string {
	return fmt.Sprintf("unable to execute QEMU agent command '%s': %s", e.Command, e.Reason)
}

// Do carries out a command and returns the answer, {"return": …}.
func (a *Agent) Do(ctx context.Context, text string) (string, error) {
	var c command
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return "", fmt.Errorf("the command is not the agent's JSON, such as {\"execute\":\"guest-ping\"}: %w", err)
	}
	value, err := a.Call(ctx, c.Execute, c.Arguments)
	if err != nil {
		return "", err
	}
	answer := struct {
		Return any             `json:"return"`
		ID     json.RawMessage `json:"id,omitempty"`
	}{value, c.ID}
	body, err := json.Marshal(answer)
	if err == nil && len(body) > maxAnswer {
		err = &Error{c.Execute, "the answer is too long"}
	}
	return string(body), err
}

// maxAnswer is what libvirt carries in a string.
const maxAnswer = 4 << 20

// Call carries out a command by its name.
func (a *Agent) Call(ctx context.Context, name string, arguments json.RawMessage) (any, error) {
	do, ok := commands()[name]
	if !ok {
		return nil, &Error{name, "The command " + name + " has not been found"}
	}
	value, err := any(nil), a.refuseFrozen(ctx, name)
	if err == nil {
		value, err = do(a, ctx, arguments)
	}
	var known *Error
	if err != nil && !errors.As(err, &known) {
		err = &Error{name, err.Error()}
	}
	return value, err
}

// handler is a command's function behind the decoding of its arguments.
type handler func(*Agent, context.Context, json.RawMessage) (any, error)

// with decodes arguments; those that a command does not have are an error.
func with[A any](do func(*Agent, context.Context, A) (any, error)) handler {
	return func(a *Agent, ctx context.Context, arguments json.RawMessage) (any, error) {
		var args A
		if len(arguments) > 0 {
			d := json.NewDecoder(bytes.NewReader(arguments))
			d.DisallowUnknownFields()
			if err := d.Decode(&args); err != nil {
				return nil, fmt.Errorf("its arguments are wrong: %w", err)
			}
		}
		return do(a, ctx, args)
	}
}

type none = struct{}

func commands() map[string]handler {
	return map[string]handler{
		"guest-ping":           with(func(*Agent, context.Context, none) (any, error) { return none{}, nil }),
		"guest-sync":           with(sync_),
		"guest-sync-delimited": with(sync_),
		"guest-info":           with(info),

		"guest-exec":        with((*Agent).exec),
		"guest-exec-status": with((*Agent).execStatus),
		streamWrite:         with((*Agent).execWrite),
		streamRead:          with((*Agent).execRead),

		"guest-file-open":  with((*Agent).fileOpen),
		"guest-file-close": with((*Agent).fileClose),
		"guest-file-read":  with((*Agent).fileRead),
		"guest-file-write": with((*Agent).fileWrite),
		"guest-file-seek":  with((*Agent).fileSeek),
		"guest-file-flush": with((*Agent).fileFlush),

		"guest-get-osinfo":             with((*Agent).osInfo),
		"guest-get-host-name":          with((*Agent).hostName),
		"guest-get-users":              with((*Agent).users),
		"guest-get-timezone":           with((*Agent).timezone),
		"guest-get-time":               with((*Agent).time),
		"guest-get-fsinfo":             with((*Agent).fsInfo),
		"guest-get-disks":              with(func(*Agent, context.Context, none) (any, error) { return []any{}, nil }),
		"guest-network-get-interfaces": with((*Agent).interfaces),
		"guest-get-vcpus":              with((*Agent).vcpus),
		"guest-get-load":               with((*Agent).load),
		"guest-get-memory-blocks":      with((*Agent).memoryBlocks),
		"guest-get-memory-block-info":  with((*Agent).memoryBlockInfo),

		"guest-fsfreeze-status":      with((*Agent).freezeStatus),
		"guest-fsfreeze-thaw":        with((*Agent).thaw),
		"guest-fsfreeze-freeze":      with((*Agent).freeze),
		"guest-fsfreeze-freeze-list": with((*Agent).freeze),
		"guest-fstrim":               with((*Agent).trim),

		"guest-set-user-password":          with((*Agent).setUserPassword),
		"guest-ssh-get-authorized-keys":    with((*Agent).getKeys),
		"guest-ssh-add-authorized-keys":    with((*Agent).addKeys),
		"guest-ssh-remove-authorized-keys": with((*Agent).removeKeys),

		"guest-shutdown": with((*Agent).shutDown),
	}
}

func sync_(_ *Agent, _ context.Context, args struct {
	ID int64 `json:"id"`
}) (any, error) {
	return args.ID, nil
}

// version is that of the agent whose commands these are.
const version = "8.2.0"

func info(*Agent, context.Context, none) (any, error) {
	type entry struct {
		Name            string `json:"name"`
		Enabled         bool   `json:"enabled"`
		SuccessResponse bool   `json:"success-response"`
	}
	var list []entry
	for _, name := range slices.Sorted(maps.Keys(commands())) {
		list = append(list, entry{name, true, name != "guest-shutdown"})
	}
	return map[string]any{"version": version, "supported_commands": list}, nil
}

func (a *Agent) shutDown(ctx context.Context, args struct {
	Mode string `json:"mode"`
}) (any, error) {
	switch args.Mode {
	case "":
		args.Mode = "powerdown"
	case "powerdown", "halt", "reboot":
	default:
		return nil, errors.New("mode is none of powerdown, halt and reboot")
	}
	return none{}, a.shutdown(ctx, args.Mode)
}

// handle is a number for something that is kept, and room for it. a.mu is held.
func (a *Agent) handle(have, most int, what string) (int, error) {
	if a.ctx.Err() != nil {
		return 0, errors.New("the environment has ended")
	}
	if have >= most {
		return 0, fmt.Errorf("%d %s, the limit is %d", have, what, most)
	}
	a.last++
	return a.last, nil
}
