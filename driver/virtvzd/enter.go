package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"virtvzd/runtime"
)

const enterUsage = `usage: virtvzd enter DOMAIN [COMMAND [ARGUMENT…]]`

// loginShell is what is there inside, bash or another.
const loginShell = `cd; if [ -x /bin/bash ]; then exec /bin/bash -l; fi; exec /bin/sh -l`

// enter is the command of that name: a shell as root inside, on this terminal,
// without a login. It needs no daemon, but root of the host.
func enter(_ context.Context, conf *config, args []string) error {
	if len(args) == 0 {
		return errors.New("a domain is missing\n" + enterUsage)
	}
	if info, err := os.Stdin.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return errors.New("standard input is no terminal: 'vzctl exec' runs commands without one")
	}
	uuid := args[0] // also of one that is not defined, but runs
	if id, err := definedUUID(conf, args[0]); err == nil {
		uuid = fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
	}
	command := args[1:]
	if len(command) == 0 {
		command = []string{"/bin/sh", "-c", loginShell}
	}
	status, err := runtime.Enter(conf.StateDir, conf.OCIRuntime, uuid, runtime.Command{Args: command,
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=" + os.Getenv("TERM")}})
	if err != nil {
		return fmt.Errorf("enter %s: %w", args[0], err)
	}
	os.Exit(status)
	return nil
}
