package driver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"virtvzd/driver/protocol"
)

// fakeSleeper notes how the host was put to sleep.
type fakeSleeper struct {
	mu    sync.Mutex
	slept []string
	fails error
}

func (s *fakeSleeper) said() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.slept, " ")
}

func (s *fakeSleeper) CanSleep(_ context.Context, how string) (bool, error) {
	return how == "Suspend", s.fails
}

func (s *fakeSleeper) Sleep(_ context.Context, how string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slept = append(s.slept, how)
	return nil
}

// TestSuspendHost: the alarm is set, the client answered, and then the host
// sleeps, once.
func TestSuspendHost(t *testing.T) {
	alarm := filepath.Join(t.TempDir(), "wakealarm")
	if err := os.WriteFile(alarm, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	defer func(old string) { wakeAlarm = old }(wakeAlarm)
	wakeAlarm = alarm
	r := statsRequest(t, statsDriver(t))
	synctest.Test(t, func(t *testing.T) {
		sleeper := &fakeSleeper{}
		r.drv.config.Sleeper = sleeper
		ask := func(target uint32, seconds uint64, flags uint32) error {
			_, err := suspendHost(r, &protocol.NodeSuspendForDurationArgs{Target: target, Duration: seconds, Flags: flags})
			return err
		}
		for _, c := range []struct {
			target  uint32
			seconds uint64
			flags   uint32
			want    string
		}{
			{3, 60, 0, "Invalid suspend target"},
			{0, 59, 0, "for 60 seconds or more, not 59"},
			{0, 1 << 40, 0, "for 60 seconds or more"},
			{1, 60, 0, "Suspend-to-Disk is not supported on this host"},
			{0, 60, 1, "unsupported flags"},
		} {
			if err := ask(c.target, c.seconds, c.flags); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("target %d for %d s: %v, want %q", c.target, c.seconds, err, c.want)
			}
		}
		if err := ask(0, 90, 0); err != nil {
			t.Fatal(err)
		}
		if set := readText(t, alarm); set != "+90" {
			t.Errorf("the alarm is set to %q", set)
		}
		if err := ask(0, 90, 0); err == nil || !strings.Contains(err.Error(), "already in progress") {
			t.Errorf("again: %v", err)
		}
		if sleeper.said() != "" {
			t.Error("it sleeps before the client is answered")
		}
		time.Sleep(sleepDelay + time.Second)
		synctest.Wait()
		if sleeper.said() != "Suspend" {
			t.Errorf("it slept %q", sleeper.said())
		}
		sleeper.fails = errors.New("no bus")
		if err := ask(0, 90, 0); err == nil || !strings.Contains(err.Error(), "logind does not tell") {
			t.Errorf("without logind: %v", err)
		}
		sleeper.fails = nil
		wakeAlarm = filepath.Join(alarm, "none")
		for range 2 { // it is not said to sleep after a failure
			if err := ask(0, 90, 0); err == nil || !strings.Contains(err.Error(), "cannot be told to wake it") {
				t.Errorf("without a clock: %v", err)
			}
		}
	})
}

func readText(t *testing.T, name string) string {
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
