#!/bin/bash
# build.sh RECIPE OUT: make the VM's disks, kernel and initrd in the empty
# directory OUT from the files in RECIPE. Needs root. Lines that start with
# "==> " are for the user, everything else for the log.
#
# VIRTVZD_MIRROR is a Debian archive's address; by default the one that this
# machine's own apt is configured with.
set -euo pipefail
recipe=$(realpath "$1") out=$(realpath "$2")
release=trixie
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
cd "$out"
export TMPDIR=$out DEBIAN_FRONTEND=noninteractive
step() { echo "==> $*"; }
# A lone comma-separated word, as mmdebstrap wants it.
list() { sed 's/#.*//' "$recipe/$1.packages" | xargs | tr ' ' ','; }

[ "$(id -u)" = 0 ] || { step "the image can only be built by root"; exit 1; }
[ "$(dpkg --print-architecture)" = amd64 ] || { step "the image can only be built on amd64"; exit 1; }
[ -e $keyring ] || { step "$keyring is missing: install debian-archive-keyring"; exit 1; }

# The first Debian archive among the sources, whatever release they name.
archive() { apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' 'Component: main' | head -n 1; }
mirror=${VIRTVZD_MIRROR:-$(archive)}
if [ -z "$mirror" ]; then # apt tells labels only of what it has downloaded
	step "apt-get update"
	apt-get update
	mirror=$(archive)
fi
[ -n "$mirror" ] || { step "apt knows no Debian archive: name one in VIRTVZD_MIRROR"; exit 1; }

# mmdebstrap reads none of the machine's apt options: hand over those that
# decide whether an archive can be reached and used.
apt-config dump | grep -Ei '^Acquire::((https?|ftp)::.*Proxy|Check-Valid-Until|Check-Date)' >aptopt || true
echo 'Acquire::Retries "8";' >>aptopt # for two minutes in all
bootstrap() { # bootstrap PACKAGES DIR OPTION...
	local packages=$1 dir=$2
	shift 2
	mmdebstrap --mode=root --format=directory --variant=minbase --keyring=$keyring \
		--include="$(list "$packages")" --aptopt="$out/aptopt" --dpkgopt=force-unsafe-io \
		--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
		--dpkgopt='path-exclude=/usr/share/doc/*' \
		--customize-hook='rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap" "$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap"' \
		"$@" $release "$dir" "deb [signed-by=$keyring] $mirror $release main"
}

step "installing Debian 13 (the longest step)"
bootstrap guest guest --essential-hook="sync-in $recipe/guest /" --customize-hook="bash $recipe/guest.sh \"\$1\""

debian() { # debian ROOT OPTION...: a root with the packages of its list
	local name=$1
	shift
	step "installing the roots of environments: $name"
	bootstrap "$name" root --customize-hook='chroot "$1" passwd -d root; echo debian >"$1/etc/hostname"' "$@"
	mkdir -p guest/srv/roots
	tar -C root --numeric-owner --xattrs -cf - . | zstd -q -T0 -o "guest/srv/roots/$name.tar.zst"
	rm -rf root
}
debian debian13-systemd
debian debian13-server
# There are no virtual terminals inside: one getty, on the console.
debian debian13-sysvinit \
	--customize-hook='sed -i "/tty[1-6]$/d" "$1/etc/inittab"; echo "co:2345:respawn:/sbin/agetty --noclear --keep-baud console linux" >>"$1/etc/inittab"'

step "installing the roots of environments: busybox"
mkdir -p root/{bin,sbin,dev,proc,sys,run,tmp,root,var}
cp -r "$recipe/busybox/." root/
cp guest/bin/busybox root/bin/busybox
for applet in $(root/bin/busybox --list); do
	[ "$applet" = busybox ] || ln -s busybox "root/bin/$applet"
done
ln -s ../bin/busybox root/sbin/init
chmod 1777 root/tmp
tar -C root --numeric-owner --owner=0 --group=0 -cf - . | zstd -q -o guest/srv/roots/busybox.tar.zst
rm -rf root

step "making the disks"
ssh-keygen -q -t ed25519 -N '' -C virtvzd-test-vm -f ssh_key
mkdir -p -m 700 guest/root/.ssh
cp ssh_key.pub guest/root/.ssh/authorized_keys
chmod 600 guest/root/.ssh/authorized_keys
cp guest/boot/vmlinuz-* vmlinuz
cp guest/boot/initrd.img-* initrd
rm -rf guest/boot/*
# No journal: a VM that is switched off is thrown away.
truncate -s 6G root.raw
mke2fs -q -t ext4 -O ^has_journal -d guest root.raw
truncate -s 6G data.raw
mke2fs -q -t ext4 -O ^has_journal,quota,project -E quotatype=prjquota data.raw
rm -rf guest aptopt
