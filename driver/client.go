package driver

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	"virtvzd/driver/protocol"
	"virtvzd/driver/relay"
	"virtvzd/driver/rpc"
)

// client is the driver's side of one connection.
type client struct {
	drv  *Driver
	conn *rpc.Conn

	authenticated  atomic.Bool
	authenticating atomic.Bool
	readOnly       atomic.Bool
	opened         atomic.Bool // uri does not change after
	uri            string

	mu       sync.Mutex
	identity identity // who is checked by the access driver

	relay *relay.Session // the client's connections to the host's other daemons

	nextCallback int32 // protected by events.mu
}

// attach makes the driver's state for a new connection and undoes, when it
// goes, all that belonged to it.
func (drv *Driver) attach(conn *rpc.Conn) {
	c := &client{drv: drv, conn: conn, identity: peerIdentity(conn.Peer()), relay: drv.relay.Session(conn)}
	c.readOnly.Store(conn.ReadOnly())
	if !drv.needsAuthentication(conn) {
		c.authenticate()
	}
	conn.SetValue(c)
	conn.OnClose(func() {
		level := slog.LevelDebug
		if conn.GivenUp() { // a client that nobody closed looks as if it had died
			level = slog.LevelWarn
		}
		drv.log.Log(context.Background(), level, "client left", "client", conn.ID(), "pid", conn.Peer().PID, "uid", conn.Peer().UID, "reason", conn.Reason())
		drv.events.forget(c)
		drv.autodestroy(c)
		drv.forsaken(c)
	})
}

func clientOf(conn *rpc.Conn) *client { return conn.Value().(*client) }

// beforeOpen are the procedures a client may call before CONNECT_OPEN.
var beforeOpen = map[uint32]bool{
	protocol.AuthList.Number:               true,
	protocol.AuthPolkit.Number:             true,
	protocol.AuthSaslInit.Number:           true,
	protocol.AuthSaslStart.Number:          true,
	protocol.AuthSaslStep.Number:           true,
	protocol.ConnectOpen.Number:            true,
	protocol.ConnectClose.Number:           true,
	protocol.ConnectSupportsFeature.Number: true,
}

// admit checks what can be known before the arguments are decoded: that the
// client is authenticated and has opened a connection.
func (c *client) admit(info *protocol.Info) error {
	early := info.Program == protocol.RemoteProgram && beforeOpen[info.Number] || info == protocol.AdminConnectOpen.Info
	if !c.authenticated.Load() && !isAuth(info) {
		return errorf(protocol.ErrRpc, "authentication required")
	}
	if !c.opened.Load() && !early {
		return errorf(protocol.ErrInternalError, "connection not open")
	}
	return nil
}

func isAuth(info *protocol.Info) bool {
	return info.Program == protocol.RemoteProgram &&
		info.Number >= protocol.AuthList.Number && info.Number <= protocol.AuthSaslStep.Number ||
		info == protocol.AuthPolkit.Info
}

// readOnlyError is libvirt's refusal on a read-only connection
// (virCheckReadOnlyGoto).
func readOnlyError(info *protocol.Info) error {
	return errorf(protocol.ErrOperationDenied, "read only access prevents %s", functionName(info))
}

// authenticate counts the client as known from now on.
func (c *client) authenticate() {
	c.authenticated.Store(true)
	c.conn.SetAuthenticated()
}
