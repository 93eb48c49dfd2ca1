package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// Limits of an entry.
const (
	MaxCommands     = wire.MaxCommands
	MaxEntryBytes   = wire.MaxEntryBytes
	MaxCommandBytes = wire.MaxCommandBytes
)

// A Header says when and by whom an entry was made.
type Header struct {
	Time gpuai.Instant  // region time: the machine never goes back
	Wall gpuai.WallTime // for display only
	Term uint64         // of the leader that proposes it
}

// AppendEntry appends a log entry that holds the encoded commands, at most
// MaxCommands of them.
func AppendEntry(dst []byte, h Header, cmds ...[]byte) []byte {
	return wire.AppendEntry(dst, wire.Header{Time: int64(h.Time), Wall: int64(h.Wall), Term: h.Term}, cmds...)
}

// CheckEntry verifies an entry's frame and checksum without applying it.
func CheckEntry(data []byte) error { return wire.CheckEntry(data) }
