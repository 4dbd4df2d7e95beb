// Command vm runs throw-away test machines by hand:
//
//	go run ./integration/vm/cmd/vm start a
//	go run ./integration/vm/cmd/vm push a bin/virtvzd /usr/sbin/virtvzd
//	go run ./integration/vm/cmd/vm ssh a virsh -c vz:///system list
//	go run ./integration/vm/cmd/vm stop a
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"virtvzd/integration/vm"
)

const usage = `usage: vm COMMAND …
  build                       make and boot the image, unless the cache has it
  start [-wire DIR:END] [-own-id] [-reboot] NAME
                              resume a copy; it runs until stop
  ssh NAME [COMMAND …]        run a command, or a login shell
  push NAME FILE… REMOTE      copy files or directories into it
  pull NAME REMOTE FILE       copy a file out of it
  console NAME                what it printed on its console
  list                        machines that run
  stop NAME…                  switch off and remove
`

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	err := run(ctx, os.Args[1:])
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		os.Exit(exit.ExitCode()) // the remote command's own
	default:
		fmt.Fprintln(os.Stderr, "vm:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	command, args := args[0], args[1:]
	switch {
	case command == "build" && len(args) == 0:
		return vm.Freeze(ctx)
	case command == "start":
		return start(ctx, args)
	case command == "list" && len(args) == 0:
		for _, name := range vm.Running() {
			fmt.Println(name)
		}
		return nil
	case command == "stop" && len(args) > 0:
		return stop(args)
	case len(args) == 0:
		return errors.New(usage)
	}
	m, err := vm.Open(args[0])
	if err != nil {
		return err
	}
	args = args[1:]
	switch {
	case command == "ssh" && len(args) == 0:
		return m.Interactive(ctx, "").Run()
	case command == "ssh":
		cmd := m.Command(ctx, strings.Join(args, " "))
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		return cmd.Run()
	case command == "push" && len(args) >= 2:
		return push(ctx, m, args[:len(args)-1], args[len(args)-1])
	case command == "pull" && len(args) == 2:
		return m.Pull(ctx, args[0], args[1])
	case command == "console" && len(args) == 0:
		data, err := os.ReadFile(m.Dir + "/console.log")
		os.Stdout.Write(data)
		return err
	}
	return errors.New(usage)
}

func start(ctx context.Context, args []string) error {
	o := vm.Options{Keep: true}
	flags := flag.NewFlagSet("start", flag.ContinueOnError)
	flags.BoolVar(&o.OwnID, "own-id", false, "give it a machine id of its own")
	flags.BoolVar(&o.Reboot, "reboot", false, "let it survive a reboot")
	flags.Func("wire", "`DIR:END`, END 1 or 2: join it to the other end's machine", func(s string) error {
		dir, end, _ := strings.Cut(s, ":")
		n, err := strconv.Atoi(end)
		o.Wire = &vm.WireEnd{Dir: dir, End: n}
		return err
	})
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New(usage)
	}
	_, err := vm.Start(ctx, flags.Arg(0), o)
	return err
}

func stop(names []string) error {
	for _, name := range names {
		m, err := vm.Open(name)
		if err != nil {
			return err
		}
		if err := m.Close(); err != nil {
			return err
		}
	}
	return nil
}

// push follows cp: several files, or a remote that ends in a slash, go into a
// directory.
func push(ctx context.Context, m *vm.VM, files []string, remote string) error {
	into := len(files) > 1 || strings.HasSuffix(remote, "/")
	for _, file := range files {
		to := remote
		if into {
			to = strings.TrimSuffix(remote, "/") + "/" + file[strings.LastIndexByte(file, '/')+1:]
		}
		if err := m.Push(ctx, file, to); err != nil {
			return err
		}
	}
	return nil
}
