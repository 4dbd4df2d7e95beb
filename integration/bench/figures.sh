#!/bin/sh
# figures.sh CALLS: measure virtvzd and what it is compared with, one after
# the other in this machine, and print "NAME VALUE" lines. Times are
# microseconds, memory is KiB. Removes what it makes.
set -eu
calls=$1
vz=vz:///system lxc='lxc:///system?mode=legacy'
dir=/var/lib/virtvzd-bench
mkdir -p $dir/root $dir/bare
[ -e $dir/root/sbin/init ] || tar -C $dir/root -xf "${VIRTVZD_TEST_ROOTS:-/srv/roots}/busybox.tar.zst"

print() { sed "s/^/$1./"; } # the lines of a measurement, under its name
say() { echo "$*" >&2; }
domain() { # domain TYPE NAME [DEVICE]
	cat <<-END
		<domain type='$1'><name>$2</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
		<os><type>exe</type><init>/sbin/init</init></os>
		<devices><filesystem type='mount'><source dir='$dir/root'/><target dir='/'/></filesystem><console type='pty'/>${3:-}</devices></domain>
	END
}
domain vz bench >$dir/vz.xml
domain lxc bench >$dir/lxc.xml
# Of many none has the root of another: ours stand on one template.
virtvzd template list | grep -q '^busybox ' ||
	virtvzd template import busybox "${VIRTVZD_TEST_ROOTS:-/srv/roots}/busybox.tar.zst" >/dev/null
domain vz %s | sed "s|type='mount'><source dir='[^']*'|type='template'><source name='busybox'|" >$dir/vz.form
domain lxc %s >$dir/lxc.form

systemctl start libvirtd.service
say "start, destroy, define, undefine"
$calls cycle $vz $dir/vz.xml ${ROUNDS:-7} | print vz
$calls cycle "$lxc" $dir/lxc.xml ${ROUNDS:-7} | print lxc

say "the same with one network interface"
ip link add vzbench type bridge
nic="<interface type='bridge'><source bridge='vzbench'/></interface>"
for side in vz lxc; do
	domain $side bench "$nic" >$dir/nic.xml
	case $side in vz) uri=$vz ;; *) uri=$lxc ;; esac
	$calls cycle "$uri" $dir/nic.xml ${ROUNDS:-7} | print $side.nic
done

say "throughput of an interface, and of a bare veth pair on the same bridge"
ip addr add 192.0.2.1/24 dev vzbench
ip link set vzbench up
domain vz bench "<interface type='bridge'><source bridge='vzbench'/><ip address='192.0.2.2' prefix='24'/></interface>" >$dir/nic.xml
virsh -q -c $vz create $dir/nic.xml >/dev/null
ip netns add vzbare
ip link add vzbare type veth peer name eth0 netns vzbare
ip link set vzbare master vzbench up
ip -n vzbare addr add 192.0.2.3/24 dev eth0
ip -n vzbare link set eth0 up
throughput() { # throughput ADDRESS COMMAND…: bytes each second to who listens there by COMMAND
	address=$1
	shift
	"$@" iperf3 -s -1 -D -B "$address" -I $dir/iperf3.pid >/dev/null
	until [ -s $dir/iperf3.pid ]; do sleep 0.2; done
	iperf3 -c "$address" -t 5 -J | python3 -c 'import json, sys; print(int(json.load(sys.stdin)["end"]["sum_received"]["bits_per_second"] / 8))'
	rm -f $dir/iperf3.pid
}
init=$(virsh -c $vz domid bench)
for i in 1 2 3; do
	echo "vz.throughput.$i $(throughput 192.0.2.2 nsenter -t "$init" -n)"
	echo "veth.throughput.$i $(throughput 192.0.2.3 ip netns exec vzbare)"
done
virsh -q -c $vz destroy bench >/dev/null
ip netns delete vzbare
ip link delete vzbench

say "an environment from a template, and from a copy of its tree"
virtvzd template list | grep -q '^debian13-sysvinit ' ||
	virtvzd template import debian13-sysvinit "${VIRTVZD_TEST_ROOTS:-/srv/roots}/debian13-sysvinit.tar.zst" >/dev/null
