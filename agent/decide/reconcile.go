package decide

// This file is the reconciliation of one lease: what the region assigned ×
// what was recorded × what was seen to run → what to do. It is one table, used
// for every lease of a set, and after a restart for every lease of the journal
// and every task that the watchdog has.

// Assigned is what the region says of a lease.
type Assigned uint8

// What the region may say.
const (
	AssignedUnknown  Assigned = iota // it has not been heard yet
	AssignedLive                     // granted or running
	AssignedRevoking                 // its task is to be stopped
	AssignedEnded                    // it has ended, or is not in the full set
)

// Recorded is what the agent remembers of a lease.
type Recorded uint8

// What may be remembered.
const (
	RecordedNot       Recorded = iota
	RecordedWaiting            // offered, nothing done
	RecordedRunning            // started, or about to be
	RecordedStopping           // told to stop
	RecordedEnded              // its task is gone or given up: nothing starts it again
	RecordedOtherBoot          // started before the last boot
)

// Seen is what was found of a lease's task.
type Seen uint8

// What may be found. While the agent lives its record is what it has seen.
const (
	SeenAsRecorded Seen = iota
	SeenRunning         // the watchdog has it
	SeenExited          // the watchdog has its exit code
	SeenNot             // it is not there
)

// A Sight is all that is known of one lease.
type Sight struct {
	Assigned Assigned
	Recorded Recorded
	Seen     Seen
}

// Move is what to do about a lease.
type Move uint8

// The moves.
const (
	MoveNothing Move = iota
	MoveTake         // take it up: it starts with its first deadline
	MoveStop         // stop its task with grace
	MoveFence        // kill its task at once
	MoveRefuse       // report it stopped: it was revoked before it started
	MoveDrop         // forget it: nothing was done for it
	MoveAdopt        // its task goes on under the new life of the agent
	MoveCollect      // take its exit code and report it
	MoveSweep        // look for what may be left of it, kill that, report it lost
	MoveKill         // kill a task of no known lease
	MoveForget       // drop its record: it cannot be running, nobody asks
)

// Judge returns what to do about one lease. It is total.
func Judge(s Sight) Move {
	if s.Seen != SeenAsRecorded {
		return judgeFound(s)
	}
	switch s.Assigned {
	case AssignedLive:
		if s.Recorded == RecordedNot {
			return MoveTake
		}
	case AssignedRevoking:
		switch s.Recorded {
		case RecordedNot, RecordedWaiting:
			return MoveRefuse
		case RecordedRunning:
			return MoveStop
		}
	case AssignedEnded:
		switch s.Recorded {
		case RecordedWaiting:
			return MoveDrop
		case RecordedRunning, RecordedStopping:
			return MoveFence
		}
	}
	return MoveNothing
}

// judgeFound is the part after a restart, when the region is not heard yet.
func judgeFound(s Sight) Move {
	switch s.Recorded {
	case RecordedNot, RecordedWaiting:
		if s.Seen == SeenNot {
			return MoveForget
		}
		return MoveKill
	case RecordedOtherBoot:
		// Nothing survives a reboot, and the record may be a copy on another
		// host: the lease waits for its TTL and grace, no report frees it.
		if s.Seen == SeenNot {
			return MoveForget
		}
		return MoveKill
	case RecordedEnded:
		if s.Seen == SeenRunning {
			return MoveKill
		}
		return MoveNothing
	}
	switch s.Seen {
	case SeenRunning:
		return MoveAdopt
	case SeenExited:
		return MoveCollect
	default:
		return MoveSweep
	}
}
