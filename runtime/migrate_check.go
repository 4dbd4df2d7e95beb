package runtime

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// Offer tells what a destination has to know of a running environment, or why
// it cannot be migrated: all of it at once, and what to do about it.
func (i *Instance) Offer(ctx context.Context, env *xml.Environment) (MigrationOffer, error) {
	if err := i.Savable(ctx, true); err != nil {
		return MigrationOffer{}, err
	}
	o, err := i.r.offer(env)
	if err != nil {
		return o, err
	}
	o.IDMap = i.rec.IDMap
	if o.Paused, err = i.Frozen(); err != nil {
		return o, err
	}
	if o.Memory, err = i.cgroupNumber("memory.current"); err != nil {
		return o, err
	}
	if o.CRIU, err = criuVersion(ctx); err != nil {
		return o, err
	}
	if o.CPU, err = i.r.dumpCPU(ctx); err != nil {
		return o, err
	}
	return o, nil
}

// OfferDisk is Offer of an environment that is shut off.
func (r *Runtime) OfferDisk(env *xml.Environment) (o MigrationOffer, err error) {
	if err := r.RefuseLeft(env.UUID); err != nil {
		return o, err
	}
	if o, err = r.offer(env); err != nil {
		return o, err
	}
	o.Inactive = true
	return o, nil
}

func (r *Runtime) offer(env *xml.Environment) (MigrationOffer, error) {
	o := MigrationOffer{Version: migrationVersion, UUID: formatUUID(env.UUID), Name: env.Name, Kernel: r.host.Kernel}
	var err error
	o.Root, err = r.offerRoot(env)
	return o, err
}

// offerRoot tells what the disk consists of.
func (r *Runtime) offerRoot(env *xml.Environment) (MigrationRoot, error) {
	if len(env.Filesystems) == 0 {
		return MigrationRoot{}, fmt.Errorf("%s has no root of its own to migrate: %w", env.Name, ErrUnsupported)
	}
	fs := env.Filesystems[0]
	root := MigrationRoot{Type: fs.Type}
	switch fs.Type {
	case "template":
		root.Name = fs.Source
		root.Dir = filepath.Join(r.privateDir(env.UUID), "upper")
		return root, r.Layers().offer(formatUUID(env.UUID), &root)
	case "mount":
		var err error
		root.Dir = fs.Source
		root.Used, err = treeSize(fs.Source)
		return root, err
	}
	return root, fmt.Errorf("the root of %s is of type '%s': two hosts must not have one file system mounted at the same time, and would while it migrates; use a template or a directory: %w", env.Name, fs.Type, ErrUnsupported)
}

func (l *Layers) offer(uuid string, root *MigrationRoot) error {
	err := l.locked(func() error {
		d, err := l.settled(uuid)
		if err != nil {
			return err
		}
		if root.Template, err = l.templates.byDigest(d.Template); err != nil {
			return err
		}
		layers, err := l.chain(d.Layer)
		if err != nil {
			return err
		}
		for _, layer := range layers {
			root.Layers, root.LayerIDs = append(root.Layers, layer), append(root.LayerIDs, layer.ID)
		}
		return nil
	})
	if err == errNoDisk {
		return nil
	}
	if err == nil {
		root.Used, err = treeSize(filepath.Join(l.privateDir(uuid), "upper"))
	}
	return err
}

// treeSize is how much disk space the files of a directory take, about.
func treeSize(dir string) (uint64, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", dir, err)
	}
	defer unix.Close(fd)
	c := &cloner{ctx: context.Background()}
	return c.total, c.measure(fd, 0)
}

// criuVersion asks the installed one.
func criuVersion(ctx context.Context) (v [3]int, err error) {
	text, err := criuOutput(ctx, "--version")
	if err != nil {
		return v, err
	}
	_, version, _ := strings.Cut(text, "Version:")
	if n, _ := fmt.Sscanf(strings.TrimSpace(version), "%d.%d.%d", &v[0], &v[1], &v[2]); n < 1 {
		return v, fmt.Errorf("CRIU's version %q is not understood", printable(text, 100))
	}
	return v, nil
}

