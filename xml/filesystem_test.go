package xml

import (
	"strings"
	"testing"
)

func limitedRoot(kind, limits string) string {
	return `<domain type='vz'><name>web1</name><memory>131072</memory><devices>` +
		`<filesystem type='` + kind + `'><source name='t' file='/i' dev='/i'/><target dir='/'/>` + limits + `</filesystem></devices></domain>`
}

// TestSpaceLimits reads libvirt's units: bytes when none is given.
func TestSpaceLimits(t *testing.T) {
	const none = 0
	for limits, want := range map[string][2]uint64{
		``: {none, none},
		`<space_hard_limit>4096</space_hard_limit>`:                                                          {4096, none},
		`<space_hard_limit unit='MiB'>2</space_hard_limit><space_soft_limit unit='KiB'>8</space_soft_limit>`: {2 << 20, 8 << 10},
		`<space_hard_limit unit='GiB'>0</space_hard_limit>`:                                                  {none, none},
		`<space_soft_limit unit='KiB'>8</space_soft_limit>`:                                                  {none, 8 << 10},
	} {
		def, err := Parse(limitedRoot("template", limits), HostFacts{}, ParseOptions{})
		if err != nil {
			t.Errorf("%s: %v", limits, err)
			continue
		}
		env, err := NewEnvironment(def)
		if err != nil {
			t.Fatal(err)
		}
		if fs := env.Filesystems[0]; fs.HardLimit != want[0] || fs.SoftLimit != want[1] {
			t.Errorf("%s: %d, %d", limits, fs.HardLimit, fs.SoftLimit)
		}
		if list := Unrealised(def, HostFacts{}); len(list) != 0 {
			t.Errorf("%s: %q", limits, list)
		}
	}
}

func TestSpaceLimitsRefused(t *testing.T) {
	for limits, want := range map[string]string{
		`<space_hard_limit unit='KiB'>4</space_hard_limit><space_soft_limit unit='KiB'>8</space_soft_limit>`: "must not be above",
		`<space_hard_limit unit='furlong'>4</space_hard_limit>`:                                              "unit",
	} {
		if _, err := Parse(limitedRoot("template", limits), HostFacts{}, ParseOptions{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", limits, err)
		}
	}
	for what, root := range map[string]string{
		"a device":                   limitedRoot("block", `<space_hard_limit>4096</space_hard_limit>`),
		"an image with a soft limit": limitedRoot("file", `<space_hard_limit>8192</space_hard_limit><space_soft_limit>4096</space_soft_limit>`),
	} {
		def, err := Parse(root, HostFacts{}, ParseOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if list := Unrealised(def, HostFacts{}); len(list) != 1 {
			t.Errorf("of %s: %q", what, list)
		}
		if err := SetRootSpace(def, 1<<20); err == nil || !strings.Contains(err.Error(), "the size that its source has") {
			t.Errorf("of %s: %v", what, err)
		}
	}
}

// TestSetRootSpace lowers the soft limit with the hard one.
func TestSetRootSpace(t *testing.T) {
	def, err := Parse(limitedRoot("template", `<space_hard_limit unit='MiB'>4</space_hard_limit><space_soft_limit unit='MiB'>3</space_soft_limit>`), HostFacts{}, ParseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ size, soft uint64 }{{8 << 20, 3 << 20}, {2 << 20, 2 << 20}} {
		if err := SetRootSpace(def, step.size); err != nil {
			t.Fatal(err)
		}
		if hard, soft := spaceLimits(def.Devices.Filesystems[0]); hard != step.size || soft != step.soft {
			t.Errorf("%d, %d, want %v", hard, soft, step)
		}
	}
}
