package driver

import (
	"context"
	"math"
	"strings"
	"testing"

	"virtvzd/driver/protocol"
	"virtvzd/xml"
)

// TestMemoryExtremes are what libvirt's library keeps to itself: 2^53-1 KiB is
// its number for no limit, and nothing is more than that.
func TestMemoryExtremes(t *testing.T) {
	d := addDomain(t, statsDriver(t), "web1", "")
	for _, step := range []struct {
		kib   uint64
		flags uint32
		want  string // of the error
	}{
		{0, protocol.DomainMemConfig, "1024 to 9007199254740991, which is no limit, are accepted"},
		{1023, protocol.DomainMemConfig, "at least 1024 KiB are needed"},
		{xml.Unlimited + 1, protocol.DomainMemConfig, "1024 to 9007199254740991, which is no limit, are accepted"},
		{math.MaxUint64, protocol.DomainMemConfig, "1024 to 9007199254740991, which is no limit, are accepted"},
		{xml.Unlimited + 1, protocol.DomainMemConfig | protocol.DomainMemMaximum, "1024 to 9007199254740991, which is no limit, are accepted"},
		{math.MaxUint64, protocol.DomainMemConfig | protocol.DomainMemMaximum, "1024 to 9007199254740991, which is no limit, are accepted"},
		{xml.Unlimited, protocol.DomainMemConfig, "cannot set memory higher than max memory"},
		{xml.Unlimited, protocol.DomainMemConfig | protocol.DomainMemMaximum, ""},
		{xml.Unlimited, protocol.DomainMemConfig, ""},
	} {
		before := shown(t, d)
		c, err := d.change(context.Background(), nil, "test")
		if err != nil {
			t.Fatal(err)
		}
		err = setMemory(c, step.kib, step.flags)
		c.done()
		switch {
		case step.want == "" && err != nil || step.want != "" && (err == nil || !strings.Contains(err.Error(), step.want)):
			t.Errorf("%d KiB, flags %d: %v, want %s", step.kib, step.flags, err, step.want)
		case step.want != "" && shown(t, d) != before:
			t.Errorf("%d KiB, flags %d was refused and changed\n%s", step.kib, step.flags, shown(t, d))
		}
	}
	env, err := xml.NewEnvironment(d.view().config)
	if err != nil || env.Memory.Max != math.MaxUint64 {
		t.Errorf("it may use %d bytes, %v", env.Memory.Max, err)
	}
}
