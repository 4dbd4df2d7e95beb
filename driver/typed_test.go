package driver

import (
	"context"
	"math"
	"strings"
	"testing"

	"virtvzd/driver/protocol"
	"virtvzd/xml"
)

func TestReadParams(t *testing.T) {
	type params = []protocol.TypedParam
	for name, c := range map[string]struct {
		params params
		want   string // of the error
	}{
		"unknown":        {params{{Field: "big", Value: protocol.UllongValue(1)}, {Field: "none", Value: protocol.UllongValue(1)}}, "parameter 'none' is not supported"},
		"twice":          {params{{Field: "big", Value: protocol.UllongValue(1)}, {Field: "big", Value: protocol.UllongValue(2)}}, "parameter 'big' occurs multiple times"},
		"other type":     {params{{Field: "big", Value: protocol.UintValue(1)}}, "parameter 'big' must be of type ullong"},
		"not a number":   {params{{Field: "big", Value: protocol.DoubleValue(math.NaN())}}, "parameter 'big' must be of type ullong"},
		"number as text": {params{{Field: "small", Value: protocol.StringValue("1")}}, "parameter 'small' must be of type uint"},
		"negative":       {params{{Field: "small", Value: protocol.IntValue(-1)}}, "parameter 'small' must be of type uint"},
		"negative long":  {params{{Field: "big", Value: protocol.LlongValue(-1)}}, "parameter 'big' must be of type ullong"},
		"unsigned":       {params{{Field: "quota", Value: protocol.UllongValue(1)}}, "parameter 'quota' must be of type llong"},
		"unsigned int":   {params{{Field: "mode", Value: protocol.UintValue(1)}}, "parameter 'mode' must be of type int"},
		"text":           {params{{Field: "list", Value: protocol.BooleanValue(1)}}, "parameter 'list' must be of type string"},
		"no name":        {params{{Value: protocol.UllongValue(1)}}, "parameter '' is not supported"},
	} {
		var big uint64
		var quota int64
		var small int
		var mode int32
		var list string
		into := map[string]any{"big": &big, "quota": &quota, "small": &small, "mode": &mode, "list": &list}
		if _, err := readParams(c.params, into); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", name, err, c.want)
		}
		given, err := readParams(params{
			{Field: "big", Value: protocol.UllongValue(math.MaxUint64)}, {Field: "quota", Value: protocol.LlongValue(-1)},
			{Field: "small", Value: protocol.UintValue(math.MaxUint32)}, {Field: "list", Value: protocol.StringValue("a,b")},
		}, into)
		if err != nil || big != math.MaxUint64 || quota != -1 || small != math.MaxUint32 || list != "a,b" || len(given) != 4 || given["mode"] {
			t.Errorf("%d %d %d %q, given %v, %v", big, quota, small, list, given, err)
		}
	}
}

