package runtime

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A network block device (nbd) is the kernel's client of a server to which the
// daemon has connected: the kernel keeps the socket. It is made by generic
// netlink, not with the ioctls, which need a process that stays.

// Commands and attributes of <linux/nbd-netlink.h> and flags of <linux/nbd.h>.
const (
	nbdConnect, nbdDisconnect, nbdReconfigure = 1, 2, 3

	nbdIndex         = 1
	nbdSize          = 2
	nbdBlockSize     = 3
	nbdAnswerTimeout = 4
	nbdServerFlags   = 5
	nbdClientFlags   = 6
	nbdSockets       = 7
	nbdServerTimeout = 8
	nbdBackend       = 10

	nbdSocketItem, nbdSocketFD = 1, 1

	nbdEndOnClose = 1 << 1 // NBD_CFLAG_DISCONNECT_ON_CLOSE
)

// export is what an NBD server has: its size in bytes, and what it can do, in
// the flags of the protocol's transmission phase.
type export struct {
	size  uint64
	flags uint16
}

// nbdHandshake speaks the beginning of the protocol to a server of one export,
// whose name is "" (fixed newstyle negotiation,
// https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md).
func nbdHandshake(server io.ReadWriter) (e export, err error) {
	const (
		magic, option  = "NBDMAGIC", "IHAVEOPT"
		newstyle       = 1 << 0
		withoutZeroes  = 1 << 1
		exportByName   = 1
		greetingLength = len(magic) + len(option) + 2
	)
	greeting := make([]byte, greetingLength)
	if _, err := io.ReadFull(server, greeting); err != nil {
		return e, err
	}
	flags := binary.BigEndian.Uint16(greeting[len(magic)+len(option):])
	if string(greeting[:len(magic)+len(option)]) != magic+option || flags&newstyle == 0 || flags&withoutZeroes == 0 {
		return e, errors.New("the server does not speak today's NBD")
	}
	request := binary.BigEndian.AppendUint32(nil, newstyle|withoutZeroes)
	request = append(request, option...)
	request = binary.BigEndian.AppendUint32(request, exportByName)
	request = binary.BigEndian.AppendUint32(request, 0) // length of the name
	if _, err := server.Write(request); err != nil {
		return e, err
	}
	var answer [10]byte
	if _, err := io.ReadFull(server, answer[:]); err != nil {
		return e, err
	}
	return export{binary.BigEndian.Uint64(answer[:]), binary.BigEndian.Uint16(answer[8:])}, nil
}

// connectNBD makes a block device of a connection after the handshake, that of a
// number where one is given. backend is a name by which detachNBD finds it.
func connectNBD(server *net.UnixConn, e export, backend string, number ...uint32) (index uint32, err error) {
	socket, err := server.File()
	if err != nil {
		return 0, err
	}
	defer socket.Close()
	attributes := append(e.sizes(), nl.NewRtAttr(nbdServerFlags, nl.Uint64Attr(uint64(e.flags))), nbdSocket(socket), nbdName(backend))
	for _, n := range number {
		attributes = append(attributes, nl.NewRtAttr(nbdIndex, nl.Uint32Attr(n)))
	}
	answer, err := nbdRequest(nbdConnect, attributes...)
	if err != nil {
		return 0, fmt.Errorf("network block device: %w", err)
	}
	index, ok := nbdIndexOf(answer)
	if !ok {
		return 0, errors.New("the kernel does not tell which network block device it has made")
	}
	return index, nil
}

// attachNBD is connectNBD of a device that ends with its last user.
func attachNBD(server *net.UnixConn, e export, backend string, readOnly bool) (*os.File, error) {
	index, err := connectNBD(server, e, backend)
	if err != nil {
		return nil, err
	}
	mode := os.O_RDWR
	if readOnly {
		mode = os.O_RDONLY
	}
	device, err := os.OpenFile(fmt.Sprintf("/dev/nbd%d", index), mode, 0)
	if err != nil {
		return nil, err
	}
	// Not before: somebody else, such as udev, might have been its last user.
	if err := renewNBD(index, backend, nl.NewRtAttr(nbdClientFlags, nl.Uint64Attr(nbdEndOnClose))); err != nil {
		device.Close()
		return nil, err
	}
	return device, nil
}

