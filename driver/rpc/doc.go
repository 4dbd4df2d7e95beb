// Package rpc speaks libvirt's RPC: frames, calls and replies, streams,
// events, keepalive and descriptors. It knows no domains; what a procedure
// does is the business of the Programs registered on a Server.
//
// A connection has one goroutine that reads. It hands each call to the
// server's pool of workers, answers it on the spot if the procedure only reads
// memory, or gives it a goroutine of its own if it waits for another daemon.
// Whoever has something to send appends it to the connection's bounded queue;
// one goroutine at a time writes the queue out, as far as the socket takes it
// on the spot, the rest on a goroutine of its own.
//
//	message.go     the frame, pure
//	input.go       bytes that came, cut into frames
//	output.go      frames that wait, written as bytes
//	conn.go        one client
//	share.go       what one user's clients may hold
//	call.go        its calls and their replies
//	stream.go      bytes beside a call
//	tunnel.go      the same, answered by another daemon
//	upstream.go    a connection to that daemon
//	keepalive.go   pings
//	server.go      programs, clients and their limits
//	pool.go        workers
//	conn_linux.go  the system calls: reading, writing, descriptors, credentials
//	listen.go      sockets of our own
//
// An Inline handler runs on the goroutine that reads, so it must only look at
// memory. Handlers that fail by a panic must recover by themselves.
package rpc
