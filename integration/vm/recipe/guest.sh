#!/bin/bash
# Finish the VM's root in directory $1, after its packages are installed.
set -euo pipefail
root=$1

# The same for every copy of the image; vm.Start gives a copy its own name.
echo vm >"$root/etc/hostname"
echo '127.0.0.1 localhost vm' >"$root/etc/hosts"
# The address of QEMU's own name server on its user network.
echo 'nameserver 10.0.2.3' >"$root/etc/resolv.conf"
# Without an id systemd takes this for a first boot and asks on the console.
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
chroot "$root" passwd -d root
mkdir -p "$root/var/lib/libvirt/vz"

chroot "$root" systemctl -q enable systemd-networkd ssh lxcfs
# libvirtd is the peer in tests and benchmarks: its sockets start it on demand.
# Disabling a service disables its sockets, so their turn comes after.
chroot "$root" systemctl -q disable libvirtd.service virtlogd.service libvirt-guests.service
chroot "$root" systemctl -q enable libvirtd.socket libvirtd-ro.socket virtlogd.socket
# A test that shares a directory starts these.
chroot "$root" systemctl -q disable nfs-server.service nfs-client.target rpcbind.socket rpcbind.service
# There is no vsock device: its generator would report an error on every reload.
mkdir -p "$root/etc/systemd/system-generators"
ln -s /dev/null "$root/etc/systemd/system-generators/systemd-ssh-generator"
# Nobody looks after the VM, and what these do costs seconds of emulation.
chroot "$root" systemctl -q mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
	e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-pstore.service \
	serial-getty@ttyS0.service getty@tty1.service systemd-networkd-wait-online.service \
	modprobe@drm.service modprobe@efi_pstore.service
