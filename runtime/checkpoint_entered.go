package runtime

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// What was started from outside, as by the agent's guest-exec or by virsh
// lxc-enter-namespace, is in the environment's PID namespace, and its parent is
// not: CRIU, which goes from init to its children, leaves it out without a word.

// enteredPatience is what has been started from outside gets to end: most of it
// asks for something that is there at once.
const enteredPatience = 5 * time.Second

// namedEntered is how many an error names.
const namedEntered = 5

// awaitLeft waits for what was started from outside to end. It gives what has not,
// for an error, or nothing.
func (i *Instance) awaitLeft(ctx context.Context) (obstacle string, err error) {
	ctx, cancel := context.WithTimeout(ctx, enteredPatience)
	defer cancel()
	for {
		frozen, err := i.Frozen()
		if err == nil {
			obstacle, err = i.entered()
		}
		if err != nil || obstacle == "" {
			return "", err
		}
		if frozen { // it cannot end
			return obstacle, nil
		}
		select {
		case <-ctx.Done():
			return obstacle, nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// entered tells what was started from outside and runs, for an error: nothing if
// nothing does.
func (i *Instance) entered() (string, error) {
	space := pidNamespace(i.rec.Init)
	all, err := os.ReadDir("/proc")
	if err != nil || space == "" || dead(i.pidfd) {
		return "", err
	}
	var names []string
	more := 0
	for _, d := range all {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == i.rec.Init || !isEntered(pid, space) {
			continue
		}
		if len(names) == namedEntered {
			more++
			continue
		}
		comm, _ := readProc(fmt.Sprintf("/proc/%d/comm", pid))
		names = append(names, fmt.Sprintf("'%s' (process %d)", PlainText(strings.TrimSpace(string(comm))), pid))
	}
	if names == nil {
		return "", nil
	}
	list := strings.Join(names, ", ")
	if more > 0 {
		list += fmt.Sprintf(" and %d more", more)
	}
	return "what was started from outside and would not go on: " + list + ": leave it, or end it", nil
}

// isEntered tells whether a process of a PID namespace has its parent elsewhere.
func isEntered(pid int, space string) bool {
	for range 10 { // a parent that has just ended is not the parent any more
		if pidNamespace(pid) != space {
			return false
		}
		parent := parentOf(pid)
		switch pidNamespace(parent) {
		case space:
			return false
		case "":
		default:
			if parentOf(pid) == parent {
				return true
			}
		}
	}
	return false
}

// pidNamespace names the PID namespace of a process, or is empty if there is no
// such process.
func pidNamespace(pid int) string {
	name, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	return name
}

// parentOf is 0 if there is no such process.
func parentOf(pid int) int {
	parent, _ := strconv.Atoi(statusField(pid, "PPid"))
	return parent
}
