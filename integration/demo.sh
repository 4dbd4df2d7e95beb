#!/bin/sh
# demo.sh vm|host: drive a Debian environment with stock virsh and show each
# step. vm does it in a throw-away machine; host on this one, by root. Called
# by make demo (KEEP=1 keeps the machine; ROOT=FILE is the root on a host, and
# TEMPLATE=NAME the template that is made of it).
set -eu
cd "$(dirname "$0")/.."
export LC_ALL=C LIBVIRT_DEFAULT_URI=vz:///system
name=demo1 template=${TEMPLATE:-debian13}

if [ -t 1 ]; then bold=$(printf '\033[1m') plain=$(printf '\033[0m'); else bold='' plain=''; fi
title() { printf '\n%s# %s%s\n' "$bold" "$*" "$plain"; }
show() { # show COMMAND…: print it as one would type it, then run it
	printf '%s$ %s%s\n' "$bold" "$*" "$plain"
	"$@"
}
need() { # need COMMAND PACKAGE: install it if it is missing
	command -v "$1" >/dev/null || show apt-get install -y "$2" ||
		{ show apt-get update && show apt-get install -y "$2"; } || fail "$1 is missing: apt install $2"
}
fail() { echo "demo: $*" >&2; exit 1; }

inside() { virsh lxc-enter-namespace --noseclabel "$name" -- "$@"; }

# The state of the systemd inside, until it is the one wanted. It is emulated
# in the machine: a boot takes a minute there, a second on hardware.
wait_running() {
	printf '%s$ %s%s\n' "$bold" "virsh lxc-enter-namespace --noseclabel $name -- /bin/systemctl is-system-running" "$plain"
	state='' last='' left=600
	while [ "$left" -gt 0 ]; do
		state=$(inside /bin/systemctl is-system-running 2>/dev/null | head -n 1 || true)
		[ "$state" = "$last" ] || echo "${state:-(not yet)}"
		last=$state
		case $state in running) return ;; degraded) inside /bin/systemctl --failed; fail "a unit inside failed" ;; esac
		left=$((left - 1))
		sleep 1
	done
	fail "systemd inside is not running after ten minutes"
}

wait_off() {
	left=180
	until virsh domstate "$name" | grep -q 'shut off'; do
		left=$((left - 1))
		[ "$left" -gt 0 ] || fail "$name does not shut down"
		sleep 1
	done
}

# steps TEMPLATE_TAR: what the demonstration is about.
steps() {
	title "A template: Debian 13 with systemd"
	virtvzd template list | grep -q "^$template\b" || show virtvzd template import "$template" "$1"
	show virtvzd template list

	title "Define and start an environment"
	xml=$(mktemp)
	trap 'virsh destroy $name; virsh undefine $name; rm -f "$xml"' EXIT
	cat >"$xml" <<-END
		<domain type='vz'>
		  <name>$name</name>
		  <memory unit='MiB'>256</memory>
		  <vcpu>1</vcpu>
		  <devices>
		    <filesystem type='template'><source name='$template'/><target dir='/'/></filesystem>
		  </devices>
		</domain>
	END
	show cat "$xml"
	show virsh define "$xml"
	show virsh start "$name"
	show virsh list --all
	show virsh dominfo "$name"
	! command -v machinectl >/dev/null || show machinectl list

	title "Inside, systemd is init"
	wait_running
	show virsh lxc-enter-namespace --noseclabel "$name" -- /bin/ps ax
	show virsh lxc-enter-namespace --noseclabel "$name" -- /usr/bin/free -m
	show virsh lxc-enter-namespace --noseclabel "$name" -- /usr/bin/nproc

	title "Freeze and thaw"
	show virsh suspend "$name"
	show virsh domstate "$name" --reason
	show virsh resume "$name"

	title "The daemon restarts, the environment does not notice"
	show virsh domid "$name"
	show systemctl restart virtvzd
	show virsh list
	show systemctl status --no-pager --lines 0 "$(systemctl list-units --plain --no-legend 'machine-vz*' | awk 'NR == 1 {print $1}')"

	title "Reboot"
	before=$(virsh domid "$name")
	show virsh reboot "$name"
	left=180
	while after=$(virsh domid "$name"); [ "$after" = "$before" ] || [ "$after" = - ]; do
		left=$((left - 1))
		[ "$left" -gt 0 ] || fail "$name does not reboot"
		sleep 1
	done
	wait_running

	title "Shut down and remove"
	show virsh shutdown "$name"
	wait_off
	show virsh list --all
	trap 'rm -f "$xml"' EXIT
	show virsh undefine "$name"
}

