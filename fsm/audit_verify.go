package fsm

import (
	"errors"
	"fmt"

	"github.com/gpuai/gpuai"
)

// ErrAuditBroken is returned, wrapped with where, for an audit that is not what
// the region has recorded.
var ErrAuditBroken = errors.New("the audit is broken")

// An AuditVerifier recomputes the chain of the audit over its entries, in their
// order. The zero value begins anywhere: what lies before the first entry that
// it is given is not known to it.
type AuditVerifier struct {
	Entries uint64
	// From and To are the first and the newest record seen; 0 before any.
	From, To uint64
	// FirstIndex and Index are the log indexes of these.
	FirstIndex, Index uint64
	Hash              gpuai.AuditHash // of the newest entry
}

func brokenAudit(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrAuditBroken, fmt.Sprintf(format, args...))
}

// Add takes the next entry. The error matches ErrAuditBroken, and says between
// which indexes.
func (v *AuditVerifier) Add(e *gpuai.AuditEntry) error {
	hash, err := HashAudit(e)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrAuditBroken, err)
	case v.Entries == 0 && (e.First == 1) != (e.Prev == gpuai.AuditHash{}) || e.First == 0:
		return brokenAudit("the entry at index %d, which is the first, has number %d and follows hash %s", e.Index, e.First, e.Prev)
	case v.Entries > 0 && e.Index <= v.Index:
		return brokenAudit("the entry at index %d comes behind the one at index %d", e.Index, v.Index)
	case v.Entries > 0 && e.First > v.To+1:
		return brokenAudit("records %d to %d are missing, between index %d and index %d", v.To+1, e.First-1, v.Index, e.Index)
	case v.Entries > 0 && (e.First != v.To+1 || e.Prev != v.Hash):
		return brokenAudit("the entry at index %d is not what the one at index %d follows: it was changed, or entries between them were left out or put in", v.Index, e.Index)
	}
	if v.Entries == 0 {
		v.From, v.FirstIndex = e.First, e.Index
	}
	v.Entries++
	v.To, v.Index, v.Hash = e.First+uint64(len(e.Records))-1, e.Index, hash
	return nil
}

// End compares the chain with the head that the state has. Where no entry was
// given the head must be that of from, an index behind which there is nothing.
func (v *AuditVerifier) End(h *gpuai.AuditHead, from uint64) error {
	switch {
	case v.Entries == 0 && h.Index <= from:
		return nil
	case v.To < h.Records:
		return brokenAudit("it ends with record %d at index %d, and the region has %d, up to index %d", v.To, v.Index, h.Records, h.Index)
	case v.To != h.Records || v.Index != h.Index || v.Hash != h.Hash:
		return brokenAudit("it ends with record %d at index %d, hash %s, and the region's with record %d at index %d, hash %s: the entry at index %d was changed, or did not happen",
			v.To, v.Index, v.Hash, h.Records, h.Index, h.Hash, v.Index)
	}
	return nil
}