tree=/var/lib/libvirt/vz/template/debian13-sysvinit/rootfs
template() { # template NAME SOURCE-ELEMENT TYPE
	echo "<domain type='vz'><name>$1</name><memory unit='MiB'>256</memory><os><type>exe</type></os>
	<devices><filesystem type='$3'>$2<target dir='/'/></filesystem></devices></domain>" >$dir/$1.xml
}
begin() { # begin NAME: define and start it
	virsh -q -c $vz define $dir/$1.xml && virsh -q -c $vz start $1
}
took() { # took NAME COMMAND…: microseconds
	what=$1
	shift
	from=$(date +%s%N)
	"$@" >/dev/null
	echo "$what $((($(date +%s%N) - from) / 1000))"
}
copied() {
	cp -a $tree $dir/copy
	begin copy
}
cached() { sync; awk '/^Cached/ {print $2}' /proc/meminfo; }
readall() { # readall NAME: every program and library inside
	nsenter -t "$(virsh -c $vz domid $1)" -U -m -S 0 -G 0 sh -c 'find /usr -xdev -type f -exec cat {} +' >/dev/null
}
template one "<source name='debian13-sysvinit'/>" template
template two "<source name='debian13-sysvinit'/>" template
template copy "<source dir='$dir/copy'/>" mount
took vz.create begin one
took copy.create copied
echo 3 >/proc/sys/vm/drop_caches
begin two >/dev/null
before=$(cached)
readall one
first=$(cached)
readall two
second=$(cached)
echo "cache.first $((first - before))"
echo "cache.second $((second - first))"
inside() { nsenter -t "$(virsh -c $vz domid one)" -U -m -S 0 -G 0 "$@" 2>/dev/null; }
stands() { # stands NAME COMMAND…: how long that takes, and one stands still meanwhile
	python3 -c 'import signal, sys, time
frozen, end = 0, []
signal.signal(signal.SIGINT, lambda *_: end.append(1))
last = time.monotonic()
while not end:
    time.sleep(0.002)
    now, still = time.monotonic(), "frozen 1" in open(sys.argv[1]).read()
    frozen, last = frozen + still * (now - last), now
print(int(frozen * 1e6))' /sys/fs/cgroup/machine.slice/machine-vz*one.scope/cgroup.events >$dir/stood &
	watch=$!
	sleep 2
	took "$@"
	kill -INT $watch
	wait $watch
	echo "$1.stood $(cat $dir/stood)"
}
inside dd if=/dev/zero of=/root/data bs=1M count=256
sync
stands vz.live virsh -q -c $vz snapshot-create-as one live --disk-only
virsh -q -c $vz snapshot-delete one live >/dev/null
inside dd if=/dev/zero of=/root/data bs=1M count=1024
for name in one two copy; do virsh -q -c $vz destroy $name >/dev/null; done
sync
used() { du -sk /var/lib/libvirt/vz/private /var/lib/libvirt/vz/layers | awk '{n += $1} END {print n}'; }
before=$(used)
took vz.snapshot virsh -q -c $vz snapshot-create-as one bench
echo "vz.snapshot.bytes $(($(used) - before))"
layer=$(ls -td /var/lib/libvirt/vz/layers/*/rootfs | head -n 1)
took copy.snapshot cp -a "$layer" $dir/snapshot
virsh -q -c $vz undefine one --snapshots-metadata >/dev/null
for name in two copy; do virsh -q -c $vz undefine $name >/dev/null; done
for root in $(virtvzd root list | awk '$2 == "-" {print $1}'); do virtvzd root rm "$root" >/dev/null; done
rm -rf $dir/copy $dir/snapshot

say "crun create and start in a scope"
[ -L $dir/bare/rootfs ] || ln -s $dir/root $dir/bare/rootfs
rm -f $dir/bare/config.json
(cd $dir/bare && crun spec && sed -i -e 's|"terminal": true|"terminal": false|' -e 's|"sh"|"/sbin/init"|' \
	-e "s|\"path\": \"rootfs\"|\"path\": \"$dir/root\"|" -e 's|"readonly": true|"readonly": false|' config.json)
$calls crun $dir/bare ${ROUNDS:-7} | print crun

defined=0
for n in 100 500; do
	say "list with $n defined"
	$calls fill $vz fill$n- $dir/vz.form $((n - defined))
	$calls fill "$lxc" fill$n- $dir/lxc.form $((n - defined))
	defined=$n
	$calls list $vz 50 | print vz.$n
	$calls list "$lxc" 50 | print lxc.$n
done

say "restart with 500 defined"
now() { read -r up _ </proc/uptime; echo "$up"; }
for i in 1 2 3; do
	for side in vz lxc; do
		case $side in vz) unit=virtvzd uri=$vz ;; *) unit=libvirtd uri=$lxc ;; esac
		begin=$(date +%s%N)
		systemctl restart $unit.service
		$calls first "$uri" >/dev/null
		echo "$side.restart.$i $((($(date +%s%N) - begin) / 1000))"
	done
done
$calls empty $vz fill
$calls empty "$lxc" fill

say "domainGetInfo"
virsh -q -c $vz define $dir/vz.xml >/dev/null
for n in 1 50; do
	$calls getinfo $vz bench $n 4 | print vz.info.$n
	$calls getinfo 'test+unix:///default?mode=legacy&socket=/run/libvirt/libvirt-sock' test $n 4 | print test.info.$n
done

say "memory of a running environment"
virsh -q -c $vz start bench >/dev/null
unit=$(systemctl list-units --plain --no-legend 'machine-vz*bench.scope' | cut -d' ' -f1)
$calls setmem $vz bench 30 | print vz
$calls times 10 virsh -q -c $vz setmem bench %d | print vz.setmem
$calls times 10 systemctl set-property --runtime "$unit" MemoryMax=%dK | print systemd.setmem
virsh -q -c $vz destroy bench >/dev/null
virsh -q -c $vz undefine bench >/dev/null

memory() { # memory COUNT: of the daemon with so many running
	pid=$(systemctl show -P MainPID virtvzd.service)
	awk '/^VmRSS/ {print "vz.rss", $2}' /proc/$pid/status | print "$1"
	awk '/^Pss:/ {print "vz.pss", $2} /^Pss_Anon/ {print "vz.anon", $2}' /proc/$pid/smaps_rollup | print "$1"
	since=$(date +%s)
	kill -USR1 "$pid"
	for wait in 1 1 2 4 8; do
		sleep $wait
		heap=$(journalctl _PID="$pid" --since "@$since" -o cat --no-pager | sed -n 's/^memory heap=\([0-9]*\) .*/\1/p')
		[ -z "$heap" ] || break
	done
	echo "vz.heap $((heap / 1024))" | print "$1"
}
say "memory"
systemctl restart virtvzd.service
$calls first $vz >/dev/null
memory 0
running=0
while [ $running -lt "${MOST:-100}" ]; do
	running=$((running + 1))
	sed "s/%s/run$running/" $dir/vz.form >$dir/run.xml
	virsh -q -c $vz create $dir/run.xml >/dev/null 2>$dir/refused || { running=$((running - 1)); say "$(cat $dir/refused)"; break; }
	[ $running != 20 ] || memory 20
	[ "$(awk '/^MemAvailable/ {print $2}' /proc/meminfo)" -gt 150000 ] || break
done
memory most
echo "most.running $running"
say "statistics of $running"
$calls domstats $vz 20 | print vz
$calls byhand 20 '/sys/fs/cgroup/machine.slice/machine-vz*.scope' | print cgroup
for name in $(virsh -c $vz list --name); do virsh -q -c $vz destroy "$name" >/dev/null; done
for root in $(virtvzd root list | awk '$2 == "-" {print $1}'); do virtvzd root rm "$root" >/dev/null; done
rm -rf $dir
