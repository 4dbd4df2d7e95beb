//go:build vm

package runtime

import (
	"testing"

	"virtvzd/systemd"
)

// buildScopes: where systemd runs, a build is in a scope.
func buildScopes(t *testing.T) Scopes {
	bus := systemd.Open()
	t.Cleanup(func() { bus.Close() })
	return bus
}
