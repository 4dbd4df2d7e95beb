package runtime

import (
	"encoding/binary"
	"errors"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Of <linux/unix_diag.h>.
const (
	udiagShowName  = 1 << 0
	udiagShowQueue = 1 << 4

	unixDiagName  = 0
	unixDiagQueue = 4

	sizeofUnixDiagMsg = 16
)

// unixDiagRequest is struct unix_diag_req.
type unixDiagRequest struct {
	Family, Protocol    uint8
	_                   uint16
	States, Inode, Show uint32
	Cookie              [2]uint32
}

func (r unixDiagRequest) Len() int { return binary.Size(r) }

func (r unixDiagRequest) Serialize() []byte {
	body, _ := binary.Append(nil, binary.NativeEndian, r)
	return body
}

// unread tells whether a systemd inside has not read yet what a service told it:
// it wants the sender's pidfd with that (SO_PASSPIDFD), and CRIU 4.1 does not
// dump a message that comes with one.
func (i *Instance) unread() (found bool, err error) {
	if i.rec.Kind != Systemd {
		return false, nil
	}
	err = i.inside("sockets", []string{"net"}, func() (err error) {
		found, err = unreadAt("/systemd/notify") // the system's, and users' below /run/user
		return err
	})
	return found, err
}

// unreadAt asks for sockets whose path ends so, in the network namespace of the
// calling thread, and of what they have received.
func unreadAt(path string) (found bool, err error) {
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	req.AddData(unixDiagRequest{Family: unix.AF_UNIX, States: 1<<32 - 1, Show: udiagShowName | udiagShowQueue})
	err = req.ExecuteIter(unix.NETLINK_SOCK_DIAG, nl.SOCK_DIAG_BY_FAMILY, func(msg []byte) bool {
		if len(msg) < sizeofUnixDiagMsg {
			return true
		}
		attributes, err := nl.ParseRouteAttr(msg[sizeofUnixDiagMsg:])
		if err != nil {
			return true
		}
		named, queued := false, false
		for _, a := range attributes {
			switch {
			case a.Attr.Type == unixDiagName:
				named = strings.HasSuffix(strings.TrimRight(string(a.Value), "\x00"), path)
			case a.Attr.Type == unixDiagQueue && len(a.Value) >= 4:
				queued = binary.NativeEndian.Uint32(a.Value) > 0
			}
		}
		found = found || named && queued
		return true
	})
	if errors.Is(err, nl.ErrDumpInterrupted) {
		err = nil
	}
	return found, err
}
