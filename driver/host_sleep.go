package driver

import (
	"context"
	"fmt"
	"os"
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
)

// Sleeper puts the host to sleep: to memory ("Suspend"), to its disk
// ("Hibernate") or to both ("HybridSleep"), as logind calls it.
type Sleeper interface {
	CanSleep(ctx context.Context, how string) (bool, error)
	Sleep(ctx context.Context, how string) error
}

// wakeAlarm is where the host's clock is told to wake it.
var wakeAlarm = "/sys/class/rtc/rtc0/wakealarm"

const (
	// shortestSleep and sleepDelay are libvirt's (virnodesuspend.c): less would
	// be over before the host sleeps, and the answer reaches the client first.
	shortestSleep = 60 // seconds
	sleepDelay    = 10 * time.Second
	longestSleep  = 1 << 31 // what an alarm can be set to in any kernel
)

// sleepTargets are the numbers of virNodeSuspendTarget.
var sleepTargets = []struct{ how, name string }{
	{"Suspend", "Suspend-to-RAM"}, {"Hibernate", "Suspend-to-Disk"}, {"HybridSleep", "Hybrid-Suspend"},
}

// suspendHost has the host sleep for some time. Environments sleep with it.
func suspendHost(r *request, a *protocol.NodeSuspendForDurationArgs) (v xdr.Void, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return v, err
	}
	if int(a.Target) >= len(sleepTargets) {
		return v, errorf(protocol.ErrInvalidArg, "Invalid suspend target")
	}
	if a.Duration < shortestSleep || a.Duration > longestSleep {
		return v, errorf(protocol.ErrInvalidArg, "a host can be suspended for %d seconds or more, not %d", shortestSleep, a.Duration)
	}
	target, sleeper := sleepTargets[a.Target], r.drv.config.Sleeper
	if sleeper == nil {
		return v, errorf(protocol.ErrOperationUnsupported, "this daemon has no way to logind")
	}
	can, err := sleeper.CanSleep(r.ctx, target.how)
	if err != nil {
		return v, errorf(protocol.ErrOperationFailed, "logind does not tell whether this host can be suspended: %v", err)
	}
	if !can {
		return v, errorf(protocol.ErrOperationUnsupported, "%s is not supported on this host", target.name)
	}
	if !r.drv.asleep.CompareAndSwap(false, true) {
		return v, errorf(protocol.ErrOperationInvalid, "Suspend operation already in progress")
	}
	if err := setAlarm(a.Duration); err != nil {
		r.drv.asleep.Store(false)
		return v, errorf(protocol.ErrOperationFailed, "this host's clock cannot be told to wake it: %v", err)
	}
	r.drv.log.Info("the host is suspended", "target", target.name, "seconds", a.Duration)
	time.AfterFunc(sleepDelay, func() {
		defer r.drv.asleep.Store(false)
		if err := sleeper.Sleep(context.Background(), target.how); err != nil {
			r.drv.log.Error("the host could not be suspended", "error", err)
		}
	})
	return v, nil
}

// setAlarm takes the place of one that is set.
func setAlarm(seconds uint64) error {
	for _, when := range []string{"0", fmt.Sprintf("+%d", seconds)} {
		if err := os.WriteFile(wakeAlarm, []byte(when), 0); err != nil {
			return err
		}
	}
	return nil
}
