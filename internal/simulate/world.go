package simulate

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// A world is a machine under simulation with its log.
type world struct {
	m     *fsm.Machine
	index uint64
	now   gpuai.Instant
	jobs  uint64
	out   fsm.Output
	cmd   []byte
	entry []byte
	spent time.Duration // in Apply
	env   fsm.Envelope
	opts  fsm.Options
	keep  bool // the log, for an audit
	log   [][]byte
}

const term = 1

func newWorld(p Policy) *world {
	o := fsm.Options{Region: "simulated", Simulated: true, FirstFit: p.strict}
	return &world{m: fsm.New(o), opts: o, env: fsm.Envelope{Tenant: gpuai.DefaultTenant}}
}

// apply applies one command as an entry of its own.
func (w *world) apply(c fsm.Command) (fsm.Result, error) {
	w.index++
	w.cmd = c.Append(w.cmd[:0], w.env)
	w.entry = fsm.AppendEntry(w.entry[:0], fsm.Header{Time: w.now, Term: term}, w.cmd)
	if w.keep {
		w.log = append(w.log, slices.Clone(w.entry))
	}
	start := time.Now()
	err := w.m.Apply(w.index, term, w.entry, &w.out)
	w.spent += time.Since(start)
	if err != nil {
		return fsm.Result{}, fmt.Errorf("simulated entry %d: %w", w.index, err)
	}
	if w.out.Panics > 0 {
		return fsm.Result{}, fmt.Errorf("simulated entry %d: the machine panicked: %s", w.index, w.out.Panic)
	}
	return w.out.Results[0], nil
}

// register adds the nodes in the given order.
func (w *world) register(nodes []TraceNode, order []int) error {
	for _, i := range order {
		n := &nodes[i]
		spec := gpuai.NodeSpec{
			ID: gpuai.NodeID(strings.ToLower(n.Name)), Address: "simulated", Simulated: true,
			CPU: gpuai.MilliCPU(n.CPU), Memory: gpuai.Bytes(n.Memory) << 20,
		}
		if n.Whole != nil {
			spec = *n.Whole
		}
		for g := range n.GPUs - len(spec.Devices) {
			spec.Devices = append(spec.Devices, gpuai.Device{
				ID: gpuai.DeviceID(fmt.Sprintf("gpu-%02d", g)), Vendor: "sim", Model: n.Model,
			})
		}
		res, err := w.apply(&fsm.RegisterNode{Spec: spec, BootID: "simulated", Nonce: "simulated"})
		if err != nil {
			return err
		}
		if res.Code != gpuai.OK {
			return fmt.Errorf("node %s: %s: %s", n.Name, res.Code, res.Detail)
		}
	}
	return nil
}

// submit offers a job and returns whether all of its tasks have a lease.
func (w *world) submit(j *TraceJob) (id gpuai.JobID, leased bool, err error) {
	id = w.nextID()
	w.jobs++
	res, err := w.apply(&fsm.SubmitJob{ID: id, Spec: spec(j), HoldAnyway: true})
	if err != nil {
		return id, false, err
	}
	if res.Code != gpuai.OK {
		return id, false, fmt.Errorf("%s: %s: %s", j.place(), res.Code, res.Detail)
	}
	return id, res.Leased == res.Tasks, nil
}

// nextID is the ID of the job that is submitted next.
func (w *world) nextID() (id gpuai.JobID) {
	binary.BigEndian.PutUint64(id[8:], w.jobs+1)
	return id
}

// drop takes a job that was not placed out again.
func (w *world) drop(id gpuai.JobID) error {
	if _, err := w.apply(&fsm.StopJob{Job: id}); err != nil {
		return err
	}
	_, err := w.apply(&fsm.RetireJobs{Jobs: []gpuai.JobID{id}})
	return err
}
