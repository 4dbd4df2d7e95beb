package driver

import (
	"os/user"
	"strconv"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
	"virtvzd/driver/rpc/xdr"
)

// administration is libvirt's admin program: virt-admin -c virtvzd:///system.
var administration = table{
	inline(protocol.AdminConnectOpen, adminOpen),
	inline(protocol.AdminConnectClose, connectClose),
	inline(protocol.AdminConnectGetLibVersion, adminLibVersion),
	inline(protocol.AdminConnectListServers, adminServers),
	inline(protocol.AdminConnectLookupServer, adminLookupServer),
	inline(protocol.AdminServerGetThreadpoolParameters, adminPool),
	inline(protocol.AdminServerSetThreadpoolParameters, adminSetPool),
	inline(protocol.AdminServerListClients, adminClients),
	inline(protocol.AdminServerLookupClient, adminLookupClient),
	call(protocol.AdminClientGetInfo, adminClientInfo),
	inline(protocol.AdminClientClose, adminDisconnect),
	inline(protocol.AdminServerGetClientLimits, adminLimits),
	inline(protocol.AdminServerSetClientLimits, adminSetLimits),
	inline(protocol.AdminConnectGetLoggingOutputs, adminLogOutputs),
	inline(protocol.AdminConnectGetLoggingFilters, adminLogFilters),
	call(protocol.AdminConnectSetLoggingOutputs, adminSetLogOutputs),
	call(protocol.AdminConnectSetLoggingFilters, adminSetLogFilters),
}

// LogControl changes what is logged and where, in libvirt's notation.
type LogControl interface {
	Outputs() string
	Filters() string
	SetOutputs(string) error
	SetFilters(string) error
}

// adminState is what virt-admin looks at: the daemon's servers by name and
// its log.
type adminState struct {
	servers []*rpc.Server
	log     LogControl
}

// RegisterAdmin puts the admin program on a server of its own, to look at
// the servers given and itself.
func (drv *Driver) RegisterAdmin(s *rpc.Server, log LogControl, others ...*rpc.Server) {
	drv.admin = adminState{servers: append(others, s), log: log}
	s.OnConnect(drv.attach)
	s.Register(protocol.AdminProgram, protocol.AdminVersion, newProgram(drv, protocol.Admin(), administration))
}

func (a adminState) server(ref protocol.AdminNonnullServer) (*rpc.Server, error) {
	for _, s := range a.servers {
		if s.Name() == ref.Name {
			return s, nil
		}
	}
	return nil, errorf(protocol.ErrNoServer, "no server with matching name '%s' found", ref.Name)
}

func (a adminState) client(ref protocol.AdminNonnullClient) (*rpc.Conn, error) {
	s, err := a.server(ref.Srv)
	if err != nil {
		return nil, err
	}
	for _, c := range s.Clients() {
		if c.ID() == ref.ID {
			return c, nil
		}
	}
	return nil, errorf(protocol.ErrNoClient, "no client with matching id '%d' found", ref.ID)
}

func adminClientRef(s *rpc.Server, c *rpc.Conn) protocol.AdminNonnullClient {
	return protocol.AdminNonnullClient{
		Srv: protocol.AdminNonnullServer{Name: s.Name()}, ID: c.ID(),
		Timestamp: c.ConnectedAt().Unix(), Transport: protocol.ClientTransUnix,
	}
}

func adminOpen(r *request, a *protocol.AdminConnectOpenArgs) (v xdr.Void, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return v, err
	}
	if r.client.opened.Swap(true) {
		return v, errorf(protocol.ErrInternalError, "connection already open")
	}
	return v, nil
}

func adminLibVersion(*request, *xdr.Void) (protocol.AdminConnectGetLibVersionRet, error) {
	return protocol.AdminConnectGetLibVersionRet{LibVer: libVersion}, nil
}

