#!/bin/sh
# Bring the source of libvirt 11.3 and print its directory, for
#
#	go run ./driver/protocol/gen -src "$(driver/protocol/gen/fetch.sh)"
#
# It comes as Debian's source package and stays in the cache.
set -eu

version=11.3.0
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/virtvzd
src=$cache/libvirt-$version

if [ -e "$src/.complete" ]; then
	echo "$src"
	exit
fi

. "$(dirname "$0")/../../../integration/debian13.sh"
debian13 deb-src || {
	echo "fetch.sh: or unpack libvirt $version into $src and create $src/.complete" >&2
	exit 1
}

# Only the original tarball is needed, so a missing .dsc does no harm. apt prints
# 'URI' NAME SIZE HASH for each file of the package and checks the hash below.
apt13 --print-uris source libvirt | grep "_$version\.orig\.tar\.xz " >"$tmp/uri" || {
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
