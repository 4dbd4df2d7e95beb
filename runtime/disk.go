package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// A disk that is a file is a network block device, like that of a qcow2 image
// with a file system (filesystem_qcow2.go), of which the environment gets the node. So
// it is of a raw image, too: root inside may open the node, and needs no more than
// that to have a loop device end (LOOP_CLR_FD), be of another file (LOOP_SET_FD), or
// have the kernel look for partitions (LOOP_SET_STATUS). A network block device
// takes orders from root of the host only.
//
// Nobody has it open for as long as the environment may want it, so it does not end
// with its last user but is ended, by whichever daemon finds it in the record,
// where it stands before it is made:
//
//	attach   record, server, device | permission, node
//	detach                    node, permission | device, server, record
//	stop     cleanup, when all processes have ended
//	killed   Enforce ends what is not wanted and makes what is missing
//
// One that is detached while a process inside has it open ends when that closes
// it, and nobody else is given its image before. A number stays an environment's
// as long as that runs: whatever it has kept of a node leads to no other's disk.
//
// What is on it the environment has written, and nobody on the host is to read
// that by himself: the kernel looks for no partitions (nbd's max_part), and the
// devices have numbers by which a rule of udev's (integration/packaging) has
// nothing be looked for, linked to, assembled or mounted.

// diskNumbers are the devices' numbers, from the first on.
const (
	firstDisk   = 30000
	diskNumbers = 2000
)

// recordedDisk is a disk that is an image.
type recordedDisk struct {
	Device xml.Device // as the definition has it
	Path   string     // of the image, or of a volume that is a device by itself
	ID     string     `json:",omitempty"` // of imageUnit
	Number int        `json:",omitempty"` // of the device, once it is about to be made
}

func (d recordedDisk) node() string {
	switch {
	case d.ID == "":
		return d.Path
	case d.Number == 0:
		return ""
	}
	return fmt.Sprintf("/dev/nbd%d", d.Number)
}

// serves tells whether the device is there, and its server's.
func (d recordedDisk) serves() bool {
	if d.ID == "" {
		return true
	}
	backend, err := os.ReadFile("/sys/block/" + filepath.Base(d.node()) + "/backend")
	return err == nil && strings.TrimSpace(string(backend)) == imageUnit(d.ID)
}

// resolved is env with the nodes of its disks in place of their images, as far
// as there are such.
func resolved(env *xml.Environment, disks []recordedDisk) *xml.Environment {
	if !slices.ContainsFunc(env.Devices, isImage) {
		return env
	}
	next := *env
	next.Devices, next.IO.Devices = slices.Clone(env.Devices), nil
	nodes := map[string]string{}
	for n, d := range next.Devices {
		if !isImage(d) {
			continue
		}
		node := ""
		if at := slices.IndexFunc(disks, func(have recordedDisk) bool { return have.Device == d }); at >= 0 {
			node = disks[at].node()
		}
		nodes[d.Target] = node
		next.Devices[n] = xml.Device{Source: node, Target: d.Target, Block: true, ReadOnly: d.ReadOnly}
	}
	for _, l := range env.IO.Devices {
		if l.Disk != "" {
			l.Path, l.Disk = nodes[l.Disk], ""
		}
		if l.Path != "" {
			next.IO.Devices = append(next.IO.Devices, l)
		}
	}
	return &next
}

func isImage(d xml.Device) bool { return d.Image != "" }

// noteDisk records a disk, or what has become known of it.
func (r *record) noteDisk(dir string, d recordedDisk) error {
	disks := slices.Clone(r.Disks)
	if n := slices.IndexFunc(disks, func(have recordedDisk) bool { return have.Device == d.Device }); n >= 0 {
		disks[n] = d
	} else {
		disks = append(disks, d)
	}
	r.Disks = disks
	if d.Number != 0 && !slices.Contains(r.Numbers, d.Number) {
		r.Numbers = append(slices.Clone(r.Numbers), d.Number)
	}
	return r.save(dir)
}

