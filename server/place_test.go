package server

import (
	"bytes"
	"testing"

	"github.com/gpuai/gpuai"
)

// Where a tenant's list of old jobs goes on names no job of another, loses none of
// its own, and goes on.
func TestPlacesInTheHistoryNameNoForeignJob(t *testing.T) {
	id := func(ms, n byte) gpuai.JobID { return gpuai.JobID{5: ms, 15: n} }
	edge := id(5, 0)
	for i := ulidTime; i < len(edge); i++ {
		edge[i] = 0xff
	}
	for name, c := range map[string]struct {
		tenant      gpuai.TenantID
		last, after gpuai.JobID
		own         []gpuai.JobID
		want        gpuai.JobID
	}{
		"all tenants'":                         {"", id(5, 1), gpuai.JobID{}, nil, id(5, 1)},
		"its own":                              {"acme", id(5, 1), gpuai.JobID{}, []gpuai.JobID{id(6, 1), id(5, 1)}, id(5, 1)},
		"another's, nothing of its own":        {"acme", id(5, 1), gpuai.JobID{}, nil, edge},
		"another's, behind its own":            {"acme", id(5, 1), gpuai.JobID{}, []gpuai.JobID{id(6, 1)}, edge},
		"another's of the same millisecond":    {"acme", id(5, 1), gpuai.JobID{}, []gpuai.JobID{id(5, 3)}, id(5, 3)},
		"many others' of the same millisecond": {"acme", id(5, 1), edge, nil, id(5, 1)}, // it must go on
	} {
		var own []gpuai.Job
		for _, x := range c.own {
			own = append(own, gpuai.Job{ID: x})
		}
		got := placeOf(c.tenant, c.last, c.after, own)
		if got != c.want {
			t.Errorf("%s: it goes on at %s, want %s", name, got, c.want)
		}
		if bytes.Compare(got[:], c.last[:]) < 0 || !c.after.IsZero() && bytes.Compare(got[:], c.after[:]) >= 0 {
			t.Errorf("%s: %s loses jobs, or does not go on", name, got)
		}
	}
}
