package systemd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

// vanishTimeout bounds how long StartScope waits for an earlier scope of the same name that is on its way out.
const vanishTimeout = 10 * time.Second

// Scope is what StartScope makes. PIDs are put into it before the call returns; there must be at least one, and they
// must be alive. Slice is "" for system.slice.
type Scope struct {
	Name, Slice, Description string
	PIDs                     []uint32
	Properties               []Property
}

func (s *Scope) properties() []Property {
	props := make([]Property, 0, len(s.Properties)+3)
	if s.Slice != "" {
		props = append(props, Slice(s.Slice))
	}
	if s.Description != "" {
		props = append(props, Description(s.Description))
	}
	return append(append(props, PIDs(s.PIDs...)), s.Properties...)
}

// StartScope makes a scope with its limits in force and s.PIDs in it, and returns when systemd reports it running.
//
// A scope of the same name whose last process is gone is waited out. One that still has processes is ErrUnitExists.
// When ctx ends early the scope may exist none the less: Stop undoes that.
func (c *Conn) StartScope(ctx context.Context, s Scope) error {
	if len(s.PIDs) == 0 || !strings.HasSuffix(s.Name, scopeSuffix) {
		return fmt.Errorf("scope %q needs a name that ends in .scope and a process to start with", s.Name)
	}
	ends, forget := c.jobs.watch(s.Name)
	defer forget()
	repeated := false
	limit := time.Now().Add(vanishTimeout)
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		job, err := c.startTransient(ctx, s.Name, s.properties())
		var gone *UnavailableError
		var unsent *disconnected
		switch {
		case err == nil:
			err = c.await(ctx, s.Name, job, ends, func() (bool, error) { return c.started(ctx, s.Name) })
			if errors.Is(err, ErrJobFailed) {
				c.ResetFailed(ctx, s.Name) // what is left is in nobody's way; the job's error is what counts
			}
			return err
		case errors.As(err, &unsent):
			return err
		case errors.As(err, &gone) && !repeated && ctx.Err() == nil:
			// The connection broke and nobody knows whether systemd had read the call. The process tells.
			repeated = true
			in, lookup := c.unitOf(ctx, s.PIDs[0])
			if lookup != nil {
				return err
			}
			if in == unitPath(s.Name) {
				return c.settle(ctx, s.Name)
			}
		case errors.Is(err, ErrUnitExists):
			if leaving, state := c.leaving(ctx, s.Name); state != nil {
				return state
			} else if !leaving || time.Now().After(limit) {
				return err
			}
			if err := sleep(ctx, pause); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

func (c *Conn) startTransient(ctx context.Context, name string, props []Property) (job dbus.ObjectPath, err error) {
	type auxiliary struct {
		Name       string
		Properties []Property
	}
	start := manager("StartTransientUnit")
	start.once = true
	err = c.call(ctx, start, []any{name, "fail", props, []auxiliary{}}, &job)
	return job, about(name, err)
}

// started tells whether a scope's start is over, for when the signal about it did not come.
func (c *Conn) started(ctx context.Context, unit string) (bool, error) {
	s, err := c.State(ctx, unit)
	switch {
	case errors.Is(err, ErrNoSuchUnit):
		return false, &JobError{Unit: unit, Result: "failed"}
	case err != nil:
		return false, err
	case s.Active == "failed" || s.Active == "inactive":
		return false, &JobError{Unit: unit, Result: "failed"}
	}
	return s.Active == "active", nil
}

func (c *Conn) settle(ctx context.Context, unit string) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		if ok, err := c.started(ctx, unit); ok || err != nil {
			return err
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// leaving tells whether the unit that is in the way is about to go. systemd learns of a cgroup's last exit through
// inotify and may be busy, so an "active" scope without processes counts as leaving too.
func (c *Conn) leaving(ctx context.Context, unit string) (bool, error) {
	s, err := c.State(ctx, unit)
	switch {
	case errors.Is(err, ErrNoSuchUnit):
		return true, nil
	case err != nil:
		return false, err
	case s.Active == "failed":
		return true, c.ResetFailed(ctx, unit)
	case s.Active == "active":
		return !c.populated(s.ControlGroup), nil
	}
	return true, nil
}

func (c *Conn) unitOf(ctx context.Context, pid uint32) (path dbus.ObjectPath, err error) {
	find := manager("GetUnitByPID")
	find.patient = true
	err = c.call(ctx, find, []any{pid}, &path)
	if errors.Is(err, ErrNoSuchUnit) {
		return "", nil
	}
	return path, err
}

// Stop ends a unit: SIGTERM to all of it, SIGKILL after TimeoutStopUSec, and returns when both are over. It is nil if
// there is no such unit.
func (c *Conn) Stop(ctx context.Context, unit string) error {
	ends, forget := c.jobs.watch(unit)
	defer forget()
	var job dbus.ObjectPath
	err := c.call(ctx, manager("StopUnit"), []any{unit, "replace"}, &job)
	if err != nil {
		return unlessAbsent(unit, err)
	}
	return c.await(ctx, unit, job, ends, func() (bool, error) {
		s, err := c.State(ctx, unit)
		if errors.Is(err, ErrNoSuchUnit) {
			return true, nil
		}
		return s.Active == "inactive" || s.Active == "failed", err
	})
}

// WaitGone returns when systemd has forgotten the unit, so that its name is free and its cgroup removed. A unit that
// failed is forgotten on the way. It polls: a signal for this would need a subscription to every change of every unit.
func (c *Conn) WaitGone(ctx context.Context, unit string) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		var path dbus.ObjectPath
		err := c.call(ctx, manager("GetUnit"), []any{unit}, &path)
		if err != nil {
			return unlessAbsent(unit, err)
		}
		if pause >= 32*time.Millisecond { // it does not go by itself: failed, perhaps
			if s, err := c.State(ctx, unit); err == nil && s.Active == "failed" {
				c.ResetFailed(ctx, unit)
			}
		}
		if err := sleep(ctx, pause); err != nil {
			return about(unit, fmt.Errorf("still there: %w", err))
		}
	}
}
