package xml

import (
	"math"
	"reflect"
	"strings"
	"testing"
)

func TestLimits(t *testing.T) {
	none := NoCounts()
	with := func(edit func(*CountLimits)) CountLimits {
		c := none
		edit(&c)
		return c
	}
	tests := []struct {
		elements string
		field    func(*Environment) any
		want     any
	}{
		{"<cputune><quota>50000</quota></cputune>", func(e *Environment) any { return e.CPU.QuotaUSec }, int64(50000)},
		{"<cputune><quota>50000</quota><global_period>10000</global_period><global_quota>4000</global_quota></cputune>",
			func(e *Environment) any { return [2]int64{e.CPU.QuotaUSec, int64(e.CPU.PeriodUSec)} }, [2]int64{4000, 10000}},
		{"<cputune><quota>-1</quota><emulator_quota>200000</emulator_quota></cputune>",
			func(e *Environment) any { return [2]int64{e.CPU.QuotaUSec, int64(e.CPU.PeriodUSec)} }, [2]int64{200000, 100000}},
		{"<vcpu>2</vcpu><cputune><vcpupin vcpu='1' cpuset='0'/><emulatorpin cpuset='0-1'/></cputune>",
			func(e *Environment) any { return []any{e.CPU.Pins, e.CPU.Emulator} }, []any{[]Pin{{1, "0"}}, "0-1"}},
		{"<numatune><memory mode='strict' nodeset='0'/></numatune>", func(e *Environment) any { return e.CPU.MemoryNodes }, "0"},
		{"<numatune><memory mode='preferred' nodeset='0'/></numatune>", func(e *Environment) any { return e.CPU.MemoryNodes }, ""},
		{"<blkiotune><weight>200</weight><device><path>/dev/vda</path><write_iops_sec>20</write_iops_sec></device></blkiotune>",
			func(e *Environment) any { return e.IO }, IOLimits{Weight: 200, Devices: []DeviceIO{{Path: "/dev/vda", WriteIOPS: 20}}}},
		{"<metadata><v:ve xmlns:v='" + VENamespace + "'><v:tasks>9</v:tasks><v:ubc name='numpty' limit='7'/></v:ve></metadata>",
			func(e *Environment) any { return e.Counts }, with(func(c *CountLimits) { c.Tasks, c.Terminals = 9, 7 })},
		{"<metadata><v:ve xmlns:v='" + VENamespace + "'><v:ubc name='numproc' limit='9' barrier='8'/><v:ubc name='oomguarpages' limit='2'/></v:ve></metadata>",
			func(e *Environment) any { return []any{e.Counts, e.Memory.Min} }, []any{with(func(c *CountLimits) { c.Tasks = 9 }), uint64(8192)}},
		{"<metadata><v:ve xmlns:v='" + VENamespace + "'><v:ubc name='shmpages' limit='9223372036854775807'/></v:ve></metadata>",
			func(e *Environment) any { return e.Counts.SharedPages }, uint64(math.MaxUint64)},
	}
	for _, test := range tests {
		def, err := Parse(strings.Replace(minimal, "<memory", test.elements+"<memory", 1), host, ParseOptions{})
		if err != nil {
			t.Errorf("%s: %v", test.elements, err)
			continue
		}
		env, err := NewEnvironment(def)
		if err != nil {
			t.Fatal(err)
		}
		if got := test.field(env); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %v, want %v", test.elements, got, test.want)
		}
	}
}

func TestLimitsRefused(t *testing.T) {
	ve := func(inner string) string {
		return "<metadata><v:ve xmlns:v='" + VENamespace + "'>" + inner + "</v:ve></metadata>"
	}
	tests := []struct{ elements, want string }{
		{ve("<v:ubc name='physpages' limit='100'/>"), "use it, or virsh setmem"},
		{ve("<v:ubc name='numtcpsock' limit='100'/>"), "sockets count as memory"},
		{ve("<v:ubc name='nosuch' limit='100'/>"), "which is no beancounter"},
		{ve("<v:ubc name='numpty'/>"), "needs a limit of 1 to"},
		{ve("<v:ubc name='numpty' limit='3'/><v:ubc name='numpty' limit='3'/>"), "occurs twice for numpty"},
		{ve("<v:ubc name='numproc' limit='3'/><v:tasks>4</v:tasks>"), "are the same limit"},
		{ve("<v:ubc name='numpty' limit='-3'/>"), "not negative"},
		{"<cputune><emulator_quota>5</emulator_quota></cputune>", "<emulator_quota>"},
		{"<cputune><iothread_quota>5000</iothread_quota></cputune>", "<cputune>"},
	}
	for _, test := range tests {
		_, err := Parse(strings.Replace(minimal, "<memory", test.elements+"<memory", 1), host, ParseOptions{})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.elements, err, test.want)
		}
	}
}

func TestCPUSetText(t *testing.T) {
	for _, text := range []string{"0", "0-1", "0-3,8", "1,3,5-7"} {
		list, err := ParseCPUSet(text)
		if got := FormatCPUSet(list); err != nil || got != text {
			t.Errorf("%s: %v %q", text, err, got)
		}
	}
}

// TestUnrealisedCPUs: a definition may be of a larger host.
func TestUnrealisedCPUs(t *testing.T) {
	for vcpu, want := range map[string]string{
		"<vcpu>4</vcpu>":             "",
		"<vcpu current='4'>9</vcpu>": "",
		"<vcpu>5</vcpu>":             "<vcpu> of 5 is not in force: the host has 4 CPUs",
	} {
		def, err := Parse(strings.Replace(minimal, "<os>", vcpu+"<os>", 1), host, ParseOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(Unrealised(def, host), "\n"); got != want {
			t.Errorf("%s: %q, want %q", vcpu, got, want)
		}
	}
}
