package runtime

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// announce tells the networks of an environment's interfaces where its addresses
// are now: switches learn on which port, neighbours learn nothing new but that
// the address is there. An announcement of ARP (RFC 5227) and an unsolicited
// neighbour advertisement (RFC 4861, 7.2.6) are sent for each address.
func (i *Instance) announce() error {
	w, err := i.wires()
	if err != nil {
		return err
	}
	defer w.close()
	var frames []announcement
	i.mu.Lock()
	links := slices.Clone(i.rec.Links)
	i.mu.Unlock()
	for _, l := range links {
		link, err := w.inside.LinkByIndex(l.GuestIndex)
		if err != nil {
			continue // root inside has deleted it
		}
		addrs, err := settled(func() ([]netlink.Addr, error) { return w.inside.AddrList(link, unix.AF_UNSPEC) })
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP); ok {
				frames = append(frames, announcement{link.Attrs().Index, announceFrame(link.Attrs().HardwareAddr, ip.Unmap())})
			}
		}
	}
	if len(frames) == 0 {
		return nil
	}
	return i.inside("announce addresses", []string{"net"}, func() error { return sendFrames(frames) })
}

type announcement struct {
	link  int
	frame []byte
}

func sendFrames(list []announcement) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("announce addresses: %w", err)
	}
	defer unix.Close(fd)
	for _, a := range list {
		if len(a.frame) == 0 {
			continue
		}
		err := unix.Sendto(fd, a.frame, 0, &unix.SockaddrLinklayer{Ifindex: a.link, Halen: 6})
		if err != nil && !errors.Is(err, unix.ENETDOWN) {
			return fmt.Errorf("announce addresses: %w", err)
		}
	}
	return nil
}

var (
	everybody = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodes  = netip.MustParseAddr("ff02::1")
)

// announceFrame is an Ethernet frame; nil for an address that is nobody else's
// business.
func announceFrame(mac net.HardwareAddr, ip netip.Addr) []byte {
	if len(mac) != 6 || ip.IsLoopback() {
		return nil
	}
	if ip.Is4() {
		f := ethernet(everybody, mac, unix.ETH_P_ARP)
		f = append(f, 0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, their lengths, request
		f = append(append(f, mac...), ip.AsSlice()...)
		f = append(append(f, make([]byte, 6)...), ip.AsSlice()...)
		return f
	}
	body := []byte{136, 0, 0, 0, 0x20, 0, 0, 0} // neighbour advertisement, override
	body = append(body, ip.AsSlice()...)
	body = append(append(body, 2, 1), mac...) // target link-layer address
	binary.BigEndian.PutUint16(body[2:], checksum6(ip, allNodes, body))
	f := ethernet(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, mac, unix.ETH_P_IPV6)
	f = append(f, 0x60, 0, 0, 0, 0, byte(len(body)), unix.IPPROTO_ICMPV6, 255)
	f = append(append(f, ip.AsSlice()...), allNodes.AsSlice()...)
	return append(f, body...)
}

func ethernet(to, from net.HardwareAddr, kind uint16) []byte {
	f := append(append([]byte{}, to...), from...)
	return binary.BigEndian.AppendUint16(f, kind)
}

// checksum6 is ICMPv6's (RFC 8200, 8.1).
func checksum6(from, to netip.Addr, body []byte) uint16 {
	pseudo := append(append([]byte{}, from.AsSlice()...), to.AsSlice()...)
	pseudo = append(pseudo, 0, 0, 0, byte(len(body)), 0, 0, 0, unix.IPPROTO_ICMPV6)
	sum := uint32(0)
	for _, part := range [][]byte{pseudo, body} {
		for k := 0; k+1 < len(part); k += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[k:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
