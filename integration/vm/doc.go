// Package vm gives tests a real kernel with a real systemd: throw-away Debian
// 13 machines in QEMU, resumed in seconds from one that was booted once.
//
//	m, err := vm.Start(ctx, "a", vm.Options{})
//	defer m.Close()
//	out, err := m.Run(ctx, "systemctl is-system-running")
//
// A test of the daemon takes Test's machine, which has this tree's virtvzd
// installed; a package's own tests that need a real kernel but no daemon have
// the build tag vm and are run in a machine by TestInMachine.
//
// By hand: go run ./integration/vm/cmd. What the host needs is listed in
// packages and installed by install.sh; the image is made by recipe/build.sh,
// which needs root. Everything made is kept in one directory (see CacheDir):
//
//	image-KEY/              disks, kernel and ssh key made by the recipe that KEY hashes
//	image-KEY/frozen-KEY/   that image booted: disk overlays, memory, device state
//	NAME-KEY/               what the recipe of another package made, see Made
//	run/NAME/               a running copy: overlays of the frozen disks, console.log
//	console/NAME.log        what the last copy of that name printed on its console
//
// Copies share the frozen machine's memory copy-on-write. They also share what
// a boot makes once: machine id, boot id, SMBIOS UUID, ssh host key, and the
// MAC address of eth0. Host name, clock and random numbers are each copy's own;
// Options.OwnID gives it a machine id as well. A copy is emulated unless KVM
// proved to work here, so compare times inside one run only.
package vm
