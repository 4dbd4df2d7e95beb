package driver

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"syscall"

	"virtvzd/driver/protocol"
	"virtvzd/driver/relay"
)

// Release has the network's DHCP server forget its IPv4 leases for a MAC, so
// that nobody takes an environment for alive that is gone. Libvirt has no call for
// that; its server, dnsmasq, takes the client's own message (RFC 2131, 4.4.6)
// from the host. What DHCPv6 leased ends in its time.
func (n *networks) Release(ctx context.Context, network, mac string) error {
	ctx, cancel := context.WithTimeout(ctx, networkTimeout)
	defer cancel()
	client, found, err := n.find(ctx, network)
	if err != nil {
		return err
	}
	list, err := relay.Call(ctx, client, protocol.NetworkGetDhcpLeases, &protocol.NetworkGetDhcpLeasesArgs{Net: found, Mac: &mac, NeedResults: 1})
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range list.Leases {
		if l.Type == ipv4 {
			errs = append(errs, releaseLease(l, mac))
		}
	}
	return errors.Join(errs...)
}

func releaseLease(l protocol.NetworkDhcpLease, mac string) error {
	address, err := netip.ParseAddr(l.Ipaddr)
	if err != nil || !address.Is4() {
		return fmt.Errorf("a lease of '%.40s' is none of IPv4", l.Ipaddr)
	}
	hardware, err := net.ParseMAC(mac)
	if err != nil {
		return err
	}
	server, err := serverOf(l.Iface, address)
	if err != nil {
		return err
	}
	// Bound to the network's bridge it comes from there, as a client's would.
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var bound error
		err := c.Control(func(fd uintptr) { bound = syscall.BindToDevice(int(fd), l.Iface) })
		return errors.Join(err, bound)
	}}
	conn, err := dialer.Dial("udp4", netip.AddrPortFrom(server, 67).String())
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write(releaseMessage(address, server, hardware, text(l.Clientid)))
	return err
}

// serverOf is the address that a server has on a bridge for the subnet of one
// of its leases.
func serverOf(bridge string, leased netip.Addr) (server netip.Addr, err error) {
	link, err := net.InterfaceByName(bridge)
	if err != nil {
		return server, err
	}
	addresses, err := link.Addrs()
	for _, a := range addresses {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Contains(leased) {
			return p.Addr(), nil
		}
	}
	return server, errors.Join(err, fmt.Errorf("%s has no address for leases such as %s", bridge, leased))
}

// releaseMessage is a DHCPRELEASE. clientID is in libvirt's notation, bytes in
// hexadecimal with colons; "" is none.
func releaseMessage(leased, server netip.Addr, hardware net.HardwareAddr, clientID string) []byte {
	const (
		request, ethernet         = 1, 1
		release                   = 7
		messageType, serverID, id = 53, 54, 61 // options
		end                       = 255
		minLength                 = 300 // of BOOTP, which some insist on
	)
	m := make([]byte, 240, minLength)
	m[0], m[1], m[2] = request, ethernet, byte(len(hardware))
	binary.BigEndian.PutUint32(m[4:], rand.Uint32())
	copy(m[12:], leased.AsSlice())
	copy(m[28:44], hardware)
	copy(m[236:], []byte{99, 130, 83, 99})
	m = append(m, messageType, 1, release, serverID, 4)
	m = append(m, server.AsSlice()...)
	if client, err := hex.DecodeString(strings.ReplaceAll(clientID, ":", "")); err == nil && len(client) > 0 && len(client) < 256 {
		m = append(append(m, id, byte(len(client))), client...)
	}
	m = append(m, end)
	return append(m, make([]byte, max(minLength-len(m), 0))...)
}
