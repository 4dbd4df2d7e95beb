package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"time"
)

// monitor is a connection to QEMU's control channel (QMP).
type monitor struct {
	conn net.Conn
	in   *json.Decoder
}

// newMonitor speaks QMP on the other end of a socket that QEMU inherited.
func newMonitor(ctx context.Context, conn net.Conn) (*monitor, error) {
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	m := &monitor{conn, json.NewDecoder(bufio.NewReader(conn))}
	var greeting struct{ QMP any }
	if err := m.in.Decode(&greeting); err != nil {
		return nil, fmt.Errorf("no greeting: %w", err)
	}
	return m, m.do("qmp_capabilities", nil, nil)
}

func (m *monitor) Close() error { return m.conn.Close() }

// do runs one command. Events that arrive before its answer are dropped.
func (m *monitor) do(command string, args, ret any) error {
	request := map[string]any{"execute": command}
	if args != nil {
		request["arguments"] = args
	}
	if err := json.NewEncoder(m.conn).Encode(request); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	for {
		var reply struct {
			Event  string
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := m.in.Decode(&reply); err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
		switch {
		case reply.Event != "":
			continue
		case reply.Error != nil:
			return fmt.Errorf("%s: %s", command, reply.Error.Desc)
		case ret != nil:
			return json.Unmarshal(reply.Return, ret)
		}
		return nil
	}
}

// waitStatus polls a query until its status is want; failed is one that ends
// the wait with an error.
func (m *monitor) waitStatus(ctx context.Context, query, want, failed string) error {
	for {
		var now struct {
			Status string `json:"status"`
			Why    string `json:"error-desc"`
		}
		if err := m.do(query, nil, &now); err != nil {
			return err
		}
		switch now.Status {
		case want:
			return nil
		case failed:
			return fmt.Errorf("%s: %s %s", query, now.Status, now.Why)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s stays %q: %w", query, now.Status, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}
