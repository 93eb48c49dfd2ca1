package liveness

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// life names one incarnation of a node.
type life = fsm.NodeRef

// superseded is the lives that were replaced while they held leases. They can
// beat no more; their silence counts from when the leader saw them replaced.
// The list is walked, the map only finds: no order depends on it.
type superseded struct {
	all []oldLife
	at  map[life]int
}

type oldLife struct {
	life
	since  int64          // in ms
	minEnd gpuai.Duration // smallest TTL + grace of its leases
	look   int64          // when to ask the machine again
	gone   bool           // it has no leases any more
}

// find takes up the superseded lives of a node that hold leases and are not
// known yet.
func (o *superseded) find(m Region, node gpuai.NodeID, ms int64) {
	m.SupersededLeases(node, func(inc gpuai.Incarnation, _ gpuai.Duration) {
		l := life{Node: node, Incarnation: inc}
		if _, known := o.at[l]; known {
			return
		}
		o.at[l] = len(o.all)
		o.all = append(o.all, oldLife{life: l, since: ms})
	})
}

// drop forgets the lives that have no leases any more.
func (o *superseded) drop() {
	kept := o.all[:0]
	for _, l := range o.all {
		if l.gone {
			delete(o.at, l.life)
			continue
		}
		o.at[l.life] = len(kept)
		kept = append(kept, l)
	}
	clear(o.all[len(kept):])
	o.all = kept
}