func criuOutput(ctx context.Context, args ...string) (string, error) {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, criuProgram, args...)
	cmd.Env = []string{"PATH=" + runtimePath}
	cmd.Stdout, cmd.Stderr = &out, &errs
	if cmd.Err != nil { // the daemon's own PATH may be shorter
		for _, dir := range filepath.SplitList(runtimePath) {
			if name := filepath.Join(dir, criuProgram); exists(name) {
				cmd.Path, cmd.Err = name, nil
				break
			}
		}
	}
	err := cmd.Start()
	if err == nil {
		children.add(cmd.Process.Pid)
		err = cmd.Wait()
		children.remove(cmd.Process.Pid)
	}
	if err != nil {
		return "", fmt.Errorf("criu %s: %w: %s", args[0], err, printable(errs.String(), 300))
	}
	return out.String(), nil
}

// dumpCPU tells of this host's processor what CRIU wants the other's to have.
func (r *Runtime) dumpCPU(ctx context.Context) ([]byte, error) {
	dir, err := os.MkdirTemp(r.config.StateDir, ".cpu-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if _, err := criuOutput(ctx, "cpuinfo", "dump", "-D", dir); err != nil {
		return nil, err
	}
	return readBounded(filepath.Join(dir, "cpuinfo.img"), 64<<10)
}

func (r *Runtime) checkCPU(ctx context.Context, image []byte) error {
	dir, err := os.MkdirTemp(r.config.StateDir, ".cpu-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "cpuinfo.img"), image, 0o600); err != nil {
		return err
	}
	if _, err := criuOutput(ctx, "cpuinfo", "check", "-D", dir); err != nil {
		return fmt.Errorf("the processor of this host lacks what that of the source has, which programs there may use: %w", err)
	}
	return nil
}

// checkOffer tells whether an environment can come here.
func (r *Runtime) checkOffer(ctx context.Context, env *xml.Environment, o *MigrationOffer, unsafe bool) error {
	if o.Version != migrationVersion {
		return fmt.Errorf("the other host's daemon speaks version %d of the migration, this one version %d: upgrade the older", o.Version, migrationVersion)
	}
	if o.UUID != formatUUID(env.UUID) {
		return errors.New("the definition is of another environment than what is offered")
	}
	r.mu.Lock()
	_, busy := r.instances[env.UUID]
	r.mu.Unlock()
	if busy {
		return fmt.Errorf("%s: %w", env.Name, ErrRunning)
	}
	if !o.Inactive {
		if err := r.checkProcesses(ctx, env, o, unsafe); err != nil {
			return err
		}
	}
	return r.checkSpace(o)
}

func (r *Runtime) checkProcesses(ctx context.Context, env *xml.Environment, o *MigrationOffer, unsafe bool) error {
	if err := r.probeCRIU(); err != nil {
		return err
	}
	have, err := criuVersion(ctx)
	if err != nil {
		return err
	}
	switch {
	case have[0] < o.CRIU[0] || have[0] == o.CRIU[0] && have[1] < o.CRIU[1]:
		return fmt.Errorf("CRIU %d.%d here is older than %d.%d of the source, whose images it may not read: upgrade it", have[0], have[1], o.CRIU[0], o.CRIU[1])
	case !unsafe && (r.host.Kernel[0] < o.Kernel[0] || r.host.Kernel[0] == o.Kernel[0] && r.host.Kernel[1] < o.Kernel[1]):
		return fmt.Errorf("kernel %d.%d here is older than %d.%d of the source, of which programs may use what is new: --unsafe tries it all the same", r.host.Kernel[0], r.host.Kernel[1], o.Kernel[0], o.Kernel[1])
	}
	if !unsafe {
		if err := r.checkCPU(ctx, o.CPU); err != nil {
			return err
		}
	}
	return errors.Join(r.checkIDs(env, o.IDMap), r.checkLinks(ctx, env))
}

