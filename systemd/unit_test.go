package systemd

import (
	"errors"
	"testing"
)

func TestUnit(t *testing.T) {
	_, f, c, ctx := setup(t)
	unit := ScopeName("web-1")
	for name, value := range map[string]any{
		"ActiveState": "failed", "SubState": "failed", "Result": "oom-kill", "FreezerState": "running", "ControlGroup": "/machine.slice/" + unit,
		"InvocationID": []byte("0123456789abcdef"), "MemoryMax": uint64(Infinity),
	} {
		f.set(unit, name, value)
	}
	s, err := c.State(ctx, unit)
	must(t, err)
	want := State{"loaded", "failed", "failed", "running", "oom-kill", "/machine.slice/" + unit, [16]byte([]byte("0123456789abcdef"))}
	if s != want {
		t.Errorf("got %+v", s)
	}
	must(t, c.SetProperties(ctx, unit, MemoryMax(5), CPUWeight(7)))
	must(t, c.Freeze(ctx, unit))
	must(t, c.Kill(ctx, unit, 9))
	p, err := c.Properties(ctx, unit)
	must(t, err)
	if p["MemoryMax"] != uint64(5) || p["CPUWeight"] != uint64(7) || p["FreezerState"] != "frozen" {
		t.Errorf("got %v", p)
	}
	must(t, c.Thaw(ctx, unit))
	if v, err := c.Property(ctx, unit, "FreezerState"); v != "running" || err != nil {
		t.Errorf("got %v, %v", v, err)
	}
	if v, err := c.ControlGroup(ctx, unit); v != "/machine.slice/"+unit || err != nil {
		t.Errorf("got %v, %v", v, err)
	}
	for call, interfaces := range map[string]string{"FreezerState": ".Unit.", "ControlGroup": ".Scope."} {
		if f.called("Get "+systemdName+interfaces+call) != 1 {
			t.Errorf("%s was not asked of %s: %q", call, interfaces, f.calls)
		}
	}
}

func TestUnknownUnit(t *testing.T) {
	_, _, c, ctx := setup(t)
	const unit = "none.scope"
	_, properties := c.Properties(ctx, unit)
	_, state := c.State(ctx, unit)
	_, group := c.ControlGroup(ctx, unit)
	for what, err := range map[string]error{
		"Properties": properties, "State": state, "ControlGroup": group, "Freeze": c.Freeze(ctx, unit), "Thaw": c.Thaw(ctx, unit),
		"SetProperties": c.SetProperties(ctx, unit, TasksMax(1)), "Kill": c.Kill(ctx, unit, 9),
	} {
		if !errors.Is(err, ErrNoSuchUnit) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestListByPattern(t *testing.T) {
	_, f, c, ctx := setup(t)
	for _, name := range []string{ScopeName("b"), ScopeName("a-b"), "machine-qemu\\x2d1.scope", "machine-vzx.scope"} {
		f.set(name, "ActiveState", "active")
	}
	units, err := c.ListUnits(ctx, ScopePattern)
	must(t, err)
	if len(units) != 2 || units[0].Name != ScopeName("a-b") || units[1].Name != ScopeName("b") || units[0].Active != "active" {
		t.Errorf("got %+v", units)
	}
	if units, err := c.ListUnits(ctx, "nothing*"); err != nil || len(units) != 0 {
		t.Errorf("got %v, %v", units, err)
	}
}

func TestVersion(t *testing.T) {
	for text, want := range map[string]int{"257.9-1~deb13u1": 257, "252.38-1~deb12u1": 252, "v258~rc1": 258, "systemd 249 (249.11)": 249, "255": 255, "none": 0} {
		_, f, c, ctx := setup(t)
		f.with(func() { f.version = text })
		got, err := c.Version(ctx)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v", text, got, err)
		}
		c.Version(ctx)
		if n := f.called("Get "); want != 0 && n != 1 {
			t.Errorf("asked %d times", n)
		}
	}
}
