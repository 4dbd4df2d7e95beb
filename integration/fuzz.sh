#!/bin/sh
# Fuzz every target of the tree for a short time each: fuzz.sh 5s
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go}
for file in $(grep -rl --include='*_test.go' '^func Fuzz' driver xml runtime systemd); do
	for target in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file"); do
		echo "fuzzing $target in ./$(dirname "$file") for ${1:-5s}"
		$GO test -run '^$' -fuzz "^$target\$" -fuzztime "${1:-5s}" -fuzzminimizetime 1s "./$(dirname "$file")"
	done
done
