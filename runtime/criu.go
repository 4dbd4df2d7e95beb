package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"virtvzd/systemd"
)

// CRIU writes the processes of an environment into files, and makes them again
// from there. The OCI runtime calls it: crun loads its library. What crun has no
// option for comes from a configuration file that CRIU itself reads.

// criuProgram is looked for before anything is frozen.
const criuProgram = "criu"

// criuOptions are for a dump and a restore alike.
const criuOptions = `
# How the kernel is kept from answering for a socket whose state was read;
# iptables, the default, is not on every host.
network-lock nftables
# A file that is watched with inotify is known by its inode, and may need to be
# looked for by its name.
force-irmap
# A file that is open and was deleted or replaced, as all that a package manager
# upgrades: on an overlay it goes into the checkpoint. The default is 1 MiB.
link-remap
ghost-limit 1G
# Seconds for the processes of a whole system to be stopped one by one, on a host
# that is busy. The default is 10.
timeout 60
`

// watchedTrees are where files lie that programs watch with inotify although
// they may have been replaced: CRIU knows a watch by its inode and looks there
// for a name. The service managers and message buses of distributions do that.
var watchedTrees = []string{"/etc", "/run", "/usr/share/dbus-1", "/usr/lib/systemd", "/usr/share/zoneinfo/Etc"}

// hostNodes are what the OCI runtime binds from the host's /dev: no environment
// with ids of its own can make a device node.
var hostNodes = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/random", "/dev/urandom"}

// criuConfig is the text of a configuration file.
func criuConfig(lines ...string) string {
	var b strings.Builder
	b.WriteString(criuOptions)
	for _, dir := range watchedTrees {
		fmt.Fprintf(&b, "irmap-scan-path %s\n", dir)
	}
	for _, line := range lines {
		b.WriteString(line + "\n")
	}
	return b.String()
}

// dumpUnit is the transient service that dumps an environment: in a cgroup of
// its own, so that all of it can be ended, also by a daemon that did not begin it.
func dumpUnit(uuid string) string { return "virtvzd-checkpoint-" + uuid + ".service" }

// runDump runs a program that may take as long as there is memory to write, and
// with lazy as long as nobody has asked for all of it: that is whose memory it is,
// and has to last.
func (r *Runtime) runDump(ctx context.Context, uuid, config string, argv []string, lazy bool) error {
	props := []systemd.Property{
		systemd.Description("Checkpoint of " + uuid), systemd.ServiceType("oneshot"), systemd.RemainAfterExit(), systemd.ExecStart(argv...),
		systemd.Environment("CRIU_CONFIG_FILE="+config, "PATH="+runtimePath),
		systemd.CollectMode("inactive-or-failed"), systemd.DefaultDependencies(false),
		systemd.TimeoutStop(10 * time.Second),
	}
	if lazy { // a service of this type has no time to start within unless it is said
		props = append(props, systemd.PrivateNetwork())
	} else {
		props = append(props, systemd.TimeoutStart(dumpTimeout))
	}
	if err := r.config.Scopes.StartService(ctx, dumpUnit(uuid), props...); err != nil {
		return err
	}
	return r.endDump(ctx, uuid)
}

// endDump ends a dump, whatever there is of it.
func (r *Runtime) endDump(ctx context.Context, uuid string) error {
	err := r.config.Scopes.Stop(ctx, dumpUnit(uuid))
	if errors.Is(err, systemd.ErrNoSuchUnit) {
		return nil
	}
	return err
}

// dumpTimeout is for a disk that does not answer any more.
const dumpTimeout = time.Hour

// keptLog is how much is kept of what CRIU said: errors come last.
const keptLog = 1 << 20

var criuFailure = regexp.MustCompile(`(?m)^\([0-9.]+\) *(?:[0-9]+: )?Error \([^)]*\): (.*)$`)

// criuSays is the first error of CRIU's log, as what a failed call of it means.
// The log goes with its checkpoint; the last of those that matter is kept.
func (r *Runtime) criuSays(log string, err error) error {
	text, readErr := readBounded(log, 16<<20)
	if readErr != nil {
		return err
	}
	kept := filepath.Join(r.config.StateDir, "criu-"+filepath.Base(log))
	if e := replaceFile(kept, text[max(0, len(text)-keptLog):], 0o600); e != nil {
		kept = "a log that could not be kept: " + e.Error()
	}
	for _, m := range criuFailure.FindAllStringSubmatch(string(text), 64) {
		if !strings.Contains(m[1], "No parent image found") { // said by successful ones, too
			return fmt.Errorf("CRIU: %s (all it says is in %s)", printable(m[1], 300), kept)
		}
	}
	return err
}

// readBounded reads a file, of a longer one its last limit bytes.
func readBounded(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	size := min(info.Size(), limit)
	body := make([]byte, size)
	n, err := f.ReadAt(body, info.Size()-size)
	return body[:n], err
}

// probeCRIU tells what is missing for checkpoints.
func (r *Runtime) probeCRIU() error {
	if !strings.HasPrefix(filepath.Base(r.host.OCI), "crun") {
		return fmt.Errorf("only crun can save environments, not %s: set oci_runtime in virtvzd.conf: %w", r.host.OCI, ErrUnsupported)
	}
	if !exists(nft) {
		return fmt.Errorf("%s is missing: install the package nftables: %w", nft, ErrUnsupported)
	}
	for _, dir := range filepath.SplitList(runtimePath) {
		if exists(filepath.Join(dir, criuProgram)) {
			return nil
		}
	}
	return fmt.Errorf("CRIU is missing: install the packages criu and libcriu2: %w", ErrUnsupported)
}
