package fsm

import (
	"errors"
	"fmt"

	"github.com/gpuai/gpuai/fsm/wire"
)

// MaxLevel is the newest feature level that this build can run, MinLevel the
// oldest that it still can. A new region begins with MinLevel; its leader
// raises it once every voter knows a newer one.
const (
	MinLevel uint32 = 1
	MaxLevel uint32 = 4
)

// LevelRestore is the level from which on
//
//   - the state knows the end of the quiet time behind a restore (BeginEpoch),
//   - a node whose quarantine ends is suspect until it beats. Below it, the node
//     is ready at once, and one that died meanwhile is given leases that
//     nobody runs until they expire.
const LevelRestore uint32 = 2

// LevelPlacement is the level from which on a job may say when and beside what
// it wants to run (the extension fields of its spec), and the policy has the
// settings of placement. Below it, commands that say so are refused, as builds
// refuse them that do not know the level.
const LevelPlacement uint32 = 3

// LevelTenants is the level from which on the state knows who may do what and
// how much: authorities and join tokens, tenants and their tokens, quotas,
// budgets and the ledger, secrets, and the chain of the audit. Commands of
// these are refused below it, as builds refuse them that do not know them.
const LevelTenants uint32 = 4

// ErrLevel is returned, wrapped with both levels, for a log or a snapshot of a
// newer feature level than this machine takes part in. Nothing was applied or
// restored: the server must stop.
var ErrLevel = errors.New("this server is too old for its region: run a newer version of gpuai, or one without a lower --max-feature-level")

// levelOf returns an error when a command sets a level beyond max.
func levelOf(c *wire.Command, max uint32) error {
	if c.Type != typeSetFeatureLevel {
		return nil
	}
	r := wire.NewReader(c.Body)
	if level := r.U32(); r.Done() == nil && level > max {
		return fmt.Errorf("%w (the region is raised to feature level %d, this server goes to %d)", ErrLevel, level, max)
	}
	return nil
}