# make_root TAR: the same root as in the machine, from the Debian archive that
# this host's apt is configured with.
make_root() {
	need mmdebstrap mmdebstrap
	title "Making a root: Debian 13 with systemd"
	mkdir -p "$(dirname "$1")"
	keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	[ -e $keyring ] || fail "$keyring is missing: apt install debian-archive-keyring, or give a root as ROOT=FILE"
	mirror=$(archive)
	if [ -z "$mirror" ]; then # apt tells labels only of what it has downloaded
		show apt-get update
		mirror=$(archive)
	fi
	[ -n "$mirror" ] || fail "apt knows no Debian archive: give a root as ROOT=FILE"
	# mmdebstrap reads none of this host's apt options.
	apt-config dump | grep -Ei '^Acquire::((https?|ftp)::.*Proxy|Check-Valid-Until|Check-Date)' >"$1.aptopt" || true
	packages=$(sed 's/#.*//' integration/vm/recipe/debian13-systemd.packages | xargs | tr ' ' ',')
	show mmdebstrap --variant=minbase --format=tar --include="$packages" --keyring=$keyring --aptopt="$1.aptopt" \
		--customize-hook='chroot "$1" passwd -d root' trixie "$1.new" "deb [signed-by=$keyring] $mirror trixie main"
	mv "$1.new" "$1"
}

archive() {
	apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' 'Component: main' | head -n 1
}

on_host() {
	[ "$(id -u)" = 0 ] || fail "run as root: sudo make demo HOST=1"
	[ -d /run/systemd/system ] || fail "systemd does not run this machine: use make demo"
	need crun crun
	need virsh libvirt-clients
	make install
	systemctl daemon-reload
	systemctl -q enable --now virtvzd.socket virtvzd-ro.socket virtvzd-admin.socket
	systemctl try-restart virtvzd.service
	root=${ROOT:-}
	if [ -z "$root" ] && ! virtvzd template list | grep -q "^$template\b"; then
		root=/var/cache/virtvzd/$template.tar
		[ -s "$root" ] || make_root "$root"
	fi
	steps "$root"
	title "Done. virtvzd stays installed; 'virsh -c $LIBVIRT_DEFAULT_URI' reaches it."
}

in_vm() {
	integration/vm/install.sh
	tool=$(mktemp -d)
	trap 'rm -rf "$tool"' EXIT
	go build -o "$tool/vm" ./integration/vm/cmd
	title "A throw-away Debian 13 machine (made once, that takes minutes)"
	"$tool/vm" stop demo 2>/dev/null || true
	"$tool/vm" start demo
	[ -n "${KEEP:-}" ] || trap '"$tool/vm" stop demo; rm -rf "$tool"' EXIT
	"$tool/vm" install demo
	"$tool/vm" push demo integration/demo.sh /root/demo/integration/demo.sh
	"$tool/vm" ssh demo 'sh /root/demo/integration/demo.sh steps /srv/roots/debian13-systemd.tar.zst'
	if [ -n "${KEEP:-}" ]; then
		title "Done. A shell in the machine:"
		echo "go run ./integration/vm/cmd ssh demo"
		echo "go run ./integration/vm/cmd stop demo    # removes it"
	else
		title "Done; the machine is removed. 'make demo KEEP=1' keeps it, and a shell there is then:"
		echo "go run ./integration/vm/cmd ssh demo"
	fi
}

case ${1:-} in
vm) in_vm ;;
host) on_host ;;
steps) steps "$2" ;;
*) fail "use: make demo, or make demo HOST=1" ;;
esac
