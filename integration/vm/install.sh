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
# A source that is of no use here may be broken; the installation tells.
apt-get -qq update || echo "install.sh: apt-get update had errors" >&2
# The lists of packages grow with every issue; recommended ones would drag a
# second libvirt daemon in.
DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install $missing >/dev/null
