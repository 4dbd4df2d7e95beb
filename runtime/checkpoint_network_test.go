package runtime

import (
	"bufio"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestLockTables: of the tables of an environment CRIU's are found, and nothing
// that root there has made up is taken for more than a name.
func TestLockTables(t *testing.T) {
	const run, whole = "CRIU-b66e4e89-9fa1-4dd0-92", "CRIU-0f5cb0a3-8c2e-4d5b-9f3e-6a7b8c9d0e1f"
	var many strings.Builder
	for n := range 100_000 {
		fmt.Fprintf(&many, "table inet CRIU-%d\ntable inet t%d\n", n, n)
	}
	for list, want := range map[string][]string{
		"": nil,
		"table inet filter\ntable inet " + run + "\ntable ip nat\n":                       {run},
		"table inet CRIU-4711\n":                                                          {"CRIU-4711"},
		"table ip " + run + "\n":                                                          nil,
		"table inet CRIU-1; flush ruleset\n":                                              nil,
		"table inet CRIU-1;include\n":                                                     nil,
		"table inet CRIU-\ntable inet CRIU-x\n":                                           nil,
		"table inet CRIU-*\ntable inet " + whole + "0\n":                                  nil,
		"table inet \"CRIU-1\"\n":                                                         nil,
		"table inet " + whole + "\n":                                                      {whole},
		many.String() + "table inet " + run + "\n" + strings.Repeat("table inet x\n", 10): {"CRIU-99993", "CRIU-99994", "CRIU-99995", "CRIU-99996", "CRIU-99997", "CRIU-99998", "CRIU-99999", run},
	} {
		got, err := lockTables(strings.NewReader(list))
		if err != nil {
			t.Errorf("%.80s: %v", list, err)
		}
		same(t, got, want)
	}
	if _, err := lockTables(strings.NewReader(strings.Repeat("x", 1<<20))); !errors.Is(err, bufio.ErrTooLong) {
		t.Errorf("a line without end: %v", err)
	}
}
