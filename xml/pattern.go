package xml

import (
	"regexp"
	"sync"
)

// pattern is a regular expression that is compiled when it is first used.
// Compiled as variables they took a fifth of the program's start, and each
// start of an environment starts it once more, as the stub.
func pattern(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}
