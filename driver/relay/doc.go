// Package relay passes the procedures on the host's networks, storage, node
// devices, interfaces, secrets and network filters to libvirt's own daemons,
// packet for packet: to the modular one (virtnetworkd, …) or to libvirtd,
// whichever answers.
//
//	client ─ rpc.Conn ─ Session ─┬─ route network ─ backend ─ rpc.Upstream ─ virtnetworkd
//	                             ├─ route storage ─ backend ─ rpc.Upstream ─ virtstoraged
//	                             └─ …
//
// Each client has a connection of its own to each daemon it uses, opened with
// its first call: what belongs to it there (streams, event callbacks) goes
// with it, and a client or daemon that is slow makes nobody else wait. Of the
// packets only what must differ is read: the serial, which is the backend's
// own, and the ids of event callbacks, which stay the same for the client
// when the daemon behind them is started anew.
//
//	relay.go     where they are, and how many connections there may be
//	driver.go    which daemons there are, and which procedures are whose
//	session.go   one client: a call goes to its route
//	route.go     its way to one daemon: connect, connect again
//	event.go     its event callbacks there
//	backend.go   one connection: serials, replies, streams
//	open.go      how it is opened
//	client.go    the same for the daemon's own calls
//	remote.go    the same to the daemon of another host, by a libvirt URI; remote_dial.go
//	             how that is reached, remote_stream.go streams of the daemon's own
//	error.go     what can go wrong, in sentences
package relay
