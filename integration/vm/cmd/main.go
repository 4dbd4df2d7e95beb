// Command cmd handles throw-away test machines by hand, from the top of the
// tree: go run ./integration/vm/cmd.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"virtvzd/integration/vm"
)

const usage = `use: go run ./integration/vm/cmd COMMAND
  build                     make the image and boot it once; start does so too
  start NAME [FLAG…]        resume a machine that runs until stop
    -own-id                 with a machine id of its own
    -reboot                 rebooting it does not end it
    -wire DIR:END           join END 1 and END 2 of the directory by eth1
  install NAME              build this tree's daemon and install it there
  test NAME PACKAGE [ARG…]  run a package's tests, built with -tags vm, there
  ssh NAME [COMMAND…]       a shell or one command, as root
  push NAME LOCAL REMOTE    copy a file, or a directory's content, there
  pull NAME REMOTE LOCAL    copy a file from there
  console NAME              what it printed on its console
  list                      machines that run
  stop NAME                 switch off and throw away
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:])
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() > 0 && os.Args[1] == "ssh":
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

var errUsage = errors.New(usage)

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 1 && args[0] == "build":
		return vm.Freeze(ctx)
	case len(args) == 1 && args[0] == "list":
		fmt.Println(strings.Join(vm.Running(), "\n"))
		return nil
	case len(args) >= 2 && args[0] == "start":
		return start(ctx, args[1], args[2:])
	case len(args) < 2:
		return errUsage
	}
	m, err := vm.Open(args[1])
	if err != nil {
		return err
	}
	return with(ctx, m, args[0], args[2:])
}

func start(ctx context.Context, name string, args []string) error {
	o := vm.Options{Keep: true}
	flags := flag.NewFlagSet("start", flag.ContinueOnError)
	flags.Usage = func() {}
	flags.BoolVar(&o.OwnID, "own-id", false, "")
	flags.BoolVar(&o.Reboot, "reboot", false, "")
	flags.Func("wire", "", func(text string) (err error) {
		o.Wire, err = parseWire(text)
		return err
	})
	if err := flags.Parse(args); err != nil || flags.NArg() > 0 {
		return errUsage // flags has told what is wrong
	}
	m, err := vm.Start(ctx, name, o)
	if err == nil {
		fmt.Printf("%s runs; its disks and console.log are in %s\n", m.Name, m.Dir)
	}
	return err
}

// parseWire reads DIR:END and makes the directory.
func parseWire(text string) (*vm.WireEnd, error) {
	dir, end, _ := strings.Cut(text, ":")
	n, err := strconv.Atoi(end)
	if err != nil {
		return nil, errors.New("want DIR:1 or DIR:2")
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	return &vm.WireEnd{Dir: dir, End: n}, os.MkdirAll(dir, 0o700)
}

// with runs the commands that need a running machine.
func with(ctx context.Context, m *vm.VM, command string, args []string) error {
	switch {
	case command == "stop" && len(args) == 0:
		return m.Close()
	case command == "install" && len(args) == 0:
		return m.Install(ctx)
	case command == "test" && len(args) > 0:
		return m.TestPackage(ctx, os.Stdout, args[0], args[1:]...)
	case command == "ssh" && len(args) == 0:
		return m.Interactive(ctx, "").Run()
	case command == "ssh":
		cmd := m.Command(ctx, strings.Join(args, " "))
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		return cmd.Run()
	case command == "push" && len(args) == 2:
		return m.Push(ctx, args[0], args[1])
	case command == "pull" && len(args) == 2:
		return m.Pull(ctx, args[0], args[1])
	case command == "console" && len(args) == 0:
		text, err := os.ReadFile(m.Dir + "/console.log")
		os.Stdout.Write(text)
		return err
	}
	return errUsage
}
