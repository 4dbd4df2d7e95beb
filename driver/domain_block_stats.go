package driver

import (
	"errors"
	"io"
	"math"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"virtvzd/driver/protocol"
	"virtvzd/runtime"
)

var blockStatistics = table{
	query(protocol.DomainBlockStats, domainBlockStats),
	query(protocol.DomainBlockStatsFlags, domainBlockStatsFlags),
	query(protocol.DomainGetBlockInfo, domainBlockInfo),
	query(protocol.DomainGetDiskErrors, domainDiskErrors),
	query(protocol.DomainBlockPeek, domainBlockPeek),
}

// blockCounters are what the kernel counts of a device: it tells no times
// and no flushes.
const blockCounters = 4

func domainBlockStats(r *request, d *domain, a *protocol.DomainBlockStatsArgs) (ret protocol.DomainBlockStatsRet, err error) {
	s, err := r.blockStats(d, a.Path)
	return protocol.DomainBlockStatsRet{
		RdReq: int64(s.Reads), RdBytes: int64(s.ReadBytes), WrReq: int64(s.Writes), WrBytes: int64(s.WriteBytes),
		Errs: -1, // not counted
	}, err
}

func domainBlockStatsFlags(r *request, d *domain, a *protocol.DomainBlockStatsFlagsArgs) (ret protocol.DomainBlockStatsFlagsRet, err error) {
	switch {
	case a.Nparams < 0:
		return ret, errorf(protocol.ErrInternalError, "nparams must be non-negative")
	case a.Nparams > protocol.DomainBlockStatsParametersMax:
		return ret, errorf(protocol.ErrInternalError, "nparams too large")
	}
	if err := checkFlags(a.Flags, protocol.TypedParamStringOkay); err != nil {
		return ret, err
	}
	if a.Nparams == 0 {
		ret.Nparams = blockCounters
		return ret, nil
	}
	s, err := r.blockStats(d, a.Path)
	if err != nil {
		return ret, err
	}
	for _, c := range []struct {
		name  string
		value runtime.Number
	}{
		{protocol.DomainBlockStatsWriteBytes, s.WriteBytes}, {protocol.DomainBlockStatsWriteReq, s.Writes},
		{protocol.DomainBlockStatsReadBytes, s.ReadBytes}, {protocol.DomainBlockStatsReadReq, s.Reads},
	} {
		if c.value.Known() {
			ret.Params = append(ret.Params, protocol.TypedParam{Field: c.name, Value: protocol.LlongValue(c.value)})
		}
	}
	ret.Params = ret.Params[:min(len(ret.Params), int(a.Nparams))]
	ret.Nparams = int32(len(ret.Params))
	return ret, nil
}

// blockStats reads what an environment did on the root's disk, on that of a
// <disk>, or with the empty path on all disks. As in libvirt's lxc driver a
// device mapper's device and the one below it then both count.
func (r *request) blockStats(d *domain, path string) (runtime.IOStats, error) {
	cgroup, err := d.cgroup()
	if err != nil {
		return runtime.IOStats{}, err
	}
	defer cgroup.Close()
	if path == "" {
		return runtime.TotalIO(cgroup.IO()), nil
	}
	b, err := r.drv.findBlock(d, path)
	if err != nil {
		return runtime.IOStats{}, err
	}
	return b.io(cgroup.IO())
}

// domainBlockInfo tells sizes in bytes: of a directory or a template's layer
// that is the root, those df shows inside; of an image those of the disk in it.
func domainBlockInfo(r *request, d *domain, a *protocol.DomainGetBlockInfoArgs) (ret protocol.DomainGetBlockInfoRet, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return ret, err
	}
	b, err := r.drv.findBlock(d, a.Path)
	if err != nil {
		return ret, err
	}
	if err := r.locate(&b); err != nil {
		return ret, err
	}
	s, err := b.space()
	return protocol.DomainGetBlockInfoRet{Capacity: s.Capacity, Allocation: s.Allocation, Physical: s.Physical}, err
}

// locate asks where a volume is that is not in use.
func (r *request) locate(b *block) (err error) {
	if b.path == "" {
		b.path, err = r.drv.rt.VolumePath(r.ctx, b.volume)
	}
	return err
}

