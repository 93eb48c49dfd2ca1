package raft

import (
	"errors"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai"
)

// retryElection is when a retry is worth it after a leader was lost.
const retryElection = 500 * gpuai.Millisecond

func noLeader(detail string) error {
	return &gpuai.Error{Code: gpuai.NoLeader, Detail: detail, RetryAfter: retryElection}
}

func rateLimited(detail string) error {
	return &gpuai.Error{Code: gpuai.RateLimited, Detail: detail, RetryAfter: 100 * gpuai.Millisecond}
}

func outcomeUnknown(why string) error {
	return &gpuai.Error{
		Code:       gpuai.OutcomeUnknown,
		Detail:     why + ": the command may or may not have been applied; retry with the same idempotency key",
		RetryAfter: retryElection,
	}
}

// notAppended reports whether hraft's error guarantees that the entry never
// reached the log.
func notAppended(err error) bool {
	return errors.Is(err, hraft.ErrNotLeader) || errors.Is(err, hraft.ErrLeadershipTransferInProgress) ||
		errors.Is(err, hraft.ErrEnqueueTimeout)
}

// errOverdue is the error of an entry whose future did not answer in time.
var errOverdue = errors.New("the entry is overdue")

// errMalformed is the error of an entry that the machine could not read.
var errMalformed = errors.New("the entry is malformed")

// proposalError translates the error of a proposed entry's future.
func proposalError(err error) error {
	switch {
	case errors.Is(err, hraft.ErrEnqueueTimeout):
		return noLeader("the leader does not take entries at the moment; retry")
	case notAppended(err):
		return noLeader("this server stopped leading before it took the command; retry")
	case errors.Is(err, hraft.ErrLeadershipLost):
		return outcomeUnknown("this server lost its leadership")
	case errors.Is(err, errMalformed):
		return gpuai.NewError(gpuai.Internal, "a command proposed beside this one is malformed; nothing was appended")
	case errors.Is(err, errOverdue):
		return outcomeUnknown("no majority confirmed the entry, or this server did not apply it, in time")
	case errors.Is(err, hraft.ErrRaftShutdown):
		return outcomeUnknown("this server is stopping")
	default:
		return outcomeUnknown("the leader could not write its log (" + err.Error() + ")")
	}
}
