package driver

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"libvirt.org/go/libvirtxml"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
)

var blockTuning = table{
	get(protocol.DomainGetBlkioParameters, blkioParameters),
	modify(protocol.DomainSetBlkioParameters, setBlkio),
	query(protocol.DomainGetBlockIoTune, blockIOTune),
	modify(protocol.DomainSetBlockIoTune, setBlockIOTune),
}

// deviceLimits are the parameters of blkiotune that list devices of the host
// and a value for each: "/dev/vda,1000,/dev/vdb,2000".
var deviceLimits = []struct {
	name  string
	field func(*libvirtxml.DomainBlockIOTuneDevice) *uint
	most  uint64
}{
	{protocol.DomainBlkioDeviceWeight, func(d *libvirtxml.DomainBlockIOTuneDevice) *uint { return &d.Weight }, 10000},
	{protocol.DomainBlkioDeviceReadIops, func(d *libvirtxml.DomainBlockIOTuneDevice) *uint { return &d.ReadIopsSec }, math.MaxUint32},
	{protocol.DomainBlkioDeviceWriteIops, func(d *libvirtxml.DomainBlockIOTuneDevice) *uint { return &d.WriteIopsSec }, math.MaxUint32},
	{protocol.DomainBlkioDeviceReadBps, func(d *libvirtxml.DomainBlockIOTuneDevice) *uint { return &d.ReadBytesSec }, math.MaxInt64},
	{protocol.DomainBlkioDeviceWriteBps, func(d *libvirtxml.DomainBlockIOTuneDevice) *uint { return &d.WriteBytesSec }, math.MaxInt64},
}

// defaultIOWeight is the kernel's weight of a cgroup.
const defaultIOWeight = 100

func blkioParameters(d *domain, a *protocol.DomainGetBlkioParametersArgs) (ret protocol.DomainGetBlkioParametersRet, err error) {
	def, _, err := d.view().affected(a.Flags)
	if err != nil {
		return ret, err
	}
	weight, devices := uint(defaultIOWeight), []libvirtxml.DomainBlockIOTuneDevice(nil)
	if t := def.BlockIOTune; t != nil {
		devices = t.Device
		if t.Weight != 0 {
			weight = t.Weight
		}
	}
	params := []protocol.TypedParam{{Field: protocol.DomainBlkioWeight, Value: protocol.UintValue(weight)}}
	for _, l := range deviceLimits {
		var list []string
		for i := range devices {
			if v := *l.field(&devices[i]); v != 0 {
				list = append(list, devices[i].Path, strconv.FormatUint(uint64(v), 10))
			}
		}
		params = append(params, protocol.TypedParam{Field: l.name, Value: protocol.StringValue(strings.Join(list, ","))})
	}
	ret.Params, ret.Nparams, err = limited(params, a.Nparams)
	return ret, err
}

// setBlkio changes <blkiotune>. Devices that a list does not name keep what
// they have; 0 takes a device's limit away.
func setBlkio(c *change, a *protocol.DomainSetBlkioParametersArgs) error {
	var weight int
	lists := make([]string, len(deviceLimits))
	into := map[string]any{protocol.DomainBlkioWeight: &weight}
	for i, l := range deviceLimits {
		into[l.name] = &lists[i]
	}
	given, err := readParams(a.Params, into)
	if err != nil {
		return err
	}
	parsed := make([][]deviceValue, len(deviceLimits))
	for i, l := range deviceLimits {
		if parsed[i], err = parseDevices(l.name, lists[i], l.most); err != nil {
			return err
		}
	}
	return c.tune(a.Flags, func(def *libvirtxml.Domain) error {
		t := def.BlockIOTune
		if t == nil {
			t = &libvirtxml.DomainBlockIOTune{}
		}
		if given[protocol.DomainBlkioWeight] {
			t.Weight = uint(weight)
		}
		for i, l := range deviceLimits {
			for _, v := range parsed[i] {
				*l.field(tuned(t, v.path)) = uint(v.value)
			}
		}
		setBlockTune(def, t)
		return nil
	})
}

