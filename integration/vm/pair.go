package vm

import (
	"context"
	"fmt"
	"os"
	"strings"
)

// Pair is two machines with this tree's daemon, named a and b, on one Ethernet:
// the bridge br0 of each is on it, with the address that the machine has in
// both's /etc/hosts (10.99.0.1, 10.99.0.2). Root of each may log in at the other.
type Pair struct {
	A, B *VM
	wire string
}

// StartPair starts both.
func StartPair(ctx context.Context) (_ *Pair, err error) {
	p := &Pair{}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if p.wire, err = os.MkdirTemp("", "wire"); err != nil {
		return nil, err
	}
	for end, host := range []**VM{&p.A, &p.B} {
		o := Options{OwnID: true, Wire: &WireEnd{Dir: p.wire, End: end + 1}}
		if *host, err = Start(ctx, string("ab"[end]), o); err != nil {
			return nil, err
		}
		if err := (*host).Install(ctx); err != nil {
			return nil, err
		}
	}
	keys := make([]string, 2)
	for n, host := range []*VM{p.A, p.B} {
		if keys[n], err = host.Run(ctx, joinWire); err != nil {
			return nil, err
		}
	}
	for n, host := range []*VM{p.B, p.A} {
		if _, err := host.Run(ctx, fmt.Sprintf("echo '%s' >>/root/.ssh/authorized_keys", strings.TrimSpace(keys[n]))); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// joinWire puts a machine's end of the wire into its bridge, and prints the key
// with which its root logs in elsewhere.
const joinWire = `
ip link add br0 type bridge && ip link set br0 up
addr=$(ip -4 -o addr show dev eth1 | awk '{print $4}')
ip addr flush dev eth1 && ip link set eth1 master br0 && ip addr add $addr dev br0
printf '10.99.0.1 a\n10.99.0.2 b\n' >>/etc/hosts
printf 'StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n' >/root/.ssh/config
ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
cat /root/.ssh/id_ed25519.pub`

// Close removes both machines.
func (p *Pair) Close() {
	for _, v := range []*VM{p.A, p.B} {
		if v != nil {
			v.Close()
		}
	}
	os.RemoveAll(p.wire)
}
