package fsm

import "errors"

var (
	// ErrUnknownCommand is returned by Apply for a command type or version
	// that this build does not know. Nothing of the entry was applied: the
	// server must stop and be upgraded.
	ErrUnknownCommand = errors.New("the log holds a command that this version does not know: upgrade this server before it may go on")
	// ErrDamaged is returned by Apply for an entry whose frame or checksum is
	// wrong. Nothing of it was applied: this replica's log is damaged.
	ErrDamaged = errors.New("a log entry fails its checksum: rebuild this server with 'gpuai server rejoin --wipe'")
)
