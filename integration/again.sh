#!/bin/sh
# Run what only downloads, once more after a while if it fails, for two minutes:
# a mirror may be out of reach for a moment, and another apt may hold a lock that
# apt does not wait for, as it does for dpkg's (those of its lists and archives).
#
#	again.sh COMMAND...
for pause in 5 10 20 40 60 ""; do
	"$@" && exit || status=$?
	[ -n "$pause" ] || exit $status
	echo "again.sh: once more in $pause s: $*" >&2
	sleep $pause
done