// reattachNBD connects a block device of attachNBD's with another server, once
// the one before has ended, and gives it that one's size.
func reattachNBD(server *net.UnixConn, e export, index uint32, backend string) error {
	socket, err := server.File()
	if err != nil {
		return err
	}
	defer socket.Close()
	if err := renewNBD(index, backend, nbdSocket(socket)); err != nil {
		return err
	}
	// Not with that: the kernel changes a size when nothing is under way, and what is waits for the server.
	return renewNBD(index, backend, e.sizes()...)
}

// nbdTimes are how long a device waits, in whole seconds, for the answer to a
// request before it asks again, and for another server once it has none; 0 for
// ever, and not at all.
type nbdTimes struct{ answer, server time.Duration }

func (t nbdTimes) attributes() []*nl.RtAttr {
	return []*nl.RtAttr{
		nl.NewRtAttr(nbdAnswerTimeout, nl.Uint64Attr(uint64(t.answer/time.Second))),
		nl.NewRtAttr(nbdServerTimeout, nl.Uint64Attr(uint64(t.server/time.Second))),
	}
}

// renewNBD changes what there is of a block device of attachNBD's.
func renewNBD(index uint32, backend string, attributes ...*nl.RtAttr) error {
	_, err := nbdRequest(nbdReconfigure, append(attributes, nl.NewRtAttr(nbdIndex, nl.Uint32Attr(index)), nbdName(backend))...)
	if err != nil {
		return fmt.Errorf("network block device: %w", err)
	}
	return nil
}

func (e export) sizes() []*nl.RtAttr {
	const sector = 512
	return []*nl.RtAttr{nl.NewRtAttr(nbdSize, nl.Uint64Attr(e.size&^(sector-1))), nl.NewRtAttr(nbdBlockSize, nl.Uint64Attr(sector))}
}

func nbdName(backend string) *nl.RtAttr { return nl.NewRtAttr(nbdBackend, nl.ZeroTerminated(backend)) }

func nbdSocket(socket *os.File) *nl.RtAttr {
	list := nl.NewRtAttr(unix.NLA_F_NESTED|nbdSockets, nil)
	list.AddRtAttr(unix.NLA_F_NESTED|nbdSocketItem, nil).AddRtAttr(nbdSocketFD, nl.Uint32Attr(uint32(socket.Fd())))
	return list
}

func nbdIndexOf(answer [][]byte) (uint32, bool) {
	for _, message := range answer {
		if len(message) < nl.SizeofGenlmsg {
			continue
		}
		attributes, err := nl.ParseRouteAttr(message[nl.SizeofGenlmsg:])
		if err != nil {
			continue
		}
		for _, a := range attributes {
			if a.Attr.Type == nbdIndex && len(a.Value) == 4 {
				return binary.NativeEndian.Uint32(a.Value), true
			}
		}
	}
	return 0, false
}

// detachNBD ends the devices that attachNBD made with that name.
func detachNBD(backend string) error {
	names, _ := filepath.Glob("/sys/block/nbd*/backend")
	var errs []error
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil || strings.TrimSpace(string(text)) != backend {
			continue
		}
		index, err := strconv.ParseUint(strings.TrimPrefix(filepath.Base(filepath.Dir(name)), "nbd"), 10, 32)
		if err == nil {
			_, err = nbdRequest(nbdDisconnect, nl.NewRtAttr(nbdIndex, nl.Uint32Attr(uint32(index))))
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func nbdRequest(command uint8, attributes ...*nl.RtAttr) ([][]byte, error) {
	family, err := netlink.GenlFamilyGet("nbd")
	if err != nil {
		return nil, fmt.Errorf("the kernel has no network block devices (modprobe nbd): %w", err)
	}
	request := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	request.AddData(&nl.Genlmsg{Command: command, Version: uint8(family.Version)})
	for _, a := range attributes {
		request.AddData(a)
	}
	return request.Execute(unix.NETLINK_GENERIC, 0)
}