// TestMixedParams: of valid parameters together with an invalid one none
// counts, whatever the setter.
func TestMixedParams(t *testing.T) {
	drv := statsDriver(t)
	d := addDomain(t, drv, "web1", "")
	const nic = "52:54:00:00:00:01"
	def, err := xml.Parse(strings.Replace(domainXML("web1", "<uuid>"+d.uuid.String()+"</uuid>"), "</devices>",
		"<interface type='ethernet'><mac address='"+nic+"'/></interface></devices>", 1), drv.facts(), xml.ParseOptions{})
	if err != nil {
		t.Fatal(err)
	}
	setView(d, func(v *view) { v.config = def })
	type params = []protocol.TypedParam
	for name, s := range map[string]struct {
		set   func(*change, params) error
		valid protocol.TypedParam
		more  params // each of them is refused
	}{
		"memtune": {func(c *change, p params) error {
			return setMemoryParameters(c, &protocol.DomainSetMemoryParametersArgs{Params: p})
		}, protocol.TypedParam{Field: protocol.DomainMemorySoftLimit, Value: protocol.UllongValue(32768)}, params{
			{Field: protocol.DomainMemoryHardLimit, Value: protocol.UllongValue(0)},
			{Field: protocol.DomainMemoryHardLimit, Value: protocol.LlongValue(-1)},
		}},
		"schedinfo": {func(c *change, p params) error { return setScheduler(c, p, 0) },
			protocol.TypedParam{Field: protocol.DomainSchedulerCPUShares, Value: protocol.UllongValue(300)}, params{
				{Field: protocol.DomainSchedulerVcpuQuota, Value: protocol.LlongValue(5)},
				{Field: protocol.DomainSchedulerGlobalPeriod, Value: protocol.UllongValue(math.MaxUint64)},
				{Field: protocol.DomainSchedulerGlobalQuota, Value: protocol.LlongValue(math.MaxInt64)},
			}},
		"numatune": {func(c *change, p params) error {
			return setNuma(c, &protocol.DomainSetNumaParametersArgs{Params: p})
		}, protocol.TypedParam{Field: protocol.DomainNumaNodeset, Value: protocol.StringValue("0")}, params{
			{Field: protocol.DomainNumaMode, Value: protocol.IntValue(-1)},
			{Field: protocol.DomainNumaMode, Value: protocol.IntValue(4)},
		}},
		"blkiotune": {func(c *change, p params) error {
			return setBlkio(c, &protocol.DomainSetBlkioParametersArgs{Params: p})
		}, protocol.TypedParam{Field: protocol.DomainBlkioWeight, Value: protocol.UintValue(300)}, params{
			{Field: protocol.DomainBlkioDeviceReadBps, Value: protocol.StringValue("/dev/null,1")},
			{Field: protocol.DomainBlkioDeviceReadBps, Value: protocol.StringValue("/dev/nosuch,1")},
			{Field: protocol.DomainBlkioDeviceWriteIops, Value: protocol.StringValue("/dev/null,-1")},
			{Field: protocol.DomainBlkioDeviceWeight, Value: protocol.StringValue("/dev/null,NaN")},
			{Field: protocol.DomainBlkioDeviceWeight, Value: protocol.StringValue("/dev/null")},
		}},
		"blkdeviotune": {func(c *change, p params) error {
			return setBlockIOTune(c, &protocol.DomainSetBlockIoTuneArgs{Disk: "/", Params: p})
		}, protocol.TypedParam{Field: protocol.DomainBlockIotuneReadBytesSec, Value: protocol.UllongValue(1 << 20)}, params{
			{Field: protocol.DomainBlockIotuneWriteBytesSec, Value: protocol.UllongValue(math.MaxUint64)},
			{Field: protocol.DomainBlockIotuneWriteIopsSec, Value: protocol.UllongValue(math.MaxUint32 + 1)},
			{Field: protocol.DomainBlockIotuneTotalBytesSec, Value: protocol.UllongValue(5)},
			{Field: protocol.DomainBlockIotuneReadIopsSecMax, Value: protocol.UllongValue(5)},
			{Field: protocol.DomainBlockIotuneGroupName, Value: protocol.StringValue("disks")},
		}},
		"domiftune": {func(c *change, p params) error {
			return setInterfaceParameters(c, &protocol.DomainSetInterfaceParametersArgs{Device: nic, Params: p})
		}, protocol.TypedParam{Field: protocol.DomainBandwidthInAverage, Value: protocol.UintValue(100)}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			try := func(p ...protocol.TypedParam) error {
				c, err := d.change(context.Background(), nil, name)
				if err != nil {
					t.Fatal(err)
				}
				defer c.done()
				return s.set(c, p)
			}
			wrong := append(s.more, s.valid, protocol.TypedParam{Field: "nosuch", Value: s.valid.Value},
				protocol.TypedParam{Field: s.valid.Field, Value: protocol.DoubleValue(math.NaN())})
			before := shown(t, d)
			for _, p := range wrong {
				if err := try(s.valid, p); err == nil {
					t.Errorf("%+v is accepted", p)
				}
				if after := shown(t, d); after != before {
					t.Errorf("%+v was refused and the others changed\n%s\nto\n%s", p, before, after)
				}
			}
			if err := try(s.valid); err != nil || shown(t, d) == before {
				t.Errorf("the valid one alone: %v", err)
			}
		})
	}
}

// shown is the definition that clients see.
func shown(t *testing.T, d *domain) string {
	t.Helper()
	doc, err := xml.Format(d.view().config, xml.FormatOptions{Inactive: true})
	if err != nil {
		t.Fatal(err)
	}
	return doc
}