// checkIDs tells whether the ids that the processes have are free.
func (r *Runtime) checkIDs(env *xml.Environment, ids xml.IDMap) error {
	taken := foreignSpans("/etc")
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.claims {
		taken = append(taken, c.ids...)
	}
	for _, s := range spans(ids) {
		if s.First >= firstRange && !free(s, taken) {
			return fmt.Errorf("%s has the ids from %d on, which another environment or a user has here: stop that first", env.Name, s.First)
		}
	}
	return nil
}

// checkLinks tells whether its interfaces can be made here.
func (r *Runtime) checkLinks(ctx context.Context, env *xml.Environment) error {
	h := r.hostLinks()
	if h == nil {
		return errors.New("netlink cannot be used")
	}
	w := &wires{host: h, inside: h}
	var errs []error
	for _, n := range env.Interfaces {
		if err := r.checkLink(ctx, w, env, n); err != nil {
			errs = append(errs, fmt.Errorf("network interface %s: %w", n.ID(), err))
		}
	}
	return errors.Join(errs...)
}

func (r *Runtime) checkLink(ctx context.Context, w *wires, env *xml.Environment, n xml.Interface) error {
	var plug Plug
	if n.Type == "network" {
		if r.config.Networks == nil {
			return errors.New("this daemon has no way to libvirt's networks")
		}
		var err error
		if plug.Bridge, err = r.config.Networks.Find(ctx, n.Source); err != nil {
			return err
		}
	}
	p, err := planLink(n, env.Interfaces, plug, cmp.Or(n.Target, r.freeName(w.host, false)), "eth0")
	if err != nil {
		return err
	}
	claims := p.claims()
	if err := r.claimLinks(env.Name, claims); err != nil {
		return err
	}
	r.releaseLinks(env.Name, claims)
	if p.Type == "bridge" && p.Parent != "" {
		_, err := w.bridge(p.Parent)
		return err
	}
	return nil
}

// checkSpace tells whether there is room for what may have to be sent.
func (r *Runtime) checkSpace(o *MigrationOffer) error {
	need := o.Root.Used + 2*o.Memory // two rounds, one of them with everything
	if o.Root.Template.Digest != "" && !exists(filepath.Join(r.Templates().digestDir(o.Root.Template.Digest), "rootfs")) {
		need += uint64(o.Root.Template.Size)
	}
	var space unix.Statfs_t
	if err := unix.Statfs(r.config.DataDir, &space); err != nil {
		return err
	}
	if have := space.Bavail * uint64(space.Bsize); need > have {
		return fmt.Errorf("there is no room in %s: %d MiB are needed and %d MiB are free", r.config.DataDir, need>>20, have>>20)
	}
	return nil
}

// markShared makes a file in a directory by which another host sees that it has
// the same. Where that is not possible the hosts share nothing.
func markShared(dir string, s Session) string {
	name := ".virtvzd-" + s.ID
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return ""
	}
	f.Close()
	return name
}

// sharesRoot tells whether a directory is that of the other host.
func sharesRoot(dir, marker string) bool {
	if marker == "" || marker != filepath.Base(marker) || !strings.HasPrefix(marker, ".virtvzd-") {
		return false
	}
	info, err := os.Lstat(filepath.Join(dir, marker))
	return err == nil && info.Mode().IsRegular()
}

// emptyDirectory tells whether a directory may be replaced: it is not there, or
// has nothing in it.
func emptyDirectory(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if info, e := os.Stat(filepath.Dir(dir)); e != nil || !info.IsDir() {
			return fmt.Errorf("%s cannot be made: %s is no directory", dir, filepath.Dir(dir))
		}
		return nil
	}
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("%s has something in it, and is not the directory of the other host: move it away", dir)
	}
	return err
}
