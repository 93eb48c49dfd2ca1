package fsm

import (
	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// A Recorded is one command of a recorded entry, for those who replay a log
// under another policy.
type Recorded struct {
	Kind CommandKind
	// Encoded is the command as it goes into an entry.
	Encoded []byte
	// Report is of a ReportLease, Policy of a SetPolicy; else nil.
	Report *ReportLease
	Policy *gpuai.Policy
	// Decides is false for commands that only the recorded region can be told:
	// its checkpoints, and the retirement of its ended jobs.
	Decides bool
}

// ReadEntry returns the header and the commands of an entry.
func ReadEntry(data []byte) (h Header, cmds []Recorded, err error) {
	e, err := wire.OpenEntry(data)
	if err != nil {
		return h, nil, err
	}
	h = Header{Time: gpuai.Instant(e.Header.Time), Wall: gpuai.WallTime(e.Header.Wall), Term: e.Header.Term}
	for c, ok := e.Next(); ok; c, ok = e.Next() {
		out, at := wire.BeginCommand(nil, c.Type, c.Version, string(c.Tenant), string(c.Actor), string(c.Key))
		r := Recorded{Kind: CommandKind(c.Type), Encoded: wire.EndCommand(append(out, c.Body...), at)}
		r.Decides = c.Type != typeCheckpoint && c.Type != typeRetireJobs
		rd := wire.NewReader(c.Body)
		switch c.Type {
		case typeReportLease:
			rep := &ReportLease{Node: gpuai.NodeID(rd.Str())}
			if rep.Report, err = wire.ReadReportFrom(rd); err == nil {
				r.Report = rep
			}
		case typeSetPolicy:
			if p, err := wire.ReadPolicyFrom(rd); err == nil {
				r.Policy = &p
			}
		}
		cmds = append(cmds, r)
	}
	return h, cmds, nil
}

// Seq returns the sequence number of the newest report of a kept lease.
func (m *Machine) Seq(t gpuai.Token) uint32 {
	slot, ok := m.leaseSlot(t)
	if !ok {
		return 0
	}
	return m.leases.Get(slot).seq
}
