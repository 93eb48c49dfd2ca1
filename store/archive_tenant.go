package store

import (
	"bytes"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/gpuai/gpuai"
)

// FindJobOf is FindJob among the jobs of a tenant: another's is as unknown as
// none. It looks at 1,000 jobs of a name, or of a beginning, at most.
func (a *Archive) FindJobOf(ref string, tenant gpuai.TenantID) (id gpuai.JobID, ambiguous bool, err error) {
	err = a.view(func(tx *bbolt.Tx) error {
		mine := func(x gpuai.JobID) bool {
			raw := tx.Bucket(bucketJobs).Get(x[:])
			r, err := openJobRow(x[:], raw)
			return raw != nil && err == nil && r.Job.Tenant == tenant
		}
		if x, e := gpuai.ParseJobID(ref); e == nil && mine(x) {
			id = x
			return nil
		}
		if id = newestOf(tx, ref, mine); id.IsZero() {
			id, ambiguous = prefixOf(tx, ref, mine)
		}
		return nil
	})
	return id, ambiguous, err
}

// newestOf returns the newest job of a name that is wanted.
func newestOf(tx *bbolt.Tx, name string, want func(gpuai.JobID) bool) (id gpuai.JobID) {
	c := tx.Bucket(bucketNames).Cursor()
	prefix := append([]byte(name), 0)
	k, _ := seekBefore(c, append([]byte(name), 1))
	for n := 0; n < maxArchiveScan && len(k) == len(prefix)+len(id) && bytes.HasPrefix(k, prefix); n++ {
		if x := gpuai.JobID(k[len(prefix):]); want(x) {
			return x
		}
		k, _ = c.Prev()
	}
	return id
}

// prefixOf returns the job with a beginning of an ID that is wanted.
func prefixOf(tx *bbolt.Tx, ref string, want func(gpuai.JobID) bool) (id gpuai.JobID, ambiguous bool) {
	if len(ref) < minPrefix || len(ref) >= gpuai.JobIDLen {
		return id, false
	}
	prefix := strings.ToUpper(ref)
	first, err := gpuai.ParseJobID(prefix + strings.Repeat("0", gpuai.JobIDLen-len(prefix)))
	if err != nil {
		return id, false
	}
	c := tx.Bucket(bucketJobs).Cursor()
	k, _ := c.Seek(first[:])
	for n := 0; n < maxArchiveScan && len(k) == len(id); n++ {
		x := gpuai.JobID(k)
		if !strings.HasPrefix(x.String(), prefix) {
			break
		}
		if want(x) {
			if !id.IsZero() {
				return gpuai.JobID{}, true
			}
			id = x
		}
		k, _ = c.Next()
	}
	return id, false
}
