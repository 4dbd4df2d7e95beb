// Package rpc speaks libvirt's RPC: frames, calls and replies, streams,
// events, keepalive and descriptors. It knows no domains; what a procedure
// does is the business of the Programs registered on a Server.
//
// A connection has one goroutine that reads. It hands each call to the
// server's pool of workers, or answers it on the spot if the procedure only
// reads memory. Whoever has something to send appends it to the connection's
// bounded queue; one goroutine at a time writes the queue out.
//
//	message.go   the frame, pure
//	conn.go      one client: reading, calls in flight, sending
//	socket.go    the system calls: credentials, descriptors, listening
//	server.go    programs, clients and their limits
//	pool.go      workers
//	stream.go    a stream of bytes beside the calls
//	keepalive.go pings
package rpc
