package driver

import (
	"fmt"

	"virtvzd/driver/protocol"
)

// State is what a domain is doing, in libvirt's numbers
// (virDomainState): clients get it unconverted.
type State int32

const (
	Running  = State(protocol.DomainRunning)
	Paused   = State(protocol.DomainPaused)
	Stopping = State(protocol.DomainInShutdown)
	Shutoff  = State(protocol.DomainShutoff)
)

// moves lists every legal change of state. A move to the same state changes
// the reason only.
var moves = map[State][]State{
	Shutoff:  {Running, Paused, Shutoff},
	Running:  {Running, Paused, Stopping, Shutoff},
	Paused:   {Running, Paused, Stopping, Shutoff},
	Stopping: {Running, Stopping, Shutoff},
}

// legal tells whether a domain may go from one state to the other.
func legal(from, to State) bool {
	for _, s := range moves[from] {
		if s == to {
			return true
		}
	}
	return false
}

func (s State) String() string {
	switch s {
	case Running:
		return "running"
	case Paused:
		return "paused"
	case Stopping:
		return "in shutdown"
	case Shutoff:
		return "shut off"
	}
	return fmt.Sprintf("state %d", int32(s))
}

// active tells whether the domain has an environment on this kernel.
func (s State) active() bool { return s != Shutoff }
