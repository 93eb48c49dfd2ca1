package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/scheduler"
)

// MaxDemand is how many shapes one SetDemand may name.
const MaxDemand = gpuai.MaxDemand

// SetDemand tells the packing policy which demand to expect, in place of what
// it has learnt from arrivals.
//
// Rejected: Conflict below LevelPlacement, or while the policy is bestfit, which
// expects nothing; InvalidSpec for needs out of range; TooLarge for more than
// MaxDemand shapes, or when too many shapes are in use.
type SetDemand struct {
	Demand []gpuai.DemandClass
	// Fixed says that arrivals change nothing of it. Otherwise it is learnt on
	// from there.
	Fixed bool
}

// readDemand reads a SetDemand's body.
func readDemand(r *wire.Reader) (c SetDemand, err error) {
	fixed, n := r.U8(), r.U16()
	c.Fixed = fixed == 1
	for range min(n, MaxDemand) {
		d := gpuai.DemandClass{Tasks: r.U64()}
		if d.Resources, d.Constraints, err = wire.ReadShape([]byte(r.Str())); err != nil {
			return c, err
		}
		c.Demand = append(c.Demand, d)
	}
	return c, r.Done()
}

// Append appends the encoded command to dst.
func (c *SetDemand) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeSetDemand, env, func(b []byte) []byte {
		b = append(b, bool8(c.Fixed))
		b = le.AppendUint16(b, uint16(min(len(c.Demand), 1<<16-1)))
		for i := range c.Demand {
			d := &c.Demand[i]
			b = le.AppendUint64(b, d.Tasks)
			b = wire.AppendStr(b, string(wire.AppendShape(nil, &d.Resources, d.Constraints)))
		}
		return b
	})
}

func (m *Machine) applySetDemand(r *wire.Reader) Result {
	fixed, n := r.U8(), r.U16()
	switch {
	case m.Level() < LevelPlacement:
		return rejected(gpuai.Conflict, "the region's feature level knows no demand: upgrade every server")
	case m.policy.Get().Packing == gpuai.PackingBestFit:
		return rejected(gpuai.Conflict, "the packing policy is bestfit, which expects no demand: set packing to efw first")
	case n > MaxDemand:
		return rejected(gpuai.TooLarge, "a demand may name 1024 kinds of tasks at most")
	case fixed > 1:
		return malformed
	}
	demand := make([]scheduler.Demand, 0, n)
	for range n {
		tasks, shape := r.U64(), r.Str()
		if r.Err() != nil {
			return malformed
		}
		id, res := m.shapeOf(&wire.GroupView{Shape: []byte(shape)})
		if res.Code != gpuai.OK {
			m.takeBack()
			return res
		}
		// Held, so that the next shapes do not push it out.
		m.sched.RetainShape(id)
		demand = append(demand, scheduler.Demand{Shape: id, Tasks: tasks})
	}
	if r.Done() != nil {
		m.takeBack()
		return malformed
	}
	m.sched.SeedDemand(demand, fixed == 1)
	for _, d := range demand {
		m.sched.ReleaseShape(d.Shape)
	}
	m.now.work -= int64(n)
	return Result{}
}

// arrived counts tasks that were submitted in the demand that packing expects.
func (m *Machine) arrived(shape scheduler.ShapeID, tasks uint32) {
	before := m.sched.Work()
	m.sched.Arrived(shape, tasks)
	m.now.work -= int64(m.sched.Work() - before)
}

// packStepWork is the part of an entry's budget that may go into building or
// dropping the index of a packing policy.
const packStepWork = WorkPerEntry / 2

// packStep brings the index of the packing policy some way towards the policy.
func (m *Machine) packStep() {
	if !m.sched.PackingSettled() {
		m.now.work -= m.sched.PackStep(packStepWork)
	}
}
