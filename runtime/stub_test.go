package runtime

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	if Stub() {
		return
	}
	os.Exit(runTests(m))
}
