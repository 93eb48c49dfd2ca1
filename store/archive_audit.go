package store

import (
	"encoding/binary"
	"errors"

	"go.etcd.io/bbolt"
)

// Audits returns copies of the links of the audit from the index of a place on
// up to another, until they have maxBytes, as Rows does.
func (a *Archive) Audits(from ArchivePlace, to uint64, maxBytes int) (rows []ArchiveRow, next ArchivePlace, done bool, err error) {
	err = a.view(func(tx *bbolt.Tx) error {
		r := rowReader{tx: tx, left: maxBytes, place: from}
		done = r.audits(to)
		rows, next = r.rows, r.place
		return r.err
	})
	return rows, next, done, err
}

// audits reads up to an index and reports whether there was room for all.
func (r *rowReader) audits(to uint64) bool {
	b := r.tx.Bucket(bucketAudit)
	if b == nil { // of an older version, opened for reading
		return true
	}
	c := b.Cursor()
	for k, v := c.Seek(indexKey(r.place.Index)); len(k) == 8; k, v = c.Next() {
		index := binary.BigEndian.Uint64(k)
		if index > to {
			return true
		}
		if !r.row(ArchivePlace{Index: index}, ArchiveAudit, k, v) {
			return false
		}
	}
	return true
}

// Audit returns the link in a row of that kind.
func (r *ArchiveRow) Audit() ([]byte, error) {
	if len(r.Key) != 8 {
		return nil, errors.New("a link of the audit is filed under no index")
	}
	return openRow(r.Key, r.Value)
}