func adminServers(r *request, a *protocol.AdminConnectListServersArgs) (ret protocol.AdminConnectListServersRet, err error) {
	for _, s := range r.drv.admin.servers {
		ret.Ret++
		if a.NeedResults != 0 {
			ret.Servers = append(ret.Servers, protocol.AdminNonnullServer{Name: s.Name()})
		}
	}
	return ret, checkFlags(a.Flags)
}

func adminLookupServer(r *request, a *protocol.AdminConnectLookupServerArgs) (ret protocol.AdminConnectLookupServerRet, err error) {
	ret.Srv.Name = a.Name
	if _, err := r.drv.admin.server(ret.Srv); err != nil {
		return ret, err
	}
	return ret, checkFlags(a.Flags)
}

func adminPool(r *request, a *protocol.AdminServerGetThreadpoolParametersArgs) (ret protocol.AdminServerGetThreadpoolParametersRet, err error) {
	s, err := r.drv.admin.server(a.Srv)
	if err != nil {
		return ret, err
	}
	p := s.Pool()
	ret.Params = numbers(
		named{protocol.ThreadpoolWorkersMin, p.Min}, named{protocol.ThreadpoolWorkersMax, p.Max},
		named{protocol.ThreadpoolWorkersCurrent, p.Current}, named{protocol.ThreadpoolWorkersFree, p.Free},
		named{protocol.ThreadpoolWorkersPriority, p.Prio}, named{protocol.ThreadpoolJobQueueDepth, p.Queue},
	)
	return ret, checkFlags(a.Flags)
}

func adminSetPool(r *request, a *protocol.AdminServerSetThreadpoolParametersArgs) (v xdr.Void, err error) {
	s, err := r.drv.admin.server(a.Srv)
	if err != nil {
		return v, err
	}
	if err := checkFlags(a.Flags); err != nil {
		return v, err
	}
	p := s.Pool()
	if _, err := readParams(a.Params, map[string]any{
		protocol.ThreadpoolWorkersMin: &p.Min, protocol.ThreadpoolWorkersMax: &p.Max,
		protocol.ThreadpoolWorkersPriority: &p.Prio,
	}); err != nil {
		return v, err
	}
	if err := s.SetPool(p.Min, p.Max, p.Prio); err != nil {
		return v, errorf(protocol.ErrInvalidArg, "%v", err)
	}
	return v, nil
}

func adminClients(r *request, a *protocol.AdminServerListClientsArgs) (ret protocol.AdminServerListClientsRet, err error) {
	s, err := r.drv.admin.server(a.Srv)
	if err != nil {
		return ret, err
	}
	for _, c := range s.Clients() {
		ret.Ret++
		if a.NeedResults != 0 {
			ret.Clients = append(ret.Clients, adminClientRef(s, c))
		}
	}
	return ret, checkFlags(a.Flags)
}

func adminLookupClient(r *request, a *protocol.AdminServerLookupClientArgs) (ret protocol.AdminServerLookupClientRet, err error) {
	c, err := r.drv.admin.client(protocol.AdminNonnullClient{Srv: a.Srv, ID: a.ID})
	if err != nil {
		return ret, err
	}
	s, err := r.drv.admin.server(a.Srv)
	if err != nil {
		return ret, err
	}
	ret.Clnt = adminClientRef(s, c)
	return ret, checkFlags(a.Flags)
}

// adminClientInfo tells who a client is.
func adminClientInfo(r *request, a *protocol.AdminClientGetInfoArgs) (ret protocol.AdminClientGetInfoRet, err error) {
	c, err := r.drv.admin.client(a.Clnt)
	if err != nil {
		return ret, err
	}
	peer := c.Peer()
	readOnly := c.ReadOnly()
	if state, ok := c.Value().(*client); ok {
		readOnly = state.readOnly.Load()
	}
	ret.Params = []protocol.TypedParam{
		{Field: protocol.ClientInfoReadonly, Value: protocol.Bool(readOnly)},
		{Field: protocol.ClientInfoUnixUserID, Value: protocol.IntValue(peer.UID)},
		{Field: protocol.ClientInfoUnixGroupID, Value: protocol.IntValue(peer.GID)},
		{Field: protocol.ClientInfoUnixProcessID, Value: protocol.IntValue(peer.PID)},
	}
	if u, err := user.LookupId(strconv.Itoa(int(peer.UID))); err == nil {
		ret.Params = append(ret.Params, protocol.TypedParam{Field: protocol.ClientInfoUnixUserName, Value: protocol.StringValue(u.Username)})
	}
	if g, err := user.LookupGroupId(strconv.Itoa(int(peer.GID))); err == nil {
		ret.Params = append(ret.Params, protocol.TypedParam{Field: protocol.ClientInfoUnixGroupName, Value: protocol.StringValue(g.Name)})
	}
	return ret, checkFlags(a.Flags)
}

