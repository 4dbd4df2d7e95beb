package systemd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

const descriptorNameMax = 255 // FDNAME_MAX, src/basic/fd-util.h

// Store makes systemd keep a duplicate of f over restarts of the service, until Remove. The next run finds it under
// name in Stored. A crash is a restart only with Restart=on-failure or more: a unit that ends up failed or stopped
// loses its store, unless FileDescriptorStorePreserve=yes (version 254 on).
//
// FDPOLL=0 keeps systemd from dropping it on EPOLLHUP: a pty master has that while no slave is open, a pidfd when its
// process ends. The unit needs FileDescriptorStoreMax=; beyond it systemd drops silently. The same name may be
// stored more than once, the same open file is kept once.
func (s *Service) Store(name string, f *os.File) error {
	if err := checkDescriptorName(name); err != nil {
		return err
	}
	return s.notify(f, "FDSTORE=1", "FDNAME="+name, "FDPOLL=0")
}

// Remove makes systemd close everything that is stored under name.
func (s *Service) Remove(name string) error {
	if err := checkDescriptorName(name); err != nil {
		return err
	}
	return s.Notify("FDSTOREREMOVE=1", "FDNAME="+name)
}

// checkDescriptorName is fdname_is_valid: systemd would keep a descriptor with a bad name under the name "stored".
func checkDescriptorName(name string) error {
	if name == "" || len(name) > descriptorNameMax {
		return fmt.Errorf("descriptor name %q must have 1 to %d characters", name, descriptorNameMax)
	}
	for i := 0; i < len(name); i++ {
		if c := name[i]; c < ' ' || c > '~' || c == ':' {
			return fmt.Errorf("descriptor name %q must be printable ASCII without a colon", name)
		}
	}
	return nil
}

// Barrier returns when systemd has worked through every notification sent before: call it before an exit that
// relies on Store. ctx bounds the wait.
func (s *Service) Barrier(ctx context.Context) error {
	if s.socket == "" {
		return nil
	}
	// systemd closes the descriptor when it gets there; nothing ever writes, so the read ends with the last writer.
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("barrier to the service manager: %w", err)
	}
	defer r.Close()
	// BARRIER=1 has to be alone in its message.
	err = s.notify(w, "BARRIER=1")
	w.Close()
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { _, err := r.Read(make([]byte, 1)); done <- err }()
	select {
	case err := <-done:
		if errors.Is(err, io.EOF) {
			return nil
		}
		return fmt.Errorf("barrier to the service manager: %w", err)
	case <-ctx.Done():
		return fmt.Errorf("the service manager did not process the notifications in time: %w", ctx.Err())
	}
}
