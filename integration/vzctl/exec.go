package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirt"
)

// execute is vzctl exec, whose exit code only tells that the command failed.
func execute(s *session, dom *libvirt.Domain, args []string) error {
	err := execute2(s, dom, args)
	var code exitCode
	if errors.As(err, &code) {
		return exitCode(exitCommand)
	}
	return err
}

// execute2 ends as the command does.
func execute2(_ *session, dom *libvirt.Domain, args []string) error {
	if len(args) == 0 {
		return failf(exitParameter, "a command is needed, or - for commands from standard input")
	}
	if len(args) == 1 && args[0] == "-" {
		return inside(dom, []string{"-s"}, os.Stdin)
	}
	return inside(dom, []string{"-c", strings.Join(args, " ")}, standardInput())
}

// runScript runs a file of this host by the container's /bin/sh, which reads it
// from a file there that has no name any more: standard input is the script's.
func runScript(_ *session, dom *libvirt.Domain, args []string) error {
	if len(args) != 1 {
		return failf(exitParameter, "the file of a script is needed")
	}
	f, err := os.Open(args[0])
	if err != nil {
		return failf(exitSystem, "%v", err)
	}
	defer f.Close()
	if err := mustRun(dom, nil); err != nil {
		return err
	}
	to := "/tmp/.vzctl-" + rand.Text()
	if err := putFile(dom, f, to); err != nil {
		return errors.Join(err, inside(dom, []string{"-c", `rm -f "$1"`, "sh", to}, nil))
	}
	return inside(dom, []string{"-c", `exec 9<"$1" && rm -f "$1" && exec /bin/sh /proc/self/fd/9`, "sh", to}, standardInput())
}

// putFile makes a file inside, for root alone.
func putFile(dom *libvirt.Domain, from io.Reader, to string) error {
	var handle int
	if err := agent(dom, "guest-file-open", map[string]string{"path": to, "mode": "w"}, &handle); err != nil {
		return err
	}
	err := feed(from, func(body []byte, _ bool) (taken int, over bool, err error) {
		var wrote struct{ Count int }
		err = agent(dom, "guest-file-write", map[string]any{"handle": handle, "buf-b64": body}, &wrote)
		if err == nil && wrote.Count == 0 && len(body) > 0 {
			err = errors.New("nothing more could be written")
		}
		return wrote.Count, false, err
	})
	return errors.Join(err, agent(dom, "guest-file-close", map[string]int{"handle": handle}, &struct{}{}))
}

// standardInput is that of this program, unless somebody would have to type it.
func standardInput() io.Reader {
	if _, err := unix.IoctlGetTermios(0, unix.TCGETS); err == nil || errors.Is(err, unix.EBADF) {
		return nil
	}
	return os.Stdin
}

// program is guest-exec's arguments. Stream is virtvzd's own, see
// driver/agent/stream.go.
type program struct {
	Path    string   `json:"path"`
	Arg     []string `json:"arg"`
	Env     []string `json:"env"`
	Input   []byte   `json:"input-data,omitempty"`
	Capture bool     `json:"capture-output"`
	Stream  bool     `json:"__org.virtvzd_stream,omitempty"`
}

// ended is guest-exec-status's answer.
type ended struct {
	Exited       bool
	ExitCode     int
	Signal       int
	Out          []byte `json:"out-data"`
	Err          []byte `json:"err-data"`
	OutTruncated bool   `json:"out-truncated"`
	ErrTruncated bool   `json:"err-truncated"`
	Unknown      bool   `json:"-"` // it has neither exit status nor signal
}

// inside runs /bin/sh as root of the container. Its input and output go through
// as they come, and it is killed when this program ends before.
func inside(dom *libvirt.Domain, args []string, input io.Reader) error {
	if err := mustRun(dom, nil); err != nil {
		return err
	}
	ask := func(command string, arguments, answer any) error { return agent(dom, command, arguments, answer) }
	e, err := relay(ask, program{Path: "/bin/sh", Arg: args, Env: append([]string{"TERM=" + os.Getenv("TERM")}, basicEnv...)},
		input, os.Stdout, os.Stderr)
	if err != nil {
		return err
	}
	if e.Signal != 0 {
		return exitCode(128 + e.Signal)
	}
	if e.ExitCode != 0 {
		return exitCode(e.ExitCode)
	}
	return nil
}

