package simulate

import (
	"errors"
	"fmt"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// ErrAudit is returned, wrapped with the entry and what was wrong, when a log
// holds a decision that no correct machine makes.
var ErrAudit = errors.New("the audit of the log found a wrong decision")

// An AuditReport says what an audit looked at.
type AuditReport struct {
	Entries int `json:"entries"`
	Grants  int `json:"grants"`
	// Waits is how often a task without a lease was compared with every node.
	Waits int `json:"waits"`
}

// An auditor replays a log on a machine of its own and keeps books of its own,
// from what the events name: no device is given twice, every grant is within
// what is free and what was asked for, and no task waits that could start.
type auditor struct {
	m     *fsm.Machine
	out   fsm.Output
	nodes []*auditNode
	byID  map[gpuai.NodeID]*auditNode
	held  map[gpuai.Token]gpuai.Lease
	jobs  map[gpuai.JobID]*auditJob
	r     AuditReport
}

// An auditNode is what is free of a node.
type auditNode struct {
	cpu    gpuai.MilliCPU
	memory gpuai.Bytes
	free   map[gpuai.DeviceID]int64 // milli
	model  map[gpuai.DeviceID]string
	ready  bool
}

// An auditJob is a job of one kind of tasks, and how many of them wait.
type auditJob struct {
	needs   gpuai.Resources
	models  []string // nil: any
	waiting int
	judged  bool // whether a wait can be judged: no gang, no filter but the model
}

// audit replays the log of a world, which must have been kept.
func (w *world) audit() (AuditReport, error) {
	a := auditor{
		m: fsm.New(w.opts), byID: map[gpuai.NodeID]*auditNode{},
		held: map[gpuai.Token]gpuai.Lease{}, jobs: map[gpuai.JobID]*auditJob{},
	}
	for i, entry := range w.log {
		if err := a.m.Apply(uint64(i+1), term, entry, &a.out); err != nil {
			return a.r, fmt.Errorf("replaying entry %d: %w", i+1, err)
		}
		a.r.Entries++
		if err := a.entry(); err != nil {
			return a.r, fmt.Errorf("%w: entry %d: %w", ErrAudit, i+1, err)
		}
	}
	if a.m.Digest() != w.m.Digest() {
		return a.r, fmt.Errorf("%w: the replay ends with digest %s, the run with %s", ErrAudit, a.m.Digest(), w.m.Digest())
	}
	return a.r, nil
}

// entry judges what an entry did.
func (a *auditor) entry() error {
	var submitted []*auditJob
	var gained []*auditNode
	for i := range a.out.Events {
		e := &a.out.Events[i]
		var err error
		switch e.Kind {
		case gpuai.NodeRegistered, gpuai.NodeChanged:
			gained = append(gained, a.node(e.Node))
		case gpuai.JobSubmitted:
			if j := a.job(e.Job); j != nil {
				submitted = append(submitted, j)
			}
		case gpuai.LeaseGrantedEvent:
			err = a.grant(e)
		case gpuai.LeaseEndedEvent:
			gained = append(gained, a.end(e))
		case gpuai.JobEnded:
			delete(a.jobs, e.Job)
		}
		if err != nil {
			return err
		}
	}
	if a.m.NextDeadline() <= a.m.Time() {
		return nil // a backlog: the machine has not decided yet
	}
	return a.waits(submitted, gained)
}

// node opens the books of a node, or notes a change of it.
func (a *auditor) node(id gpuai.NodeID) *auditNode {
	n, _ := a.m.Node(id)
	x := a.byID[id]
	if x == nil {
		x = &auditNode{cpu: n.CPU, memory: n.Memory, free: map[gpuai.DeviceID]int64{}, model: map[gpuai.DeviceID]string{}}
		for _, d := range n.Devices {
			x.free[d.ID], x.model[d.ID] = int64(gpuai.WholeDevice), d.Model
		}
		a.byID[id] = x
		a.nodes = append(a.nodes, x)
	}
	x.ready = n.State == gpuai.NodeReady && !n.Drained && n.Refuses == nil
	return x
}

func (a *auditor) job(id gpuai.JobID) *auditJob {
	j, ok := a.m.Job(id, true)
	if !ok || j.Spec == nil || len(j.Spec.Groups) != 1 {
		return nil
	}
	g := &j.Spec.Groups[0]
	x := &auditJob{needs: g.Resources, waiting: int(max(g.Count, 1)), judged: !g.Gang && len(g.Resources.GPU.Any) == 0}
	for _, c := range g.Constraints {
		if c.Attribute != "gpu.model" || c.Op != gpuai.In || x.models != nil {
			x.judged = false
		}
		x.models = c.Values
	}
	a.jobs[id] = x
	return x
}

// grant enters a lease in the books.
func (a *auditor) grant(e *gpuai.Event) error {
	a.r.Grants++
	l, ok := a.m.Lease(e.Lease)
	n := a.byID[e.Node]
	if !ok || n == nil {
		return nil // ended within the entry, or of a node that is not known
	}
	if _, twice := a.held[l.ID]; twice {
		return fmt.Errorf("lease %s is granted twice", l.ID)
	}
	share := int64(l.Share)
	if share == 0 {
		share = int64(gpuai.WholeDevice)
	}
	for _, d := range l.Devices {
		if n.free[d] -= share; n.free[d] < 0 {
			return fmt.Errorf("device %s of node %s is given to lease %s beyond what is free of it", d, e.Node, l.ID)
		}
	}
	n.cpu -= l.CPU
	n.memory -= l.Memory
	if n.cpu < 0 || n.memory < 0 {
		return fmt.Errorf("node %s is given lease %s with %d milli-CPU and %d bytes too many", e.Node, l.ID, -n.cpu, -n.memory)
	}
	a.held[l.ID] = l
	if j := a.jobs[e.Job]; j != nil {
		j.waiting--
		return j.got(n, &l)
	}
	return nil
}

// got reports what a lease lacks of what its job asked for.
func (j *auditJob) got(n *auditNode, l *gpuai.Lease) error {
	if len(l.Devices) != int(j.needs.GPU.Count) || l.Share != j.needs.GPU.Share.Milli || l.CPU != j.needs.CPU || l.Memory != j.needs.Memory {
		return fmt.Errorf("lease %s has not what its job asked for: %d devices of %d", l.ID, len(l.Devices), j.needs.GPU.Count)
	}
	for _, d := range l.Devices {
		if j.models != nil && !slices.Contains(j.models, n.model[d]) {
			return fmt.Errorf("lease %s has a %s, its job asked for %v", l.ID, n.model[d], j.models)
		}
	}
	return nil
}

// end takes a lease out of the books.
func (a *auditor) end(e *gpuai.Event) *auditNode {
	n, l := a.byID[e.Node], a.held[e.Lease]
	delete(a.held, e.Lease)
	if n == nil {
		return nil
	}
	share := int64(l.Share)
	if share == 0 {
		share = int64(gpuai.WholeDevice)
	}
	for _, d := range l.Devices {
		n.free[d] += share
	}
	n.cpu += l.CPU
	n.memory += l.Memory
	return n
}

// waits judges whether a new job waits although a node fits, or any job
// although a node that gained room does.
func (a *auditor) waits(submitted []*auditJob, gained []*auditNode) error {
	for _, j := range submitted {
		if err := a.fitsNone(j, a.nodes); err != nil {
			return err
		}
	}
	for _, j := range a.jobs {
		if len(gained) == 0 {
			break
		}
		if err := a.fitsNone(j, gained); err != nil {
			return err
		}
	}
	return nil
}

func (a *auditor) fitsNone(j *auditJob, nodes []*auditNode) error {
	if j.waiting <= 0 || !j.judged {
		return nil
	}
	a.r.Waits++
	for _, n := range nodes {
		if n != nil && n.ready && n.fits(j) {
			return fmt.Errorf("a task with %d devices, share %d and %d milli-CPU waits, and a node has room for it", j.needs.GPU.Count, j.needs.GPU.Share.Milli, j.needs.CPU)
		}
	}
	return nil
}

// fits reports whether a task of a job fits on a node.
func (n *auditNode) fits(j *auditJob) bool {
	if n.cpu < j.needs.CPU || n.memory < j.needs.Memory {
		return false
	}
	need := int64(j.needs.GPU.Share.Milli)
	if need == 0 {
		need = int64(gpuai.WholeDevice)
	}
	count := 0
	for d, free := range n.free {
		if free >= need && (j.models == nil || slices.Contains(j.models, n.model[d])) {
			count++
		}
	}
	return count >= int(j.needs.GPU.Count) && (j.models == nil || j.needs.GPU.Count > 0)
}
