#!/bin/sh
# Fuzz every target of the tree for a short time each: fuzz.sh 5s
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go}
time=${1:-5s}

# fuzz DIR TARGET. Before Go 1.27 the end of the time may be taken for a failure
# (go.dev/issue/75804); an input that fails is always written, and said so.
fuzz() {
	said=$($GO test -run '^$' -fuzz "^$2\$" -fuzztime "$time" -fuzzminimizetime 1s "./$1" 2>&1) && failed= || failed=yes
	echo "$said"
	[ -z "$failed" ] || { echo "$said" | grep -qx ' *context deadline exceeded' && ! echo "$said" | grep -q 'Failing input'; }
}

for file in $(grep -rl --include='*_test.go' '^func Fuzz' driver xml runtime systemd); do
	for target in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file"); do
		echo "fuzzing $target in ./$(dirname "$file") for $time"
		fuzz "$(dirname "$file")" "$target" || exit 1
	done
done
