package driver

import (
	"math"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc"
	"virtvzd/driver/rpc/xdr"
)

var authentication = table{
	inline(protocol.AuthList, authList),
	apart(call(protocol.AuthPolkit, authPolkit)), // until the user has given a password
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
	if !c.authenticating.CompareAndSwap(false, true) {
		return protocol.AuthPolkitRet{}, errorf(protocol.ErrAuthFailed, "polkit is being asked about this connection already")
	}
	defer c.authenticating.Store(false)
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
	who, err := statedIdentity(a.Params)
	if err != nil {
		return v, err
	}
	r.client.mu.Lock()
	r.client.identity = who
	r.client.mu.Unlock()
	return v, nil
}

// statedIdentity reads what a proxy says, as virIdentitySetParameters takes it.
func statedIdentity(params []protocol.TypedParam) (identity, error) {
	uid, pid, start, gid, name := uint64(nobody), int64(0), uint64(0), uint64(0), ""
	_, err := readParams(params, map[string]any{
		protocol.ConnectIdentityUnixUserID:  &uid,
		protocol.ConnectIdentityProcessID:   &pid,
		protocol.ConnectIdentityProcessTime: &start,
		// What only the host's other daemons may ask for.
		protocol.ConnectIdentityUnixGroupID:           &gid,
		protocol.ConnectIdentityUserName:              &name,
		protocol.ConnectIdentityGroupName:             &name,
		protocol.ConnectIdentitySaslUserName:          &name,
		protocol.ConnectIdentityX509DistinguishedName: &name,
		protocol.ConnectIdentitySelinuxContext:        &name,
	})
	if err == nil && (uid > math.MaxUint32 || pid < 0 || pid > math.MaxInt32) {
		err = errorf(protocol.ErrInvalidArg, "user %d with process %d cannot be on this host", uid, pid)
	}
	return identity{PID: uint32(pid), StartTime: start, UID: uint32(uid), stated: params}, err
}
