package runtime

import (
	"os"
	"sync"
)

// memoryStore is a service manager's descriptor store.
type memoryStore struct {
	mu    sync.Mutex
	files map[string]*os.File
}

func (s *memoryStore) Store(name string, f *os.File) error {
	dup, err := dupFile(f)
	if err != nil {
		return err
	}
	f.Fd() // what a real store does to the flags
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files == nil {
		s.files = map[string]*os.File{}
	}
	if old := s.files[name]; old != nil {
		old.Close()
	}
	s.files[name] = dup
	return nil
}

func (s *memoryStore) Remove(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.files[name]; f != nil {
		f.Close()
		delete(s.files, name)
	}
	return nil
}

func (s *memoryStore) take() map[string]*os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]*os.File{}
	for name, f := range s.files {
		dup, _ := dupFile(f)
		out[name] = dup
	}
	return out
}
