package vm

// SSH is the command line of an ssh client that reaches the machine, before the
// host and the command: root@127.0.0.1, port Port.
func (v *VM) SSH(args ...string) []string { return v.ssh(args...) }
