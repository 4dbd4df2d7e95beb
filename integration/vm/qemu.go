package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Every machine is alike: a frozen one can only be resumed by the same devices.
const (
	cpus   = 2
	memory = "2048M"
	// Names of interfaces do not depend on slots, a panic ends QEMU instead of
	// spinning, and mitigations of speculation only slow an emulator down.
	kernelArgs = "root=/dev/vda rw console=ttyS0 loglevel=5 net.ifnames=0 panic=-1 mitigations=off"
)

// machine is what one QEMU process is started with.
type machine struct {
	accel    string // "kvm" or "tcg"
	dir      string // working directory: root.qcow2, data.qcow2, console.log
	image    string // kernel and initrd
	memory   string // file of the memory
	share    bool   // write to that file; else it is copy-on-write
	incoming string // file of the device state to resume from; "" boots
	port     int    // on 127.0.0.1, forwarded to the guest's ssh
	wire     string // netdev options of the second NIC, "" leaves it unplugged
	reboot   bool   // a reboot of the guest is one, and not the end of QEMU
	detached bool   // outlives this process
}

// cpuModel names the processor of a kind of machine. QEMU 7.2's emulation of
// cmpxchg16b leaves rubbish in the flags, and kernel 6.12's allocator then dies
// of a double fault; without cx16 in CPUID the kernel does not use it. Five
// levels of page tables are only slower.
func cpuModel(accel string) string {
	if accel == "kvm" {
		return "host"
	}
	return "max,cx16=off,la57=off"
}

func accelerator(accel string) string {
	if accel == "tcg" {
		return "tcg,thread=multi"
	}
	return accel
}

func (m machine) args() []string {
	wire := m.wire
	if wire == "" {
		wire = "hubport,hubid=0"
	}
	share := "off"
	if m.share {
		share = "on"
	}
	args := []string{
		"-nodefaults", "-display", "none",
		"-machine", "pc,memory-backend=ram", "-accel", accelerator(m.accel), "-cpu", cpuModel(m.accel),
		"-smp", fmt.Sprint(cpus), "-m", memory,
		"-object", "memory-backend-file,id=ram,size=" + memory + ",mem-path=" + comma(m.memory) + ",share=" + share,
		"-kernel", filepath.Join(m.image, "vmlinuz"), "-initrd", filepath.Join(m.image, "initrd"), "-append", kernelArgs,
		"-drive", "file=root.qcow2,format=qcow2,if=virtio,cache=unsafe",
		"-drive", "file=data.qcow2,format=qcow2,if=virtio,cache=unsafe",
		"-netdev", fmt.Sprintf("user,id=user,hostfwd=tcp:127.0.0.1:%d-:22", m.port),
		"-device", "virtio-net-pci,netdev=user,mac=52:54:00:00:00:01",
		"-netdev", wire + ",id=wire",
		"-device", "virtio-net-pci,netdev=wire,mac=52:54:00:00:00:02",
		// The kernel stirs its random numbers when this differs after a resume.
		"-device", "virtio-rng-pci", "-device", "vmgenid,guid=auto",
		"-serial", "file:console.log",
		"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control",
	}
	if !m.reboot {
		args = append(args, "-no-reboot")
	}
	if m.incoming != "" {
		args = append(args, "-incoming", "defer")
	}
	return args
}

// comma doubles the character that separates QEMU's options.
func comma(path string) string { return strings.ReplaceAll(path, ",", ",,") }

// qemu is a running QEMU process.
type qemu struct {
	process *os.Process
	monitor *monitor
	exited  chan struct{} // closed when it is gone
	err     error         // valid then: why
}

// launch starts QEMU and connects its monitor. Only whoever calls kill, or the
// guest, ends it; unless detached it also dies with this process.
func (m machine) launch(ctx context.Context) (*qemu, error) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "qmp"), os.NewFile(uintptr(pair[1]), "qmp")
	defer ours.Close() // FileConn makes its own
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}

	var said bytes.Buffer
	cmd := exec.Command("qemu-system-x86_64", m.args()...)
	cmd.Dir = m.dir
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if m.detached {
		// Nobody will read a pipe.
		if cmd.Stderr, err = os.Create(filepath.Join(m.dir, "qemu.log")); err != nil {
			return nil, err
		}
	} else {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
		cmd.Stdout, cmd.Stderr = &said, &said
	}
	q := &qemu{exited: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The death signal comes when the thread that started it ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			err = cmd.Wait()
			q.err = fmt.Errorf("QEMU ended (%v) %s", err, strings.TrimSpace(said.String()))
			close(q.exited)
			conn.Close()
		}
	}()
	if err := <-started; err != nil {
		conn.Close()
		return nil, fmt.Errorf("%w: integration/vm/install.sh installs what is missing", err)
	}
	q.process = cmd.Process
	theirs.Close()
	if q.monitor, err = newMonitor(ctx, conn); err != nil {
		q.kill()
		return nil, errors.Join(q.err, err)
	}
	return q, nil
}

// kill ends the process that launch started, and no other.
func (q *qemu) kill() {
	q.process.Kill() // knows whether it was waited for
	<-q.exited
}

// probeTime is how long KVM may take to bring a kernel to the point where it
// looks for its root: 1 to 3 s where KVM works.
const probeTime = 20 * time.Second

// accelFor tells whether the machines of an image run under KVM or emulated,
// from the record in the cache or by booting its kernel: there are hosts with a
// /dev/kvm on which guests hang or crash.
func accelFor(ctx context.Context, cache, image string) (string, error) {
	record := filepath.Join(cache, "accel-"+hostKey())
	if data, err := os.ReadFile(record); err == nil {
		return strings.TrimSpace(string(data)), nil
	}
	accel := "tcg"
	if why := probeKVM(ctx, image); why == "" {
		accel = "kvm"
	} else {
		progress("machines are emulated, about 10 times slower: KVM %s", why)
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	return accel, os.WriteFile(record, []byte(accel+"\n"), 0o644)
}

// probeKVM says what is wrong with KVM, "" when it works.
func probeKVM(ctx context.Context, image string) string {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err.Error()
	}
	f.Close()
	progress("trying KVM")
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, "qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot",
		"-accel", "kvm", "-cpu", "host", "-smp", fmt.Sprint(cpus), "-m", "512M", "-serial", "stdio",
		"-kernel", filepath.Join(image, "vmlinuz"), "-append", "console=ttyS0 panic=-1").CombinedOutput()
	if strings.Contains(string(out), "Unable to mount root fs") {
		return ""
	}
	if err == nil {
		err = errors.New("reset the machine")
	}
	return fmt.Sprintf("does not boot a kernel here (%v, %d bytes on the console)", err, len(out))
}
