package runtime

import (
	"fmt"
	"os"
	"sync"
)

// consoleLog is the file of <log file='…' append='on'/>. Like virtlogd it keeps
// a file below 2 MiB and three older ones, so an environment that prints
// without end does not fill the disk.
type consoleLog struct {
	mu   sync.Mutex
	name string
	file *os.File
	size int64
}

const (
	logLimit   = 2 << 20
	logBackups = 3
)

// openLog returns nil for no name: writing to a nil log does nothing.
func openLog(name string, append bool) (*consoleLog, error) {
	if name == "" {
		return nil, nil
	}
	flags := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if !append {
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(name, flags, 0o600)
	if err != nil {
		return nil, fmt.Errorf("console log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("console log: %w", err)
	}
	return &consoleLog{name: name, file: f, size: info.Size()}, nil
}

// write loses what cannot be written: a full disk must not stop the console.
func (l *consoleLog) write(p []byte) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return
	}
	if l.size+int64(len(p)) > logLimit {
		l.rotate()
	}
	n, _ := l.file.Write(p)
	l.size += int64(n)
}

func (l *consoleLog) rotate() {
	for n := logBackups - 1; n > 0; n-- {
		os.Rename(fmt.Sprintf("%s.%d", l.name, n-1), fmt.Sprintf("%s.%d", l.name, n))
	}
	os.Rename(l.name, l.name+".0")
	f, err := os.OpenFile(l.name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return // go on with the old file
	}
	l.file.Close()
	l.file, l.size = f, 0
}

func (l *consoleLog) close() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
}
