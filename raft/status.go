package raft

import (
	"errors"
	"io"
	"strconv"
	"strings"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// Status returns this server's view of the group.
func (n *Node) Status() gpuai.RaftStatus {
	leader, _ := n.Leader()
	s := gpuai.RaftStatus{
		Server:       n.cfg.ID,
		Cluster:      n.cluster(),
		Region:       n.cfg.Region,
		State:        strings.ToLower(n.raft.State().String()),
		Term:         n.raft.CurrentTerm(),
		Leader:       leader,
		CommitIndex:  n.raft.CommitIndex(),
		AppliedIndex: n.AppliedIndex(),
		LastIndex:    n.raft.LastIndex(),
		LastContact:  n.lastContact(),
		RegionTime:   n.RegionTime(),
		Members:      n.statusMembers(leader),
	}
	s.FirstIndex, _ = n.log.FirstIndex()
	s.SnapshotAt, _ = strconv.ParseUint(n.raft.Stats()["last_snapshot_index"], 10, 64)
	s.MaxFeatureLevel = n.cfg.MaxFeatureLevel
	n.View(func(m *fsm.Machine) {
		s.FeatureLevel, s.Epoch, s.RestoreID, s.QuietUntil = m.Level(), m.Epoch(), m.RestoreID(), m.QuietUntil()
	})
	return s
}

// lastContact is 0 on the leader, and before a follower heard of one.
func (n *Node) lastContact() gpuai.Duration {
	at := n.raft.LastContact()
	if n.raft.State() == hraft.Leader || at.IsZero() {
		return 0
	}
	return gpuai.Duration(time.Since(at) / time.Millisecond)
}

func (n *Node) statusMembers(leader gpuai.ServerID) []gpuai.RaftMember {
	f := n.raft.GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	var out []gpuai.RaftMember
	for _, m := range n.membersIn(f.Configuration()) {
		out = append(out, gpuai.RaftMember{Server: m.ID, Address: m.Addr, Voter: m.Voter, Leader: m.ID == leader})
	}
	return out
}

// ErrNoSnapshot is returned by OpenSnapshot before there is one.
var ErrNoSnapshot = errors.New("this server has no snapshot yet; make one first")

// OpenSnapshot opens the newest snapshot on this server's disk, checked
// against its checksum. The caller closes it.
func (n *Node) OpenSnapshot() (io.ReadCloser, error) {
	list, err := n.snaps.List()
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, ErrNoSnapshot
	}
	_, r, err := n.snaps.Open(list[0].ID)
	return r, err
}
