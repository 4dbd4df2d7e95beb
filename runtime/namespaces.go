package runtime

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"virtvzd/xml"
)

// namespaceOrder is the order in which libvirt's clients enter namespaces
// (virProcessGetNamespaces): the user namespace first, for the right to enter
// the others.
var namespaceOrder = []string{"user", "ipc", "uts", "net", "pid", "mnt"}

// Namespaces opens the environment's namespaces in libvirt's order. A kind that it
// shares with the host is there, too, as in libvirt; entering it is no error
// there. The caller closes the files.
func (i *Instance) Namespaces() ([]*os.File, error) {
	var files []*os.File
	for _, kind := range namespaceOrder {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", i.rec.Init, kind))
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("namespaces of %s: %w", i.Name(), err)
		}
		files = append(files, f)
	}
	if dead(i.pidfd) { // the PID may have been another process's by now
		closeAll(files)
		return nil, fmt.Errorf("%s has ended", i.Name())
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Hostname is what gethostname(2) tells inside, in PlainText.
func (i *Instance) Hostname() (string, error) {
	var uts unix.Utsname
	err := i.inside("hostname", []string{"uts"}, func() error { return unix.Uname(&uts) })
	return PlainText(unix.ByteSliceToString(uts.Nodename[:])), err
}

// setHostname follows a change of the metadata.
func (i *Instance) setHostname(before, after *xml.Environment) error {
	name := planHostname(after)
	if name == planHostname(before) {
		return nil
	}
	return i.inside("hostname", []string{"uts"}, func() error { return unix.Sethostname([]byte(name)) })
}
