#!/bin/sh
# fleet.sh: update ten environments by one command, and by ten logins one after
# the other, from the same state to the same state; prints "NAME MICROSECONDS".
set -eu
vz=vz:///system
dir=/var/lib/virtvzd-fleet tree=/var/lib/virtvzd-fleet/tree
mkdir -p $tree/srv/repo
tar -C $tree --numeric-owner --xattrs -xf "${VIRTVZD_TEST_ROOTS:-/srv/roots}/debian13-server.tar.zst"
cd $dir
package() { # package VERSION
	mkdir -p package/DEBIAN package/usr/share
	head -c 1000000 /dev/urandom >package/usr/share/tiny
	printf 'Package: tiny\nVersion: %s\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: tiny\n' "$1" >package/DEBIAN/control
	dpkg-deb --root-owner-group -b package "$tree/srv/repo/tiny_$1.deb" >&2
}
package 1
chroot $tree dpkg -i /srv/repo/tiny_1.deb >&2
package 2
{
	cat package/DEBIAN/control
	printf 'Filename: ./tiny_2.deb\nSize: %s\nSHA256: %s\n\n' "$(stat -c %s $tree/srv/repo/tiny_2.deb)" "$(sha256sum <$tree/srv/repo/tiny_2.deb | cut -d ' ' -f 1)"
} >$tree/srv/repo/Packages
rm -rf $tree/etc/apt/sources.list $tree/etc/apt/sources.list.d/*
echo 'deb [trusted=yes] file:/srv/repo ./' >$tree/etc/apt/sources.list
mkdir -p -m 700 $tree/root/.ssh
ssh-keygen -q -t ed25519 -N '' -f key
cp key.pub $tree/root/.ssh/authorized_keys
virtvzd template import fleet $tree >&2
ip link add vzfleet type bridge
ip addr add 192.0.2.1/24 dev vzfleet
ip link set vzfleet up

login() { ssh -q -i $dir/key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null "root@192.0.2.$1" "$2"; }
begin() { # all ten, as they were
	for n in $(seq 10 19); do
		cat >$dir/fleet.xml <<-END
			<domain type='vz'><name>fleet$n</name><memory unit='MiB'>128</memory>
			<os><type>exe</type><init>/bin/sh</init><initarg>-c</initarg><initarg>mkdir -p /run/sshd; exec /usr/sbin/sshd -D</initarg></os>
			<devices><filesystem type='template'><source name='fleet'/><target dir='/'/></filesystem>
			<interface type='bridge'><source bridge='vzfleet'/><ip address='192.0.2.$n' prefix='24'/></interface></devices></domain>
		END
		virsh -q -c $vz define $dir/fleet.xml
		virsh -q -c $vz start fleet$n
		until login $n true; do sleep 0.5; done
	done
}
end() { # end FILE: what all have installed, and none of them is left
	for n in $(seq 10 19); do
		login $n 'dpkg-query -W'
		virsh -q -c $vz destroy fleet$n
		virsh -q -c $vz undefine fleet$n
	done >$1
	for root in $(virtvzd root list | grep -o '^[0-9a-f-]\{36\}'); do virtvzd root rm $root >&2; done
}
took() { # took NAME COMMAND…
	what=$1
	shift
	from=$(date +%s%N)
	"$@" >&2
	echo "$what $((($(date +%s%N) - from) / 1000))"
}
logins() {
	for n in $(seq 10 19); do login $n 'apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -y upgrade'; done
}
begin
took ssh.fleet logins
end by-login
begin
took vz.fleet vzctl fleet update 'fleet*'
end by-fleet
grep -c '^tiny.2$' by-fleet >&2
cmp by-login by-fleet # the same packages, or no figure
virtvzd template rm fleet >&2
ip link del vzfleet
cd / && rm -rf $dir
