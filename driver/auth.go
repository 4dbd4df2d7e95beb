package driver

import (
	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
	"virtvzd/driver/rpc/xdr"
)

var authentication = table{
	inline(protocol.AuthList, authList),
	call(protocol.AuthPolkit, authPolkit),
	call(protocol.ConnectSetIdentity, setIdentity),
}

// The actions polkitd is asked about when a user connects; libvirt's policy
// files (package libvirt-daemon-common) describe them.
const (
	actionManage  = "org.libvirt.unix.manage"
	actionMonitor = "org.libvirt.unix.monitor"
)

// needsAuthentication tells whether a connection must pass polkit. Root need
// not, so that a host without a working polkitd can still be managed.
func (drv *Driver) needsAuthentication(conn *rpc.Conn) bool {
	if conn.Peer().UID == 0 {
		return false
	}
	if conn.ReadOnly() {
		return drv.config.AuthUnixRO == "polkit"
	}
	return drv.config.AuthUnixRW == "polkit"
}

func authList(r *request, _ *xdr.Void) (protocol.AuthListRet, error) {
	kind := protocol.AuthTypePolkit
	if r.client.authenticated.Load() {
		kind = protocol.AuthTypeNone
	}
	return protocol.AuthListRet{Types: []protocol.AuthType{kind}}, nil
}

// authPolkit asks polkitd whether this user may manage (or, on the read-only
// socket, monitor) environments.
func authPolkit(r *request, _ *xdr.Void) (protocol.AuthPolkitRet, error) {
	c := r.client
	if c.authenticated.Load() {
		return protocol.AuthPolkitRet{}, errorf(protocol.ErrAuthFailed, "client tried unexpected polkit init request")
	}
	action := actionManage
	if c.conn.ReadOnly() {
		action = actionMonitor
	}
	peer := c.conn.Peer()
	subject := Subject{PID: peer.PID, StartTime: peer.StartTime, UID: peer.UID}
	if err := r.drv.polkit.check(r.ctx, subject, action, nil); err != nil {
		r.drv.log.Warn("polkit refused a client", "uid", peer.UID, "pid", peer.PID, "action", action, "error", err)
		return protocol.AuthPolkitRet{}, polkitError(err)
	}
	c.authenticate()
	return protocol.AuthPolkitRet{Complete: 1}, nil
}

// setIdentity lets a proxy (virtproxyd) say for whom it speaks. Whoever may
// do so could act as anybody: without an access driver that is root alone.
func setIdentity(r *request, a *protocol.ConnectSetIdentityArgs) (v xdr.Void, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return v, err
	}
	if uid := r.client.conn.Peer().UID; uid != 0 {
		return v, errorf(protocol.ErrAccessDenied, "user %d may not set the identity of a connection: only root's proxy may", uid)
	}
	var who identity
	for _, p := range a.Params {
		switch value := p.Value; p.Field {
		case protocol.ConnectIdentityUnixUserID:
			who.UID = uint32(typedNumber(value))
		case protocol.ConnectIdentityProcessID:
			who.PID = uint32(typedNumber(value))
		case protocol.ConnectIdentityProcessTime:
			who.StartTime = typedNumber(value)
		}
	}
	r.client.mu.Lock()
	r.client.identity = who
	r.client.mu.Unlock()
	return v, nil
}
