package runtime

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrRootBusy is returned by Start where another environment writes to the root.
var ErrRootBusy = errors.New("the root is in use")

// rootNode is a directory, file or block device of the host's that an environment
// has for its root, and may write to: nobody else's root meanwhile.
type rootNode struct{ Device, Inode uint64 }

// claimRoot claims a root of the host's for writing. Two that write to the same
// tree would each find it changed under their hands.
func (r *Runtime) claimRoot(uuid [16]byte, source string) (*rootNode, error) {
	var st unix.Stat_t
	if err := unix.Stat(source, &st); err != nil {
		return nil, fmt.Errorf("root %s: %w", source, errnoOf(err))
	}
	node := rootNode{st.Dev, st.Ino}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		node = rootNode{st.Rdev, 0} // by whatever name
	}
	if other, has := r.giveRoot(uuid, &node); has {
		name := formatUUID(other)
		r.mu.Lock()
		i := r.instances[other]
		r.mu.Unlock()
		if i != nil {
			name = i.Name() // whose lock is taken before ours
		}
		return nil, fmt.Errorf("the root %s is that of %s, which runs: copy it and name the copy, or make it <readonly/>: %w", source, name, ErrRootBusy)
	}
	return &node, nil
}

// giveRoot notes whose the root is, unless another has it.
func (r *Runtime) giveRoot(uuid [16]byte, node *rootNode) (other [16]byte, has bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for other, c := range r.claims {
		if other != uuid && c.root != nil && *c.root == *node {
			return other, true
		}
	}
	c := r.claims[uuid]
	c.root = node
	r.claims[uuid] = c
	return other, false
}