// setBlockTune puts <blkiotune> in place, without what says nothing.
func setBlockTune(def *libvirtxml.Domain, t *libvirtxml.DomainBlockIOTune) {
	t.Device = slices.DeleteFunc(t.Device, func(d libvirtxml.DomainBlockIOTuneDevice) bool {
		return d == libvirtxml.DomainBlockIOTuneDevice{Path: d.Path}
	})
	def.BlockIOTune = t
	if t.Weight == 0 && len(t.Device) == 0 {
		def.BlockIOTune = nil
	}
}

// tuned is the entry of a device, a new one if there is none.
func tuned(t *libvirtxml.DomainBlockIOTune, path string) *libvirtxml.DomainBlockIOTuneDevice {
	for i := range t.Device {
		if t.Device[i].Path == path {
			return &t.Device[i]
		}
	}
	t.Device = append(t.Device, libvirtxml.DomainBlockIOTuneDevice{Path: path})
	return &t.Device[len(t.Device)-1]
}

type deviceValue struct {
	path  string
	value uint64
}

// maxTunedDevices is how many one list may name.
const maxTunedDevices = 64

func parseDevices(name, text string, most uint64) (list []deviceValue, err error) {
	if text == "" {
		return nil, nil
	}
	fields := strings.Split(text, ",")
	if len(fields)%2 != 0 || len(fields) > 2*maxTunedDevices {
		return nil, errorf(protocol.ErrInvalidArg, "unable to parse blkio device '%s' '%.80s': pairs of a device and a value are needed, at most %d", name, text, maxTunedDevices)
	}
	for i := 0; i < len(fields); i += 2 {
		path := fields[i]
		value, err := strconv.ParseUint(fields[i+1], 10, 64)
		if err != nil || value > most {
			return nil, errorf(protocol.ErrInvalidArg, "invalid value '%.40s' for parameter '%s' of device '%.80s'", fields[i+1], name, path)
		}
		info, err := os.Stat(path)
		if !filepath.IsAbs(path) || err != nil || info.Mode()&os.ModeDevice == 0 || info.Mode()&os.ModeCharDevice != 0 {
			return nil, errorf(protocol.ErrInvalidArg, "'%.80s' is not a block device of the host", path)
		}
		list = append(list, deviceValue{path, value})
	}
	return list, nil
}

type ioTuneField struct {
	name  string
	field func(*libvirtxml.DomainDiskIOTune) *uint64
}

// ioTuneFields are the parameters of blkdeviotune that the kernel can hold
// to: three of bytes, three of operations.
var ioTuneFields = []ioTuneField{
	{protocol.DomainBlockIotuneTotalBytesSec, func(t *libvirtxml.DomainDiskIOTune) *uint64 { return &t.TotalBytesSec }},
	{protocol.DomainBlockIotuneReadBytesSec, func(t *libvirtxml.DomainDiskIOTune) *uint64 { return &t.ReadBytesSec }},
	{protocol.DomainBlockIotuneWriteBytesSec, func(t *libvirtxml.DomainDiskIOTune) *uint64 { return &t.WriteBytesSec }},
	{protocol.DomainBlockIotuneTotalIopsSec, func(t *libvirtxml.DomainDiskIOTune) *uint64 { return &t.TotalIopsSec }},
	{protocol.DomainBlockIotuneReadIopsSec, func(t *libvirtxml.DomainDiskIOTune) *uint64 { return &t.ReadIopsSec }},
	{protocol.DomainBlockIotuneWriteIopsSec, func(t *libvirtxml.DomainDiskIOTune) *uint64 { return &t.WriteIopsSec }},
}

// refusedIOTune are those it cannot: they may be given as 0, which virsh does
// for all when one is.
var refusedIOTune = []string{
	protocol.DomainBlockIotuneTotalBytesSecMax, protocol.DomainBlockIotuneReadBytesSecMax, protocol.DomainBlockIotuneWriteBytesSecMax,
	protocol.DomainBlockIotuneTotalIopsSecMax, protocol.DomainBlockIotuneReadIopsSecMax, protocol.DomainBlockIotuneWriteIopsSecMax,
	protocol.DomainBlockIotuneTotalBytesSecMaxLength, protocol.DomainBlockIotuneReadBytesSecMaxLength, protocol.DomainBlockIotuneWriteBytesSecMaxLength,
	protocol.DomainBlockIotuneTotalIopsSecMaxLength, protocol.DomainBlockIotuneReadIopsSecMaxLength, protocol.DomainBlockIotuneWriteIopsSecMaxLength,
	protocol.DomainBlockIotuneSizeIopsSec,
}

