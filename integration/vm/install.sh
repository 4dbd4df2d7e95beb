#!/bin/sh
# Install those packages of the list beside this file that are missing. Does
# nothing, and needs neither root nor a network, when all are there.
set -eu
cd "$(dirname "$0")"

wanted=$(sed 's/#.*//' packages)
missing=
for package in $wanted; do
	case $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) in
	installed) ;;
	*) missing="$missing $package" ;;
	esac
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
	echo "install.sh: run as root, or install by hand:$missing" >&2
	exit 1
fi
echo "install.sh: installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
# Somebody else may be installing just now.
apt="apt-get -q -y -o DPkg::Lock::Timeout=300"
# Recommended packages would drag in a libvirt daemon that is started.
install="$apt --no-install-recommends install"
../again.sh sh -c "$apt update && $install --download-only $missing" >&2
# shellcheck disable=SC2086
$install $missing >&2
echo "install.sh: done" >&2
