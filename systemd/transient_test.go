package systemd

import (
	"errors"
	"testing"
)

func TestStartService(t *testing.T) {
	_, f, c, ctx := setup(t)
	props := append(Confined(1<<1, Bind{"/srv/a", "/image", false}, Bind{"/usr", "/usr", true}), ServiceType("forking"), ExecStart("/usr/bin/x", "--y"))
	must(t, c.StartService(ctx, "a.service", props...))
	want := `a.service
	ActiveState=active
	BindPaths=[[/srv/a /image false 0]]
	BindReadOnlyPaths=[[/usr /usr false 0]]
	CapabilityBoundingSet=2
	ExecStart=[[/usr/bin/x [/usr/bin/x --y] false]]
	LimitCORE=0
	MountAPIVFS=true
	NoNewPrivileges=true
	PrivateDevices=true
	PrivateIPC=true
	PrivateNetwork=true
	ProtectControlGroups=true
	ProtectHostname=true
	ProtectKernelTunables=true
	ProtectProc=invisible
	RestrictAddressFamilies=[true [AF_UNIX]]
	RestrictNamespaces=0
	SubState=running
	SystemCallArchitectures=[native]
	SystemCallFilter=[true [@system-service]]
	TemporaryFileSystem=[[/ ro]]
	Type=forking
`
	if got := f.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	f.with(func() { f.jobResult = "failed" })
	if err := c.StartService(ctx, "b.service", props...); !errors.Is(err, ErrJobFailed) {
		t.Error(err)
	}
}
