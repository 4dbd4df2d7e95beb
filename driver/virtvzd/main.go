// Virtvzd is the daemon: it answers libvirt's clients on its sockets and
// runs environments for them.
//
//	virtvzd                               serve (what the systemd unit runs)
//	virtvzd template import NAME SOURCE   make a template of a tar, directory or image
//	virtvzd template build NAME [FILE]    make one from a distribution's packages
//	virtvzd template list|show|rm|…       see templateUsage
//	virtvzd root list|clone|adopt|rm      disks of environments, see rootUsage
//	virtvzd enter DOMAIN [COMMAND…]       a shell as root inside
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"virtvzd/runtime"
)

// version is set by the Makefile.
var version = "0-dev"

const defaultConfig = "/etc/libvirt/virtvzd.conf"

const usage = `usage: virtvzd [--config FILE] [--debug]
       virtvzd template import|build|update|list|show|rm|prune …
       virtvzd root list|clone|adopt|rm …
       virtvzd enter DOMAIN
       virtvzd --version
`

func main() {
	// A child that prepares an environment's root is this same binary.
	if runtime.Stub() {
		return
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "virtvzd:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("virtvzd", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(flags.Output(), usage) }
	configFile := flags.String("config", "", "")
	debug := flags.Bool("debug", false, "")
	showVersion := flags.Bool("version", false, "")
	if err := flags.Parse(args); err != nil {
		if err == flag.ErrHelp {
			return nil
		}
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	conf, err := loadConfig(*configFile)
	if err != nil {
		return err
	}
	switch command := flags.Arg(0); {
	case *showVersion:
		fmt.Println("virtvzd", version)
		return nil
	case command == "":
		return serve(ctx, conf, *debug)
	case command == "template":
		return template(ctx, conf, flags.Args()[1:])
	case command == "root":
		return root(ctx, conf, flags.Args()[1:])
	case command == "enter":
		return enter(ctx, conf, flags.Args()[1:])
	default:
		return fmt.Errorf("unknown command %q\n%s", command, usage)
	}
}
