package driver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"virtvzd/driver/protocol"
	"virtvzd/systemd"
	"virtvzd/systemd/bustest"
)

// authority is an org.freedesktop.PolicyKit1 that answers what it is told to and remembers what it was asked.
type authority struct {
	mu         sync.Mutex
	asked      []string
	authorised bool
	challenge  bool
	details    map[string]string
	refusal    *dbus.Error
	wait       chan struct{} // if not nil, answers only after it is closed
}

type polkitSubject struct {
	Kind    string
	Details map[string]dbus.Variant
}

type polkitResult struct {
	Authorised, Challenge bool
	Details               map[string]string
}

func (a *authority) CheckAuthorization(s polkitSubject, action string, details map[string]string, flags uint32, cancel string) (polkitResult, *dbus.Error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var q strings.Builder
	q.WriteString(s.Kind)
	for _, k := range slices.Sorted(maps.Keys(s.Details)) {
		fmt.Fprintf(&q, " %s=%s:%v", k, s.Details[k].Signature(), s.Details[k].Value())
	}
	fmt.Fprintf(&q, " %s %v %d %q", action, details, flags, cancel)
	a.asked = append(a.asked, q.String())
	if a.wait != nil {
		<-a.wait
	}
	if a.refusal != nil {
		return polkitResult{}, a.refusal
	}
	d := a.details
	if d == nil {
		d = map[string]string{}
	}
	return polkitResult{a.authorised, a.challenge, d}, nil
}

// questions returns what was asked since the last time.
func (a *authority) questions() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	asked := a.asked
	a.asked = nil
	return asked
}

func (a *authority) attach(t *testing.T, b *bustest.Bus) {
	t.Helper()
	conn, err := dbus.Connect(b.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.Export(a, "/org/freedesktop/PolicyKit1/Authority", "org.freedesktop.PolicyKit1.Authority"); err != nil {
		t.Fatal(err)
	}
	if reply, err := conn.RequestName("org.freedesktop.PolicyKit1", dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatal(reply, err)
	}
}

func newAuthority(t *testing.T) (*bustest.Bus, *authority, *polkit) {
	t.Helper()
	b, a := bustest.New(t), &authority{}
	a.attach(t, b)
	p := &polkit{bus: systemd.NewBus(b.Address)}
	t.Cleanup(func() { p.bus.Close() })
	return b, a, p
}

var someone = Subject{PID: 4711, StartTime: 1 << 40, UID: 4_000_000_000}

func TestPolkitQuestion(t *testing.T) {
	_, a, p := newAuthority(t)
	a.mu.Lock()
	a.authorised = true
	a.mu.Unlock()
	for _, c := range []struct {
		action  string
		details map[string]string
		want    string
	}{
		{actionManage, nil, `unix-process pid=u:4711 start-time=t:1099511627776 uid=i:-294967296 org.libvirt.unix.manage map[] 1 ""`},
		{actionMonitor, nil, `unix-process pid=u:4711 start-time=t:1099511627776 uid=i:-294967296 org.libvirt.unix.monitor map[] 1 ""`},
		{
			"org.libvirt.api.domain.start", map[string]string{"connect_driver": "vz", "domain_name": "web1", "domain_uuid": "x"},
			`unix-process pid=u:4711 start-time=t:1099511627776 uid=i:-294967296 org.libvirt.api.domain.start map[connect_driver:vz domain_name:web1 domain_uuid:x] 0 ""`,
		},
	} {
		a.questions()
		if err := p.check(t.Context(), someone, c.action, c.details); err != nil {
			t.Error(err)
		}
		if asked := a.questions(); len(asked) != 1 || asked[0] != c.want {
			t.Errorf("asked %q, want %q", asked, c.want)
		}
	}
}

func TestPolkitRefusals(t *testing.T) {
	for _, c := range []struct {
		authority *authority
		code      int32
		detail    string
	}{
		{&authority{}, protocol.ErrAuthFailed, "access denied by policy"},
		{&authority{challenge: true}, protocol.ErrAuthUnavailable, "no polkit agent available to authenticate action 'org.libvirt.unix.manage'"},
		{&authority{challenge: true, details: map[string]string{"polkit.dismissed": "true"}}, protocol.ErrAuthCancelled, "user cancelled authentication process"},
		{&authority{challenge: true, details: map[string]string{"polkit.dismissed": "false"}}, protocol.ErrAuthUnavailable, "no polkit agent"},
		{&authority{refusal: dbus.NewError("org.freedesktop.PolicyKit1.Error.Failed", []any{"Action org.libvirt.unix.manage is not registered"})},
			protocol.ErrAuthFailed, "libvirt-daemon-common"},
		{&authority{refusal: dbus.NewError("org.freedesktop.PolicyKit1.Error.Failed", []any{"broken"})}, protocol.ErrAuthFailed, "broken"},
	} {
		_, a, p := newAuthority(t)
		a.mu.Lock()
		a.challenge, a.details, a.refusal = c.authority.challenge, c.authority.details, c.authority.refusal
		a.mu.Unlock()
		err := p.check(t.Context(), someone, actionManage, nil)
		var no *notAuthorised
		if errors.As(err, &no) != (c.authority.refusal == nil) {
			t.Errorf("%v is a decision: %v", err, no != nil)
		}
		var coded *Error
		if !errors.As(polkitError(err), &coded) || coded.Code != c.code || !strings.Contains(coded.Detail, c.detail) {
			t.Errorf("got %+v, want %d %q", coded, c.code, c.detail)
		}
	}
}

func TestPolkitNeedsStartTime(t *testing.T) {
	_, a, p := newAuthority(t)
	a.mu.Lock()
	a.authorised = true
	a.mu.Unlock()
	if err := p.check(t.Context(), Subject{PID: 1, UID: 1}, actionManage, nil); err == nil {
		t.Error("allowed")
	}
	if asked := a.questions(); len(asked) != 0 {
		t.Errorf("asked %q", asked)
	}
}

func TestPolkitAway(t *testing.T) {
	b := bustest.New(t)
	p := &polkit{bus: systemd.NewBus(b.Address)}
	defer p.bus.Close()
	away := func() {
		t.Helper()
		begin := time.Now()
		err := p.check(t.Context(), someone, actionManage, nil)
		var no *notAuthorised
		if err == nil || errors.As(err, &no) || !strings.Contains(err.Error(), "install the package polkitd") || time.Since(begin) > 5*time.Second {
			t.Errorf("got %v after %v", err, time.Since(begin))
		}
	}
	away() // a bus without polkitd
	b.Stop()
	away() // no bus
	b.Start()
	a := &authority{authorised: true}
	a.attach(t, b)
	if err := p.check(t.Context(), someone, actionManage, nil); err != nil {
		t.Error(err)
	}
}

// A human who does not answer holds up nobody else, and the question ends with the client that asked.
func TestPolkitClientLeaves(t *testing.T) {
	_, a, p := newAuthority(t)
	a.mu.Lock()
	a.wait = make(chan struct{})
	a.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if err := p.check(ctx, someone, actionManage, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(a.wait)
}
