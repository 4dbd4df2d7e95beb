#!/bin/bash
# build.sh RECIPE OUT: make the directory OUT/root of Debian 13 with the packages
# in RECIPE. Needs root. Lines that start with "==> " are for the user.
#
# VIRTVZD_MIRROR is a Debian archive's address; by default the one that this
# machine's own apt is configured with.
set -euo pipefail
recipe=$(realpath "$1")
release=trixie
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
cd "$2"
export TMPDIR=$PWD DEBIAN_FRONTEND=noninteractive
step() { echo "==> $*"; }

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
step "installing virt-manager and a desktop"
mmdebstrap --mode=root --format=directory --variant=minbase --keyring=$keyring \
	--include="$(sed 's/#.*//' "$recipe/packages" | xargs | tr ' ' ',')" \
	--aptopt="$PWD/aptopt" --dpkgopt=force-unsafe-io \
	--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
	--dpkgopt='path-exclude=/usr/share/doc/*' \
	$release root "deb [signed-by=$keyring] $mirror $release main"
rm aptopt
