# To be sourced: what Debian 13 has, whatever this machine is, from the archive
# that the machine's own apt is configured with. apt works in $tmp, which is
# removed at the end: the machine's package lists and pins are not touched.
#
#	debian13 deb-src    # or deb: read what there is
#	apt13 download NAME...
release=trixie
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

apt13() {
	apt-get -qq -o Acquire::Retries=8 -o Dir::Etc::SourceList="$tmp/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::Etc::Preferences=- -o Dir::Etc::PreferencesParts=/dev/null \
		-o Dir::State::Lists="$tmp/lists" -o Dir::Cache="$tmp/cache" -o APT::Sandbox::User=root "$@"
}

debian13() {
	# The first Debian archive among the sources, whatever release they name.
	archive=$(apt-get indextargets --format '$(REPO_URI)' \
		'Created-By: Packages' 'Label: Debian' 'Component: main' | head -n 1)
	if [ -z "$archive" ]; then # apt tells labels only of what it has downloaded
		echo "${0##*/}: apt knows no Debian archive: run apt-get update" >&2
		return 1
	fi
	keys=/usr/share/keyrings/debian-archive-keyring.gpg
	[ -e "$keys" ] && keys="[signed-by=$keys]" || keys=
	mkdir -p "$tmp/lists/partial" "$tmp/cache/archives/partial"
	echo "$1 $keys $archive $release main" >"$tmp/sources.list"
	apt13 -o APT::Update::Error-Mode=any update >&2
}
