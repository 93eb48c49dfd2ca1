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
	newest            int             // how many records it has
}

func brokenAudit(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrAuditBroken, fmt.Sprintf(format, args...))
}

// recordsText names n records from a number on, and the index of their entry.
func recordsText(first uint64, n int, index uint64) string {
	if n == 1 {
		return fmt.Sprintf("record %d (index %d)", first, index)
	}
	return fmt.Sprintf("records %d to %d (index %d)", first, first+uint64(n)-1, index)
}

// were is the verb of n records.
func were(n int) string {
	if n == 1 {
		return "was"
	}
	return "were"
}

// last names the newest record seen.
func (v *AuditVerifier) last() string { return recordsText(v.To, 1, v.Index) }

// Add takes the next entry. The error matches ErrAuditBroken, and says which
// records are not what was recorded, and what was done to them.
func (v *AuditVerifier) Add(e *gpuai.AuditEntry) error {
	hash, err := HashAudit(e)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrAuditBroken, err)
	}
	if err := v.follows(e, hash); err != nil {
		return err
	}
	if v.Entries == 0 {
		v.From, v.FirstIndex = e.First, e.Index
	}
	v.Entries++
	v.To, v.Index, v.Hash, v.newest = e.First+uint64(len(e.Records))-1, e.Index, hash, len(e.Records)
	return nil
}

// follows reports why an entry does not follow those that were added.
func (v *AuditVerifier) follows(e *gpuai.AuditEntry, hash gpuai.AuditHash) error {
	this, was := recordsText(e.First, len(e.Records), e.Index), were(len(e.Records))
	switch {
	case e.First == 0:
		return brokenAudit("the entry at index %d has record number 0: the first there is has number 1", e.Index)
	case v.Entries == 0 && (e.First == 1) != (e.Prev == gpuai.AuditHash{}):
		return brokenAudit("%s, the first of all, %s chained to hash %s: the number or that hash was changed", this, was, e.Prev)
	case v.Entries == 0:
		return nil
	case e.Index == v.Index && hash == v.Hash:
		return brokenAudit("%s %s repeated: the entry is there twice", this, was)
	case e.Index == v.Index:
		return brokenAudit("there are two entries of index %d: one of them was put in", e.Index)
	case e.Index < v.Index:
		return brokenAudit("%s %s moved or put in: before it is %s", this, was, v.last())
	case e.First > v.To+1:
		return brokenAudit("records %d to %d are missing, between index %d and index %d: they were left out, or moved", v.To+1, e.First-1, v.Index, e.Index)
	case e.First <= v.To:
		return brokenAudit("%s %s put in: that number is the one of %s before", this, was, v.last())
	case e.Prev != v.Hash:
		return brokenAudit("%s %s changed after being recorded, or the hash in the entry of %s was", recordsText(v.To+1-uint64(v.newest), v.newest, v.Index), were(v.newest), this)
	}
	return nil
}

// End compares the chain with the head that the state has. Where no entry was
// given the head must be that of from, an index behind which there is nothing.
func (v *AuditVerifier) End(h *gpuai.AuditHead, from uint64) error {
	newest := recordsText(h.Records, 1, h.Index)
	switch {
	case v.Entries == 0 && h.Index <= from:
		return nil
	case v.Entries == 0:
		return brokenAudit("there are no entries, and the head is at %s: all of them were left out", newest)
	case v.To < h.Records:
		return brokenAudit("it ends with %s, and the head is at %s: records %d to %d were cut off its end", v.last(), newest, v.To+1, h.Records)
	case v.To > h.Records || v.Index > h.Index:
		return brokenAudit("it goes on to %s, and the head is at %s: the head is that of an older state or of another region, or what is behind it did not happen", v.last(), newest)
	case v.Index != h.Index || v.Hash != h.Hash:
		return brokenAudit("%s, its last, has hash %s, and the head at %s has %s: it was changed, or did not happen", v.last(), v.Hash, newest, h.Hash)
	}
	return nil
}
