//go:build !vm

package runtime

import "testing"

func runTests(m *testing.M) int { return m.Run() }