func adminDisconnect(r *request, a *protocol.AdminClientCloseArgs) (v xdr.Void, err error) {
	c, err := r.drv.admin.client(a.Clnt)
	if err != nil {
		return v, err
	}
	if err := checkFlags(a.Flags); err != nil {
		return v, err
	}
	r.drv.log.Info("client disconnected by the administrator", "client", a.Clnt.ID)
	c.Close("disconnected by the administrator")
	return v, nil
}

func adminLimits(r *request, a *protocol.AdminServerGetClientLimitsArgs) (ret protocol.AdminServerGetClientLimitsRet, err error) {
	s, err := r.drv.admin.server(a.Srv)
	if err != nil {
		return ret, err
	}
	l := s.ClientLimits()
	ret.Params = numbers(
		named{protocol.ServerClientsMax, l.Max}, named{protocol.ServerClientsCurrent, l.Current},
		named{protocol.ServerClientsUnauthMax, l.AnonymousMax}, named{protocol.ServerClientsUnauthCurrent, l.Anonymous},
	)
	return ret, checkFlags(a.Flags)
}

func adminSetLimits(r *request, a *protocol.AdminServerSetClientLimitsArgs) (v xdr.Void, err error) {
	s, err := r.drv.admin.server(a.Srv)
	if err != nil {
		return v, err
	}
	if err := checkFlags(a.Flags); err != nil {
		return v, err
	}
	l := s.ClientLimits()
	if _, err := readParams(a.Params, map[string]any{
		protocol.ServerClientsMax: &l.Max, protocol.ServerClientsUnauthMax: &l.AnonymousMax,
	}); err != nil {
		return v, err
	}
	if err := s.SetClientLimits(l.Max, l.AnonymousMax); err != nil {
		return v, errorf(protocol.ErrInvalidArg, "%v", err)
	}
	return v, nil
}

func adminLogOutputs(r *request, a *protocol.AdminConnectGetLoggingOutputsArgs) (ret protocol.AdminConnectGetLoggingOutputsRet, err error) {
	ret.Outputs = r.drv.admin.log.Outputs()
	ret.Noutputs = words(ret.Outputs)
	return ret, checkFlags(a.Flags)
}

func adminLogFilters(r *request, a *protocol.AdminConnectGetLoggingFiltersArgs) (ret protocol.AdminConnectGetLoggingFiltersRet, err error) {
	if text := r.drv.admin.log.Filters(); text != "" {
		ret.Filters, ret.Nfilters = &text, words(text)
	}
	return ret, checkFlags(a.Flags)
}

func adminSetLogOutputs(r *request, a *protocol.AdminConnectSetLoggingOutputsArgs) (v xdr.Void, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return v, err
	}
	return v, invalid(r.drv.admin.log.SetOutputs(text(a.Outputs)))
}

func adminSetLogFilters(r *request, a *protocol.AdminConnectSetLoggingFiltersArgs) (v xdr.Void, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return v, err
	}
	return v, invalid(r.drv.admin.log.SetFilters(text(a.Filters)))
}

// invalid gives an error about what the client sent its code.
func invalid(err error) error {
	if err == nil {
		return nil
	}
	return errorf(protocol.ErrInvalidArg, "%v", err)
}
