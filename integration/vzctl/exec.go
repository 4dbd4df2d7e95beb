package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

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
	return inside(dom, []string{"-c", strings.Join(args, " ")}, nil)
}

// runScript runs a file of this host by the container's /bin/sh.
func runScript(_ *session, dom *libvirt.Domain, args []string) error {
	if len(args) != 1 {
		return failf(exitParameter, "the file of a script is needed")
	}
	f, err := os.Open(args[0])
	if err != nil {
		return failf(exitSystem, "%v", err)
	}
	defer f.Close()
	return inside(dom, []string{"-s"}, f)
}

// maxInput is what guest-exec takes with a frame of libvirt's to spare.
const maxInput = 1 << 20

// program is guest-exec's arguments.
type program struct {
	Path    string   `json:"path"`
	Arg     []string `json:"arg"`
	Env     []string `json:"env"`
	Input   []byte   `json:"input-data,omitempty"`
	Capture bool     `json:"capture-output"`
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
}

// inside runs /bin/sh as root of the container. Its output comes when it has
// ended, the first MiB of each stream.
func inside(dom *libvirt.Domain, args []string, input io.Reader) error {
	if active, err := dom.IsActive(); err != nil {
		return err
	} else if !active {
		return failf(exitStopped, "Container is not running")
	}
	p := program{Path: "/bin/sh", Arg: args, Capture: true,
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=" + os.Getenv("TERM")}}
	if input != nil {
		text, err := io.ReadAll(io.LimitReader(input, maxInput+1))
		if err != nil {
			return err
		}
		if len(text) > maxInput {
			return failf(exitValue, "the script has more than %d bytes", maxInput)
		}
		p.Input = text
	}
	var started struct{ Pid int }
	if err := agent(dom, "guest-exec", p, &started); err != nil {
		return err
	}
	var e ended
	for wait := 20 * time.Millisecond; !e.Exited; wait = min(2*wait, 500*time.Millisecond) {
		time.Sleep(wait)
		if err := agent(dom, "guest-exec-status", map[string]int{"pid": started.Pid}, &e); err != nil {
			return err
		}
	}
	os.Stdout.Write(e.Out)
	os.Stderr.Write(e.Err)
	if e.OutTruncated || e.ErrTruncated {
		os.Stderr.WriteString("vzctl: there was more output, which is lost\n")
	}
	if e.Signal != 0 {
		return exitCode(128 + e.Signal)
	}
	if e.ExitCode != 0 {
		return exitCode(e.ExitCode)
	}
	return nil
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
