#!/bin/sh
# Bring a Go to a machine that has none that builds this module: Debian 13's,
# which fetches the release that go.mod names by itself, like any module. It is
# unpacked into the cache, where the Makefile looks, and not installed.
set -eu
cd "$(dirname "$0")/.."
! go list -m >/dev/null 2>&1 || exit 0

go=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/virtvzd/go version=1.24
echo "go.sh: no Go here builds this: fetching Go $version of Debian 13" >&2
. integration/debian13.sh
debian13 deb || {
	echo "go.sh: or install Go 1.26 (go.dev) and put it into PATH" >&2
	exit 1
}
(cd "$tmp" && apt13 download "golang-$version-go" "golang-$version-src")
for package in "$tmp"/golang-*.deb; do
	dpkg-deb -x "$package" "$tmp/root"
done
# Debian's does not fetch another unless asked to.
sed -i 's/^GOTOOLCHAIN=.*/GOTOOLCHAIN=auto/' "$tmp/root/usr/lib/go-$version/go.env"
ln -s "usr/lib/go-$version/bin" "$tmp/root/bin"
rm -rf "$go"
mkdir -p "${go%/*}"
mv "$tmp/root" "$go"
integration/again.sh "$go/bin/go" version >&2 # that fetches the release
