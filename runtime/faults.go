//go:build faults

package runtime

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// faultFile arms a daemon of the tests, which is built with the tag faults: it
// holds "STEP", "STEP ACTION" or "STEP N ACTION", and whichever of our
// processes comes by that step for the N-th time from now on (the first, if it
// is not said) takes the file away, so that nobody does it again, and
//
//	kill  kills itself (what it does if nothing is said)
//	stop  stops itself, until it gets SIGCONT or SIGKILL
//	fail  lets the step fail, where its error is looked at
const faultFile = "/run/virtvzd-fault"

var faultLock sync.Mutex

func init() { atStep = faultAt }

func faultAt(step string) error {
	faultLock.Lock()
	defer faultLock.Unlock()
	text, err := os.ReadFile(faultFile)
	if err != nil {
		return nil
	}
	where, times, action := parseFault(string(text))
	switch {
	case where != step:
		return nil
	case times > 1:
		return os.WriteFile(faultFile, fmt.Appendln(nil, where, times-1, action), 0o600)
	}
	if err := os.Remove(faultFile); err != nil {
		return err
	}
	switch action {
	case "fail":
		return fmt.Errorf("step %q fails, as %s said", step, faultFile)
	case "stop":
		return unix.Kill(os.Getpid(), unix.SIGSTOP)
	}
	unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

// parseFault takes the words from the end: a step's name may have several.
func parseFault(text string) (step string, times int, action string) {
	words, times, action := strings.Fields(text), 1, "kill"
	if n := len(words) - 1; n > 0 && (words[n] == "kill" || words[n] == "stop" || words[n] == "fail") {
		words, action = words[:n], words[n]
	}
	if n := len(words) - 1; n > 0 {
		if number, err := strconv.Atoi(words[n]); err == nil {
			words, times = words[:n], number
		}
	}
	return strings.Join(words, " "), times, action
}
