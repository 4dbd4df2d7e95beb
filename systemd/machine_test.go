package systemd

import (
	"errors"
	"strings"
	"testing"
	"time"

	"virtvzd/systemd/bustest"
)

func TestMachine(t *testing.T) {
	_, f, c, ctx := setup(t)
	m := Machine{Name: "vz-web1", UUID: [16]byte{1, 2, 15: 16}, Service: "virtvzd", Class: "container", Leader: 4711, Root: "", NetIfs: []int32{3}}
	must(t, c.RegisterMachine(ctx, m))
	want := "machine vz-web1 {ID:[1 2 0 0 0 0 0 0 0 0 0 0 0 0 0 16] Class:container Leader:4711 NetIfs:[3]}\n"
	if f.String() != want {
		t.Errorf("got %s", f)
	}
	if err := c.RegisterMachine(ctx, m); !errors.Is(err, ErrMachineExists) || !strings.Contains(err.Error(), "vz-web1") {
		t.Errorf("got %v", err)
	}
	must(t, c.UnregisterMachine(ctx, m.Name))
	must(t, c.UnregisterMachine(ctx, m.Name))
	must(t, c.TerminateMachine(ctx, m.Name))
}

func TestWithoutMachined(t *testing.T) {
	b := bustest.New(t)
	newFake(t, b, false)
	c, err := Dial(t.Context(), b.Address)
	must(t, err)
	defer c.Close()
	begin := time.Now()
	err = c.RegisterMachine(t.Context(), Machine{Name: "vz-a", Class: "container", Leader: 1})
	if !errors.Is(err, ErrNoMachined) || !strings.Contains(err.Error(), "systemd-container") {
		t.Errorf("got %v", err)
	}
	if d := time.Since(begin); d > returnTimeout {
		t.Errorf("%v is too long for every start on a host without machined", d)
	}
}