// domainDiskErrors are none: an error of the disk reaches the process that
// reads or writes, there is no device in between that would stop.
func domainDiskErrors(r *request, d *domain, a *protocol.DomainGetDiskErrorsArgs) (ret protocol.DomainGetDiskErrorsRet, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return ret, err
	}
	if a.Maxerrors > protocol.DomainDiskErrorsMax {
		return ret, errorf(protocol.ErrInternalError, "maxerrors too large")
	}
	if !d.view().state.active() {
		return ret, errNotRunning()
	}
	return ret, nil
}

// addBlocks has the root first, then the disks.
func addBlocks(g *gathering, l *numberList) {
	var used []runtime.IOStats
	if g.cgroup != nil {
		used = g.cgroup.IO()
	}
	blocks := g.drv.blocks(g.d, g.v)
	l.uint(protocol.DomainStatsBlockCount, len(blocks))
	for n, b := range blocks {
		prefix := protocol.DomainStatsBlockPrefix + strconv.Itoa(n)
		l.text(prefix+protocol.DomainStatsBlockSuffixName, b.name)
		l.text(prefix+protocol.DomainStatsBlockSuffixPath, b.path)
		if g.cgroup != nil {
			l.blockIO(prefix, b, used)
		}
		l.blockSpace(prefix, b)
	}
	addIOExtra(g, l, used)
}

func (l *numberList) blockIO(prefix string, b block, used []runtime.IOStats) {
	s, err := b.io(used)
	if err != nil {
		return // the path is gone
	}
	l.number(prefix+protocol.DomainStatsBlockSuffixRdReqs, s.Reads)
	l.number(prefix+protocol.DomainStatsBlockSuffixRdBytes, s.ReadBytes)
	l.number(prefix+protocol.DomainStatsBlockSuffixWrReqs, s.Writes)
	l.number(prefix+protocol.DomainStatsBlockSuffixWrBytes, s.WriteBytes)
}

// blockSpace does not ask for the size of what lies on another host: domstats
// must not wait for a server.
func (l *numberList) blockSpace(prefix string, b block) {
	if b.kind == rootDirectory || b.kind == rootImage || b.kind == diskImage {
		if remote, err := runtime.Remote(b.path); err != nil || remote {
			return
		}
	}
	s, err := b.space()
	if err != nil {
		return // not there: a root that was never started, a disk that is gone
	}
	l.ullong(prefix+protocol.DomainStatsBlockSuffixAllocation, s.Allocation)
	l.ullong(prefix+protocol.DomainStatsBlockSuffixCapacity, s.Capacity)
	l.ullong(prefix+protocol.DomainStatsBlockSuffixPhysical, s.Physical)
}

// domainBlockPeek reads from a disk, running or not; a root is no disk.
func domainBlockPeek(r *request, d *domain, a *protocol.DomainBlockPeekArgs) (ret protocol.DomainBlockPeekRet, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return ret, err
	}
	if a.Size > protocol.DomainBlockPeekBufferMax {
		return ret, errorf(protocol.ErrInvalidArg, "size %d is beyond the limit of %d bytes", a.Size, protocol.DomainBlockPeekBufferMax)
	}
	b, err := r.drv.findBlock(d, a.Path)
	if err != nil {
		return ret, err
	}
	if b.isDirectory() {
		return ret, errorf(protocol.ErrOperationUnsupported, "'%s' is a directory tree, not a disk: there are no blocks to peek at", a.Path)
	}
	if b.qcow2 {
		return ret, errorf(protocol.ErrOperationUnsupported, "'%s' is a qcow2 image: only what is in a raw one can be peeked at", a.Path)
	}
	if err := r.locate(&b); err != nil {
		return ret, err
	}
	f, err := os.OpenFile(b.path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return ret, errorf(protocol.ErrOperationFailed, "%v", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() && info.Mode()&(os.ModeDevice|os.ModeCharDevice) != os.ModeDevice {
		return ret, errorf(protocol.ErrOperationUnsupported, "'%s' is neither a block device nor a file", b.path)
	}
	ret.Buffer = make([]byte, a.Size)
	n, err := f.ReadAt(ret.Buffer, int64(a.Offset&math.MaxInt64))
	if errors.Is(err, io.EOF) || a.Offset > math.MaxInt64 {
		err = errorf(protocol.ErrInvalidArg, "'%s' starting from %d has only %d bytes available", a.Path, a.Offset, n)
	}
	return ret, err
}
