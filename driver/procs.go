package driver

import (
	"context"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
	"virtvzd/driver/rpc/xdr"
)

// families are all procedures of libvirt's remote program that are served.
var families = []table{
	connection,
	authentication,
	subscriptions,
	node,
	listing,
	definition,
	converting,
	information,
	starting,
	stopping,
	suspending,
	autostarting,
	renaming,
	metadata,
	memory,
	processors,
	scheduling,
	blockTuning,
	blockResizing,
	controlling,
	devices,
	jobs,
	consoles,
	agents,
	statistics,
	cpuStatistics,
	memoryStatistics,
	blockStatistics,
	interfaceStatistics,
	networkInterfaces,
	filesystemInformation,
	snapshotting,
	saving,
	restoring,
	migrating,
	dumping,
	relayed(protocol.Remote()),
}

// program serves one RPC program from a table indexed by procedure number.
type program struct {
	drv   *Driver
	procs []procedure
}

// newProgram indexes the families; every other procedure is refused with
// its reason.
func newProgram(drv *Driver, all []*protocol.Info, families ...table) *program {
	p := &program{drv: drv, procs: make([]procedure, all[len(all)-1].Number+1)}
	for _, info := range all {
		if !info.IsEvent() {
			p.procs[info.Number] = refusal(info)
		}
	}
	for _, family := range families {
		for _, proc := range family {
			p.procs[proc.info.Number] = proc
		}
	}
	return p
}

// Lookup finds a procedure for the rpc server. With an access driver, checks
// wait for polkitd, so nothing is answered inline.
func (p *program) Lookup(number uint32) (rpc.Handler, rpc.Mode, bool) {
	if number >= uint32(len(p.procs)) || p.procs[number].info == nil {
		return nil, 0, false
	}
	proc := &p.procs[number]
	mode := proc.mode
	if mode == rpc.Inline && p.drv.access != nil {
		mode = poolMode(proc.info)
	}
	return func(ctx context.Context, c *rpc.Call) (xdr.Marshaler, error) {
		return p.serve(ctx, proc, c)
	}, mode, true
}

// serve answers one call. A defect in a handler costs that call an error and
// leaves its trace in the log; it stops neither the daemon nor another client.
func (p *program) serve(ctx context.Context, proc *procedure, c *rpc.Call) (ret xdr.Marshaler, err error) {
	defer func() {
		if fault := recover(); fault != nil {
			p.drv.logFault(proc.info.Name, fault)
			err = errorf(protocol.ErrInternalError, "%s failed in the daemon: its log says how", functionName(proc.info))
		}
	}()
	return proc.serve(&request{ctx: ctx, drv: p.drv, client: clientOf(c.Conn), call: c, info: proc.info})
}

// Register puts all programs for management clients on a server.
func (drv *Driver) Register(s *rpc.Server) {
	s.OnConnect(drv.attach)
	s.Register(protocol.RemoteProgram, protocol.RemoteVersion, newProgram(drv, protocol.Remote(), families...))
	s.Register(protocol.LxcProgram, protocol.LxcVersion, newProgram(drv, protocol.Lxc(), lxcProgram))
	s.Register(protocol.QemuProgram, protocol.QemuVersion, newProgram(drv, protocol.Qemu(), qemuProgram))
}