func blockIOTune(r *request, d *domain, a *protocol.DomainGetBlockIoTuneArgs) (ret protocol.DomainGetBlockIoTuneRet, err error) {
	v := d.view()
	def, _, err := v.affected(a.Flags)
	if err != nil {
		return ret, err
	}
	t := &libvirtxml.DomainDiskIOTune{}
	if a.Disk == nil { // asks how many parameters there are
		ret.Nparams = int32(len(ioTuneFields))
		return ret, nil
	}
	b, err := r.drv.findBlockOf(d, v, def, *a.Disk)
	if err != nil {
		return ret, err
	}
	if b.name == rootTarget {
		if t, err = rootIOTune(def, b); err != nil {
			return ret, err
		}
	} else if disk := diskOf(def, b.name); disk != nil && disk.IOTune != nil {
		t = disk.IOTune
	}
	var params []protocol.TypedParam
	for _, f := range ioTuneFields {
		params = append(params, protocol.TypedParam{Field: f.name, Value: protocol.UllongValue(*f.field(t))})
	}
	ret.Params, ret.Nparams, err = limited(params, a.Nparams)
	return ret, err
}

// setBlockIOTune limits a disk, or the root. The root is no device of its
// own: its limits are <blkiotune>'s for the device it lies on, where a total
// is a limit for reading and one for writing.
func setBlockIOTune(c *change, a *protocol.DomainSetBlockIoTuneArgs) error {
	given, wanted, err := readIOTune(a.Params)
	if err != nil {
		return err
	}
	changed := append([]protocol.TypedParam{{Field: protocol.DomainTunableBlkdevDisk, Value: protocol.StringValue(a.Disk)}}, prefixed("blkdeviotune.", a.Params)...)
	return c.tune(a.Flags, func(def *libvirtxml.Domain) error {
		b, err := c.drv.findBlockOf(c.domain, c.view(), def, a.Disk)
		if err != nil {
			return err
		}
		if b.name == rootTarget {
			return setRootIOTune(def, b, given, wanted)
		}
		disk := diskOf(def, b.name)
		t := disk.IOTune
		if t == nil {
			t = &libvirtxml.DomainDiskIOTune{}
		}
		merge(t, given, wanted)
		disk.IOTune = t
		if *t == (libvirtxml.DomainDiskIOTune{}) {
			disk.IOTune = nil
		}
		return nil
	}, tunableEvent(changed...))
}

func readIOTune(params []protocol.TypedParam) (given map[string]bool, t *libvirtxml.DomainDiskIOTune, err error) {
	t = &libvirtxml.DomainDiskIOTune{}
	var group string
	refused := make([]uint64, len(refusedIOTune))
	into := map[string]any{protocol.DomainBlockIotuneGroupName: &group}
	for _, f := range ioTuneFields {
		into[f.name] = f.field(t)
	}
	for i, name := range refusedIOTune {
		into[name] = &refused[i]
	}
	if given, err = readParams(params, into); err != nil {
		return nil, nil, err
	}
	for i, value := range refused {
		if value != 0 {
			return nil, nil, errorf(protocol.ErrConfigUnsupported, "%s cannot be had: the kernel limits bytes and operations a second, without bursts", refusedIOTune[i])
		}
	}
	if group != "" {
		return nil, nil, errorf(protocol.ErrConfigUnsupported, "group_name cannot be had: the kernel has no groups of disks")
	}
	for _, f := range ioTuneFields {
		if *f.field(t) > math.MaxInt64 {
			return nil, nil, errorf(protocol.ErrArgumentUnsupported, "%s must be at most %d", f.name, int64(math.MaxInt64))
		}
	}
	return given, t, nil
}