// relay runs a program between an input, or none, and two outputs. When it
// returns, nothing is asked any more: what it asks is the caller's to close.
func relay(ask func(command string, arguments, answer any) error, p program, input io.Reader, out, errs io.Writer) (*ended, error) {
	var started struct{ Pid int }
	p.Stream = true
	if err := ask("guest-exec", p, &started); err != nil {
		return nil, err
	}
	if input == nil {
		input = strings.NewReader("")
	}
	fed := make(chan error, 1)
	var asking sync.Mutex
	over := false
	defer func() {
		asking.Lock()
		over = true
		asking.Unlock()
	}()
	go func() { // which may read the input for ever
		fed <- feed(input, func(body []byte, end bool) (int, bool, error) {
			asking.Lock()
			defer asking.Unlock()
			if over {
				return 0, true, nil
			}
			var wrote struct {
				Count int
				EOF   bool
			}
			err := ask("__org.virtvzd_guest-exec-write", map[string]any{"pid": started.Pid, "buf-b64": body, "end": end}, &wrote)
			return wrote.Count, wrote.EOF, err
		})
	}()
	for {
		var e ended
		if err := ask("__org.virtvzd_guest-exec-read", map[string]int{"pid": started.Pid}, &e); err != nil {
			return nil, err
		}
		if err := errors.Join(pass(out, e.Out), pass(errs, e.Err)); err != nil {
			return nil, err
		}
		if e.Exited {
			return &e, nil
		}
		select {
		case err := <-fed:
			if err != nil {
				return nil, err
			}
		default:
		}
	}
}

// pass writes what there is.
func pass(to io.Writer, body []byte) (err error) {
	if len(body) > 0 {
		_, err = to.Write(body)
	}
	return err
}

// maxInput is given at once, with a frame of libvirt's to spare.
const maxInput = 256 << 10

// feed gives all of an input to write, which takes as much as it can, until it
// says that it is over. The last time, it is given nothing.
func feed(from io.Reader, write func(body []byte, end bool) (taken int, over bool, err error)) error {
	buf := make([]byte, maxInput)
	for {
		n, err := from.Read(buf)
		for body := buf[:n]; len(body) > 0; {
			taken, over, err := write(body, false)
			if err != nil || over {
				return err
			}
			if taken < 0 || taken > len(body) {
				return errors.New("more was taken than was given")
			}
			body = body[taken:]
		}
		if errors.Is(err, io.EOF) {
			_, _, err := write(nil, true)
			return err
		}
		if err != nil {
			return failf(exitSystem, "%v", err)
		}
	}
}

// agent asks the daemon, which answers for an agent inside.
func agent(dom *libvirt.Domain, command string, arguments, answer any) error {
	request, err := json.Marshal(map[string]any{"execute": command, "arguments": arguments})
	if err != nil {
		return err
	}
	text, err := dom.QemuAgentCommand(string(request), libvirt.DOMAIN_QEMU_AGENT_COMMAND_DEFAULT, 0)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(text), &struct{ Return any }{answer})
}

// enter is a shell as root of the container, without a login. It is given by
// virtvzd itself, for no libvirt call has a terminal and an owner inside.
func enter(s *session, dom *libvirt.Domain, args []string) error {
	if err := mustRun(dom, args); err != nil {
		return err
	}
	if !s.local() {
		return failf(exitSystem, "enter works on the container's own host: ssh -t HOST vzctl enter …, or vzctl console here")
	}
	id, err := dom.GetUUIDString()
	if err != nil {
		return err
	}
	path := virtvzdPath()
	return syscall.Exec(path, []string{path, "enter", id}, os.Environ())
}

// console is a login of the container's own.
func console(s *session, dom *libvirt.Domain, args []string) error {
	if err := mustRun(dom, args); err != nil {
		return err
	}
	name, err := dom.GetName()
	if err != nil {
		return err
	}
	virsh, err := exec.LookPath("virsh")
	if err != nil {
		return failf(exitSystem, "virsh is missing, which connects to the console: install libvirt-clients")
	}
	return syscall.Exec(virsh, []string{"virsh", "-c", s.uri, "console", "--domain", name}, os.Environ())
}

func mustRun(dom *libvirt.Domain, args []string) error {
	if _, err := parseOptions(args, nil, nil); err != nil {
		return err
	}
	if active, err := dom.IsActive(); err != nil {
		return err
	} else if !active {
		return failf(exitStopped, "Container is not running")
	}
	return nil
}
