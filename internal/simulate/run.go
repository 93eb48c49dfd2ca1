package simulate

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// A mode is a way to run a trace.
type mode struct {
	name string
	run  func(context.Context, Config) (Report, error)
}

// modes are all that there are.
var modes = []mode{{"fill", Fill}, {"churn", Churn}, {"time", Timed}}

// ModeNames lists the modes.
func ModeNames() []string {
	var out []string
	for i := range modes {
		out = append(out, modes[i].name)
	}
	return out
}

// Run runs a trace in a mode once for each policy, on the same arrivals. It
// returns the reports that there are when it ends with an error.
func Run(ctx context.Context, mode string, c Config, ps []Policy) ([]Report, error) {
	var out []Report
	for _, m := range modes {
		if m.name != mode {
			continue
		}
		for _, p := range ps {
			c.Policy = p
			r, err := m.run(ctx, c)
			if err != nil {
				return out, fmt.Errorf("policy %s: %w", p.Name, err)
			}
			out = append(out, r)
		}
		return out, nil
	}
	return nil, fmt.Errorf("there is no mode %q; there are %s", mode, strings.Join(ModeNames(), ", "))
}

// IsMode reports whether there is a mode of a name.
func IsMode(name string) bool { return slices.Contains(ModeNames(), name) }
