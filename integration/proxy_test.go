package integration

import (
	"testing"

	"github.com/gpuai/gpuai/integration/cable"
)

// newCable lays a cable to a server's address, for as long as the test runs.
func newCable(t *testing.T, target string) *cable.Cable {
	t.Helper()
	c, err := cable.To(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}
