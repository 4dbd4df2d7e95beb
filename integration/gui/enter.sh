#!/bin/sh
# enter.sh ROOT SOCKET OTHER SCRIPTS OUT COMMAND…: run COMMAND in ROOT, which
# stays as it is: what it writes is in memory, or in OUT, which is /mnt there.
# SOCKET is the daemon's, OTHER another host's, SCRIPTS are in /srv. The caller
# gave this process mount and process namespaces of its own, so everything ends
# with it.
set -eu
root=$1 socket=$2 other=$3 scripts=$4 out=$5
shift 5

mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
for dir in tmp run root; do
	mount -t tmpfs -o mode=1777 "$dir" "$root/$dir"
done
mount -t tmpfs dev "$root/dev"
mkdir "$root/dev/shm" "$root/run/libvirt" "$root/tmp/.X11-unix"
for node in null zero urandom; do
	: >"$root/dev/$node"
	mount --bind "/dev/$node" "$root/dev/$node"
done
: >"$root/run/libvirt/virtvzd-sock"
: >"$root/run/libvirt/virtvzd-b-sock"
mount --bind "$socket" "$root/run/libvirt/virtvzd-sock"
mount --bind "$other" "$root/run/libvirt/virtvzd-b-sock"
mount --bind "$scripts" "$root/srv"
mount --bind "$out" "$root/mnt"
exec env -i PATH=/usr/sbin:/usr/bin HOME=/root LC_ALL=C.UTF-8 chroot "$root" "$@"
