package driver

import (
	"time"

	"virtvzd/driver/protocol"
	"virtvzd/driver/rpc/xdr"
	"virtvzd/runtime"
)

// What may be changed while a domain moves, and is kept for its next migration.

// migrationSettings are a domain's, until the daemon ends.
type migrationSettings struct {
	downtime  time.Duration // 0: as usual
	bandwidth uint64        // MiB a second; 0: no limit
	following uint64        // the same of memory that follows
}

// unlimitedSpeed is what clients are told when there is no limit
// (QEMU_DOMAIN_MIG_BANDWIDTH_MAX).
const unlimitedSpeed = 1<<63/(1<<20) - 1

// checkBandwidth keeps it from being none in bytes.
func checkBandwidth(mib uint64) error {
	if mib > unlimitedSpeed {
		return errorf(protocol.ErrOverflow, "bandwidth must be less than %d", int64(unlimitedSpeed+1))
	}
	return nil
}

// moving is the migration that is going on, if there is one.
func (d *domain) moving() *runtime.MigrationControl {
	d.job.mu.Lock()
	defer d.job.mu.Unlock()
	if d.job.work == nil {
		return nil
	}
	return d.job.work.migration.Load()
}

func (d *domain) settings() migrationSettings {
	if s := d.migration.Load(); s != nil {
		return *s
	}
	return migrationSettings{}
}

func (drv *Driver) bandwidth(d *domain, how migration) uint64 {
	if how.bandwidth != 0 {
		return how.bandwidth << 20
	}
	return d.settings().bandwidth << 20
}

func (drv *Driver) downtime(d *domain) time.Duration {
	if t := d.settings().downtime; t != 0 {
		return t
	}
	return runtime.DefaultDowntime
}

func setMaxDowntime(_ *request, d *domain, a *protocol.DomainMigrateSetMaxDowntimeArgs) (v xdr.Void, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return v, err
	}
	if !d.view().state.active() {
		return v, errNotRunning()
	}
	if a.Downtime == 0 || a.Downtime > uint64(24*time.Hour/time.Millisecond) {
		return v, errorf(protocol.ErrInvalidArg, "a downtime of %d milliseconds is not possible: choose one from 1 to a day", a.Downtime)
	}
	t := time.Duration(a.Downtime) * time.Millisecond
	s := d.settings()
	s.downtime = t
	d.migration.Store(&s)
	if c := d.moving(); c != nil {
		c.SetDowntime(t)
	}
	return v, nil
}

func maxDowntime(d *domain, a *protocol.DomainMigrateGetMaxDowntimeArgs) (ret protocol.DomainMigrateGetMaxDowntimeRet, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return ret, err
	}
	if !d.view().state.active() {
		return ret, errNotRunning()
	}
	ret.Downtime = uint64(d.drv.downtime(d).Milliseconds())
	return ret, nil
}

func setMaxSpeed(_ *request, d *domain, a *protocol.DomainMigrateSetMaxSpeedArgs) (v xdr.Void, err error) {
	if err := checkFlags(a.Flags, protocol.DomainMigrateMaxSpeedPostcopy); err != nil {
		return v, err
	}
	if err := checkBandwidth(a.Bandwidth); err != nil {
		return v, err
	}
	limit := a.Bandwidth
	if limit == unlimitedSpeed {
		limit = 0
	}
	s := d.settings()
	if a.Flags&protocol.DomainMigrateMaxSpeedPostcopy != 0 {
		if !d.view().state.active() {
			return v, errNotRunning()
		}
		s.following = limit
	} else {
		s.bandwidth = limit
	}
	d.migration.Store(&s)
	if c := d.moving(); c != nil {
		c.SetBandwidth(s.bandwidth << 20)
		c.SetPostCopyBandwidth(s.following << 20)
	}
	return v, nil
}

func maxSpeed(d *domain, a *protocol.DomainMigrateGetMaxSpeedArgs) (ret protocol.DomainMigrateGetMaxSpeedRet, err error) {
	if err := checkFlags(a.Flags, protocol.DomainMigrateMaxSpeedPostcopy); err != nil {
		return ret, err
	}
	ret.Bandwidth = d.settings().bandwidth
	if a.Flags&protocol.DomainMigrateMaxSpeedPostcopy != 0 {
		if !d.view().state.active() {
			return ret, errNotRunning()
		}
		ret.Bandwidth = d.settings().following
	}
	if ret.Bandwidth == 0 {
		ret.Bandwidth = unlimitedSpeed
	}
	return ret, nil
}

// startPostCopy has the rest of the memory follow after the domain has moved.
func startPostCopy(_ *request, d *domain, a *protocol.DomainMigrateStartPostCopyArgs) (v xdr.Void, err error) {
	if err := checkFlags(a.Flags); err != nil {
		return v, err
	}
	c := d.moving()
	if c == nil {
		return v, errorf(protocol.ErrOperationInvalid, "post-copy can only be started while outgoing migration is in progress")
	}
	if !c.PostCopy() {
		return v, errorf(protocol.ErrOperationInvalid, "switching to post-copy requires migration to be started with VIR_MIGRATE_POSTCOPY flag")
	}
	return v, nil
}

// iterationEvent tells of a round of a migration.
func iterationEvent(round int) event {
	return event{protocol.DomainEventIDMigrationIteration, func(dom protocol.NonnullDomain, cb int32) (*protocol.Info, xdr.Marshaler) {
		if cb == legacyCallback {
			return nil, nil
		}
		return protocol.DomainEventCallbackMigrationIteration.Info, &protocol.DomainEventCallbackMigrationIterationMsg{CallbackID: cb, Dom: dom, Iteration: int32(round)}
	}}
}
