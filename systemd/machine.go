package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/godbus/dbus/v5"
)

const machinedName = "org.freedesktop.machine1"

func machined(name string) Method {
	return Method{Service: machinedName, Path: "/org/freedesktop/machine1", Name: machinedName + ".Manager." + name}
}

// Machine is an entry of machinectl. Name comes from MachineName. Leader is the init's process id on the host; it
// must be in its scope already, machined takes the unit from there. NetIfs are indices of the host's ends of
// the environment's links. Root is what machinectl shows as root directory, "" for none.
type Machine struct {
	Name           string
	UUID           [16]byte
	Service, Class string // "virtvzd"; "container", or "vm"
	Leader         uint32
	Root           string
	NetIfs         []int32
}

// RegisterMachine announces a machine. machined forgets it by itself when the leader dies. It is not needed for
// anything else to work: with errors.Is(err, ErrNoMachined) go on without it.
func (c *Conn) RegisterMachine(ctx context.Context, m Machine) error {
	if m.NetIfs == nil {
		m.NetIfs = []int32{}
	}
	register := machined("RegisterMachineWithNetwork")
	var path dbus.ObjectPath
	err := c.call(ctx, register, []any{m.Name, m.UUID[:], m.Service, m.Class, m.Leader, m.Root, m.NetIfs}, &path)
	var answer *Error
	if errors.As(err, &answer) && !c.owned(ctx, machinedName) {
		// The bus could not start it: not installed whole, or masked. systemd has a different answer for every way.
		return fmt.Errorf("%w (%s)", ErrNoMachined, answer.Message)
	}
	return machineError(m.Name, err)
}

// owned tells whether somebody is there under a name of the bus; when in doubt, yes.
func (c *Conn) owned(ctx context.Context, name string) bool {
	owned := true
	ask := Method{Service: "org.freedesktop.DBus", Path: "/org/freedesktop/DBus", Name: "org.freedesktop.DBus.NameHasOwner"}
	if err := c.call(ctx, ask, []any{name}, &owned); err != nil {
		return true
	}
	return owned
}

// UnregisterMachine removes the entry and touches no process; an unknown name is nil.
func (c *Conn) UnregisterMachine(ctx context.Context, name string) error {
	return unlessUnknown(machineError(name, c.call(ctx, machined("UnregisterMachine"), []any{name})))
}

// ForgetMachine removes the entry that machined may still have of a unit's machine that is gone. Call it before the unit
// is made anew, whatever name its new machine will have. machined keeps the entry of a dead leader as long as it sees
// the unit active, and refuses a second one of that unit (EEXIST); and a machined that starts with such an entry stops
// the unit, whoever is in it by then (manager_enumerate_machines and machine_stop_scope in src/machine). Without an
// entry it asks nobody.
func (c *Conn) ForgetMachine(ctx context.Context, unit string) error {
	name, err := os.Readlink("/run/systemd/machines/unit:" + unit) // written by machine_save
	if err != nil {
		return nil
	}
	return c.UnregisterMachine(ctx, name)
}

// TerminateMachine stops the machine's scope as Stop does, without waiting; an unknown name is nil.
func (c *Conn) TerminateMachine(ctx context.Context, name string) error {
	return unlessUnknown(machineError(name, c.call(ctx, machined("TerminateMachine"), []any{name})))
}

func machineError(name string, err error) error {
	var gone *UnavailableError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &gone) && absent(gone.Err):
		return fmt.Errorf("%w (%v)", ErrNoMachined, gone.Err)
	}
	return fmt.Errorf("machine %s: %w", name, err)
}

func unlessUnknown(err error) error {
	if errors.Is(err, errNoSuchMachine) {
		return nil
	}
	return err
}
