package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// ssh is a client's command line. All of a machine's commands share the
// connection that connect opened: a new one costs a second of emulated
// cryptography.
func (v *VM) ssh(args ...string) []string {
	return append([]string{"ssh", "-F", "/dev/null", "-i", filepath.Join(v.image, "ssh_key"),
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
		"-o", "KexAlgorithms=curve25519-sha256", "-o", "IdentitiesOnly=yes", "-o", "ConnectTimeout=20",
		"-o", "ControlPath=" + filepath.Join(v.sockets, "ssh"), "-p", fmt.Sprint(v.Port)}, args...)
}

// connect opens the shared connection, as soon as the machine answers. ssh's
// own ControlPersist would leave a process behind that holds on to the standard
// error of whichever command came first.
func (v *VM) connect(ctx context.Context) error {
	for {
		ended, err := v.startMaster()
		if err != nil {
			return err
		}
		for connected := false; !connected; {
			select {
			case <-v.qemu.exited:
				v.disconnect()
				return v.qemu.err
			case <-ctx.Done():
				v.disconnect()
				return fmt.Errorf("the machine does not answer: %w", context.Cause(ctx))
			case <-ended: // refused: not up yet
				connected = true
				time.Sleep(250 * time.Millisecond)
			case <-time.After(20 * time.Millisecond):
				if exists(filepath.Join(v.sockets, "ssh")) {
					return nil
				}
			}
		}
	}
}

// startMaster starts the client that holds the connection. It makes its socket
// when it is logged in.
func (v *VM) startMaster() (ended chan struct{}, err error) {
	argv := v.ssh("-N", "-o", "ControlMaster=yes", "-o", "ServerAliveInterval=0", "root@127.0.0.1")
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if !v.kept {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	ended = make(chan struct{})
	started := make(chan error)
	go func() {
		// See launch.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
		close(ended)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("%w: integration/vm/install.sh installs what is missing", err)
	}
	v.master = func() {
		cmd.Process.Kill()
		<-ended
		os.Remove(filepath.Join(v.sockets, "ssh"))
	}
	return ended, nil
}

func (v *VM) disconnect() {
	switch {
	case v.master != nil:
		v.master()
	case v.sockets != "":
		argv := v.ssh("-O", "exit", "root@127.0.0.1")
		exec.Command(argv[0], argv[1:]...).Run()
	}
}

// Command prepares a shell command that will run as root in the machine; its
// standard streams and exit status are the command's own. When ctx ends only
// the client here is killed.
func (v *VM) Command(ctx context.Context, command string) *exec.Cmd {
	argv := v.ssh("root@127.0.0.1", "--", command)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.WaitDelay = 2 * time.Second
	return cmd
}

// Interactive prepares a command with a terminal, the login shell when it is "".
func (v *VM) Interactive(ctx context.Context, command string) *exec.Cmd {
	argv := v.ssh("-t", "root@127.0.0.1")
	if command != "" {
		argv = append(argv, "--", command)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd
}

// Run runs a shell command as root and returns its standard output. The error
// wraps an *exec.ExitError and ends with what it said on standard error.
func (v *VM) Run(ctx context.Context, command string) (string, error) {
	return v.run(v.Command(ctx, command), command)
}

func (v *VM) run(cmd *exec.Cmd, what string) (string, error) {
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	if err == nil {
		return out.String(), nil
	}
	if len(what) > 200 {
		what = what[:200] + "…"
	}
	err = fmt.Errorf("%s: %s: %w\n%s", v.Name, what, err, strings.TrimSpace(said.String()))
	if v.qemu != nil {
		select {
		case <-v.qemu.exited:
			err = errors.Join(err, v.qemu.err, errors.New("its console says: "+v.consoleTail()))
		default:
		}
	}
	return out.String(), err
}

// quote makes one word of a string for the shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Forward makes a UNIX socket of the machine one of this host and returns its
// path, for clients that run here. It ends with the machine.
func (v *VM) Forward(ctx context.Context, socket string) (string, error) {
	local := filepath.Join(v.sockets, filepath.Base(socket))
	argv := v.ssh("-O", "forward", "-o", "StreamLocalBindUnlink=yes", "-L", local+":"+socket, "root@127.0.0.1")
	_, err := v.run(exec.CommandContext(ctx, argv[0], argv[1:]...), "forward "+socket)
	return local, err
}