// openDisk makes the block device of an image for an environment that has disks
// already. note records it, before anything that has to be undone is done.
func (r *Runtime) openDisk(ctx context.Context, uuid [16]byte, d xml.Device, disks []recordedDisk, note func(recordedDisk) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("disk %s: %w", d.Source, err)
		}
	}()
	path := d.Source
	if d.Volume {
		if path, err = r.VolumePath(ctx, d.Source); err != nil {
			return err
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		return errnoOf(err)
	}
	isBlock := info.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice
	switch {
	case d.Image != "raw" && d.Image != "qcow2":
		return fmt.Errorf("the format '%s' cannot be used: raw and qcow2 can, 'qemu-img convert' makes them: %w", printable(d.Image, 32), ErrUnsupported)
	case isBlock && !d.Volume:
		return errors.New("it is a block device: use <disk type='block'>")
	case isBlock && d.Image != "raw":
		return fmt.Errorf("it is a block device, on which the format '%s' cannot be used: only raw can: %w", d.Image, ErrUnsupported)
	case isBlock:
		return note(recordedDisk{Device: d, Path: path})
	}
	if path, err = servedPath(path, d.Image, d.ReadOnly); err != nil {
		return err
	}
	if err := readyToServe(ctx); err != nil {
		return err
	}
	if err := looksForNoPartitions("/sys/module/nbd/parameters/max_part"); err != nil {
		return err
	}
	disk := recordedDisk{Device: d, Path: path, ID: newLayerID()}
	if err := note(disk); err != nil {
		return err
	}
	atStep("disk recorded")
	dir := filepath.Join(r.imagesDir(), disk.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	server, e, err := r.startServer(ctx, disk.ID, dir, path, d.Image, d.ReadOnly)
	if err != nil {
		return err
	}
	defer server.Close()
	for n := firstDisk; n < firstDisk+diskNumbers; n++ {
		used := slices.ContainsFunc(disks, func(have recordedDisk) bool { return have.Number == n })
		if used || !r.claimDisk(uuid, n) {
			continue
		}
		disk.Number = n
		if err := note(disk); err != nil {
			return err
		}
		atStep("disk numbered")
		_, err := connectNBD(server, e, imageUnit(disk.ID), uint32(n))
		if err == nil {
			atStep("disk made")
			return os.RemoveAll(dir)
		}
		if !errors.Is(err, unix.EBUSY) { // of one that was detached and is open still
			return err
		}
	}
	return fmt.Errorf("there are %d disks that are images already", diskNumbers)
}

// looksForNoPartitions refuses to have the kernel read what an environment has
// written. max_part is the parameter of nbd that says for how many it would look.
func looksForNoPartitions(parameter string) error {
	text, err := os.ReadFile(parameter)
	if err != nil {
		return errnoOf(err)
	}
	if n := strings.TrimSpace(string(text)); n != "0" {
		return fmt.Errorf("the kernel would look for partitions in what an environment has written, for its module nbd has max_part=%s: "+
			"write 'options nbd max_part=0' to /etc/modprobe.d/nbd.conf, and load it again: 'modprobe -r nbd; modprobe nbd': %w", n, ErrUnsupported)
	}
	return nil
}

// claimDisk makes a device's number an environment's, unless it is another's.
func (r *Runtime) claimDisk(uuid [16]byte, number int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for other, c := range r.claims {
		if slices.Contains(c.disks, number) {
			return other == uuid
		}
	}
	c := r.claims[uuid]
	c.disks = append(slices.Clone(c.disks), number)
	r.claims[uuid] = c
	return true
}

// openDisks makes the block devices of an environment that starts, which has
// their nodes from then on.
func (s *starter) openDisks(ctx context.Context) error {
	for _, d := range s.env.Devices {
		if !isImage(d) {
			continue
		}
		err := s.r.openDisk(ctx, s.env.UUID, d, s.rec.Disks, func(d recordedDisk) error { return s.rec.noteDisk(s.res.Dir, d) })
		if err != nil {
			return err
		}
	}
	s.env = resolved(s.env, s.rec.Disks)
	return nil
}

// endDisks ends those of an environment that has ended.
func (r *Runtime) endDisks(ctx context.Context, rec *record) (err error) {
	for _, d := range rec.Disks {
		if d.ID != "" {
			err = errors.Join(err, r.endImage(ctx, d.ID))
		}
	}
	return err
}

func (i *Instance) disks() []recordedDisk {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.rec.Disks
}

// resolved is env as it is, or is to be, in force.
func (i *Instance) resolved(env *xml.Environment) *xml.Environment { return resolved(env, i.disks()) }

// openDisks makes the block devices of images that the running environment has
// not yet.
func (i *Instance) openDisks(ctx context.Context, wanted []xml.Device) error {
	for _, d := range wanted {
		have := slices.ContainsFunc(i.disks(), func(have recordedDisk) bool { return have.Device == d })
		if !isImage(d) || have {
			continue
		}
		if slices.ContainsFunc(i.disks(), func(have recordedDisk) bool {
			return have.Device.Source == d.Source && have.Device.Target == d.Target
		}) {
			return fmt.Errorf("disk %s: it cannot change its format, or whether it can be written to, while it is attached: detach it, and attach it again: %w", d.Source, ErrUnsupported)
		}
		err := i.r.openDisk(ctx, i.uuid, d, i.disks(), func(d recordedDisk) error {
			i.mu.Lock()
			defer i.mu.Unlock()
			return i.rec.noteDisk(i.dir, d)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// restoreDisks is openDisks where nobody knows how far an earlier daemon came
// with it.
func (i *Instance) restoreDisks(ctx context.Context, wanted []xml.Device) (err error) {
	for _, d := range i.disks() {
		if !d.serves() {
			err = errors.Join(err, i.closeDisk(ctx, d))
		}
	}
	return errors.Join(err, i.openDisks(ctx, wanted))
}

// closeDisks ends the block devices of images but those that are wanted. What
// cannot be ended is left to who tries next, and at last to the clean-up.
func (i *Instance) closeDisks(ctx context.Context, wanted []xml.Device) {
	for _, d := range i.disks() {
		if slices.Contains(wanted, d.Device) {
			continue
		}
		if err := i.closeDisk(ctx, d); err != nil {
			i.warn(fmt.Sprintf("the disk %s of %s was detached, but is still in use on the host: %v", d.Device.Source, i.Name(), err))
		}
	}
}

func (i *Instance) closeDisk(ctx context.Context, d recordedDisk) error {
	atStep("disk closes")
	if d.ID != "" {
		if err := i.r.letDiskEnd(ctx, d); err != nil {
			return err
		}
	}
	atStep("disk closed")
	i.mu.Lock()
	defer i.mu.Unlock()
	i.rec.Disks = slices.DeleteFunc(slices.Clone(i.rec.Disks), func(have recordedDisk) bool { return have == d })
	return i.rec.save(i.dir)
}

// letDiskEnd ends a disk with its last user: at once where there is none, and
// returns when its image can be another's.
func (r *Runtime) letDiskEnd(ctx context.Context, d recordedDisk) error {
	device, err := os.OpenFile(d.node(), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil || !d.serves() {
		if err == nil {
			device.Close()
		}
		return r.endImage(ctx, d.ID) // what there is of it
	}
	err = renewNBD(uint32(d.Number), imageUnit(d.ID), nl.NewRtAttr(nbdClientFlags, nl.Uint64Attr(nbdEndOnClose)))
	device.Close()
	if err != nil {
		return r.endImage(ctx, d.ID)
	}
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		pids, _ := processesOf(filepath.Join(cgroupRoot, "system.slice", imageUnit(d.ID)))
		if d.serves() || len(pids) == 0 { // somebody inside has it, or nobody any more
			break
		}
	}
	return os.RemoveAll(filepath.Join(r.imagesDir(), d.ID))
}

// Disk tells of a disk of the definition that is an image, or a volume, where on
// the host that is and which block device was made of it. It is "" for one that
// is not there.
func (i *Instance) Disk(d xml.Device) (path string, device Device) {
	for _, have := range i.disks() {
		if have.Device == d {
			device, _ = DiskOf(have.node())
			return have.Path, device
		}
	}
	return "", Device{}
}
