package systemd

import "context"

const logindName = "org.freedesktop.login1"

func logind(name string) Method {
	return Method{Service: logindName, Path: "/org/freedesktop/login1", Name: logindName + ".Manager." + name}
}

// CanSleep tells whether the host can be put to sleep: it has the firmware for
// it, and enough swap. how is logind's name: "Suspend" (to memory), "Hibernate"
// (to disk) or "HybridSleep" (both).
func (c *Conn) CanSleep(ctx context.Context, how string) (bool, error) {
	var answer string // "yes", "challenge", "no" or "na"
	err := c.call(ctx, logind("Can"+how), nil, &answer)
	return answer == "yes", err
}

// Sleep begins it.
func (c *Conn) Sleep(ctx context.Context, how string) error {
	const interactive = false
	m := logind(how)
	m.once = true // a host that has woken up must not sleep again
	return c.call(ctx, m, []any{interactive})
}
