package frames

import (
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

func TestSetsThatDoNotFitAFrame(t *testing.T) {
	teller := &Teller{held: map[gpuai.Token]struct{}{7: {}}, known: map[gpuai.Token]struct{}{5: {}}}
	var all []gpuai.Assignment
	for token := gpuai.Token(1); token <= 8; token++ {
		a := gpuai.Assignment{Lease: gpuai.Lease{ID: token}}
		a.Task.Script = strings.Repeat("x", setBytes/3)
		all = append(all, a)
	}
	frames := teller.sets(&Due{Full: true}, &View{index: 3, changed: all})
	seen := make(map[gpuai.Token]bool)
	for i, f := range frames {
		if f.Leases.Full != (i == 0) || f.Leases.Index != 3 {
			t.Errorf("frame %d: full %v, index %d", i, f.Leases.Full, f.Leases.Index)
		}
		size := 0
		for _, a := range f.Leases.Leases {
			size += len(a.Task.Script)
			seen[a.Lease.ID] = true
		}
		if size > gpuai.MaxFrameBytes/2 {
			t.Errorf("frame %d has %d bytes", i, size)
		}
	}
	if first := frames[0].Leases.Leases; first[0].Lease.ID != 5 || first[1].Lease.ID != 7 {
		t.Error("the full set does not begin with what the agent holds")
	}
	if len(seen) != 8 || len(teller.known) != 8 {
		t.Errorf("%d of 8 leases were sent, %d are known", len(seen), len(teller.known))
	}
	if got := teller.sets(&Due{}, &View{}); got != nil {
		t.Errorf("nothing changed, and %d frames were made", len(got))
	}
}
