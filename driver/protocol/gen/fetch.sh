#!/bin/sh
# Bring the source of libvirt 11.3 and print its directory, for
#
#	go run ./driver/protocol/gen -src "$(driver/protocol/gen/fetch.sh)"
#
# It comes as Debian's source package from the archive that this machine's own
# apt is configured with. apt works in a directory of its own: the machine's
# package lists and pins are not touched. The source stays in the cache.
set -eu

release=trixie version=11.3.0
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/virtvzd
src=$cache/libvirt-$version

if [ -e "$src/.complete" ]; then
	echo "$src"
	exit
fi

# The first Debian archive among the sources, whatever release they name.
archive=$(apt-get indextargets --format '$(REPO_URI)' \
	'Created-By: Packages' 'Label: Debian' 'Component: main' | head -n 1)
if [ -z "$archive" ]; then
	echo "fetch.sh: apt knows no Debian archive: run apt-get update, or unpack libvirt $version into $src and create $src/.complete" >&2
	exit 1
fi

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir -p "$tmp/lists/partial" "$tmp/cache"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[ -e "$keys" ] && keys="[signed-by=$keys]" || keys=
echo "deb-src $keys $archive $release main" >"$tmp/sources.list"
apt() {
	apt-get -qq -o Dir::Etc::SourceList="$tmp/sources.list" -o Dir::Etc::SourceParts=- \
		-o Dir::Etc::Preferences=- -o Dir::Etc::PreferencesParts=- \
		-o Dir::State::Lists="$tmp/lists" -o Dir::Cache="$tmp/cache" -o APT::Sandbox::User=root "$@"
}
apt update >&2

# Only the original tarball is needed, so a missing .dsc does no harm. apt prints
# 'URI' NAME SIZE HASH for each file of the package and checks the hash below.
apt --print-uris source libvirt | grep "_$version\.orig\.tar\.xz " >"$tmp/uri" || {
	echo "fetch.sh: $release no longer has libvirt $version: change the version here and run the generator" >&2
	exit 1
}
read -r uri name _ hash <"$tmp/uri"
uri=${uri#?} uri=${uri%?}
echo "fetch.sh: downloading $name" >&2
/usr/lib/apt/apt-helper -qq -o APT::Sandbox::User=root download-file "$uri" "$tmp/$name" "$hash" >&2

rm -rf "$src"
mkdir -p "$src"
tar -xJf "$tmp/$name" -C "$src" --strip-components=1 --wildcards '*/include' '*/src'
touch "$src/.complete"
echo "$src"