// merge puts the given limits over those there are: who gives one of bytes or of
// operations gives all of that kind, and those he does not name hold no more
// (qemuDomainSetBlockIoTuneDefaults).
func merge(t *libvirtxml.DomainDiskIOTune, given map[string]bool, wanted *libvirtxml.DomainDiskIOTune) {
	for kind := range slices.Chunk(ioTuneFields, 3) {
		if !slices.ContainsFunc(kind, func(f ioTuneField) bool { return given[f.name] }) {
			continue
		}
		for _, f := range kind {
			*f.field(t) = *f.field(wanted)
		}
	}
}

func diskOf(def *libvirtxml.Domain, target string) *libvirtxml.DomainDisk {
	for i := range def.Devices.Disks {
		if d := &def.Devices.Disks[i]; d.Target != nil && d.Target.Dev == target {
			return d
		}
	}
	return nil
}

// rootDevice is the path by which <blkiotune> names the device that the root
// lies on: its node or, where the file system has none (btrfs), the
// directory, which systemd resolves.
func rootDevice(b block) (string, error) {
	switch {
	case b.qcow2:
		return "", errorf(protocol.ErrOperationUnsupported, "the root is a qcow2 image, which a process of the host reads and writes: limit a raw image instead")
	case b.path == "":
		return "", errorf(protocol.ErrOperationInvalid, "the root is in the volume %s, whose disk is known while the domain runs", b.volume)
	}
	dir := b.path
	for {
		if _, err := os.Stat(dir); err == nil || dir == "/" {
			break
		}
		dir = filepath.Dir(dir) // the layer is made when it is first needed
	}
	node, err := runtime.DiskNode(dir)
	if err != nil || node != "" {
		return node, err
	}
	return dir, nil
}

func rootIOTune(def *libvirtxml.Domain, b block) (*libvirtxml.DomainDiskIOTune, error) {
	path, err := rootDevice(b)
	if err != nil {
		return nil, err
	}
	t := &libvirtxml.DomainDiskIOTune{}
	if def.BlockIOTune == nil {
		return t, nil
	}
	for _, d := range def.BlockIOTune.Device {
		if d.Path == path {
			t.ReadBytesSec, t.WriteBytesSec = uint64(d.ReadBytesSec), uint64(d.WriteBytesSec)
			t.ReadIopsSec, t.WriteIopsSec = uint64(d.ReadIopsSec), uint64(d.WriteIopsSec)
		}
	}
	return t, nil
}

func setRootIOTune(def *libvirtxml.Domain, b block, given map[string]bool, wanted *libvirtxml.DomainDiskIOTune) error {
	if wanted.TotalBytesSec > 0 && wanted.ReadBytesSec+wanted.WriteBytesSec > 0 || wanted.TotalIopsSec > 0 && wanted.ReadIopsSec+wanted.WriteIopsSec > 0 {
		return errorf(protocol.ErrInvalidArg, "total and read/write of bytes_sec or iops_sec cannot be set at the same time")
	}
	t, err := rootIOTune(def, b)
	if err != nil {
		return err
	}
	merge(t, given, wanted)
	path, err := rootDevice(b)
	if err != nil {
		return err
	}
	all := def.BlockIOTune
	if all == nil {
		all = &libvirtxml.DomainBlockIOTune{}
	}
	d := tuned(all, path)
	d.ReadBytesSec, d.WriteBytesSec = uint(max(t.ReadBytesSec, t.TotalBytesSec)), uint(max(t.WriteBytesSec, t.TotalBytesSec))
	d.ReadIopsSec, d.WriteIopsSec = uint(max(t.ReadIopsSec, t.TotalIopsSec)), uint(max(t.WriteIopsSec, t.TotalIopsSec))
	if d.ReadIopsSec > math.MaxUint32 || d.WriteIopsSec > math.MaxUint32 {
		return errorf(protocol.ErrArgumentUnsupported, "operations a second must be at most %d", uint32(math.MaxUint32))
	}
	setBlockTune(def, all)
	return nil
}
