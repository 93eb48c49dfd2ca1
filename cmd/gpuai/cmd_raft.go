package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// memberTimeout bounds the wait for one server, so that those that are down do
// not hold the page up.
const memberTimeout = 3 * time.Second

// A raftPage is what all servers of a region say of their Raft group.
type raftPage struct {
	gpuai.RaftStatus // of the server that answered first
	// Servers are all members, by ID.
	Servers []memberPage `json:"servers"`
	// Voters and Answering count voters, and those of them that answered.
	Voters    uint32 `json:"voters"`
	Answering uint32 `json:"voters_answering"`
	// MayFail is how many more voters may fail before nothing is done.
	MayFail int32 `json:"may_fail"`
}

// A memberPage is one server's own view, or why there is none.
type memberPage struct {
	Server  gpuai.ServerID    `json:"server"`
	Address string            `json:"address"`
	Voter   bool              `json:"voter"`
	Raft    *gpuai.RaftStatus `json:"raft,omitzero"`
	Error   string            `json:"error,omitzero"`
}

func newRaftCmd(a *app) *cobra.Command {
	return a.talks(&cobra.Command{
		Use: "raft", Short: "Show the servers of a region and how they agree", Args: cobra.NoArgs,
		Long: `Show the servers of a region: who leads and votes, how far each has come, when
it last heard of the leader, and what its disk holds. One server is asked, which
asks the others; those that do not answer are named.

BEHIND counts log entries that a server has not applied and another has. CONTACT
is how long ago a follower heard of its leader.`,
		Example: `  gpuai operator raft
  gpuai operator raft -o wide
  gpuai operator raft --addr http://10.0.0.2:7470 --jq .leader
  gpuai operator raft -o json --jq '.servers[] | select(.error) | .server'`,
		RunE: does(func(ctx context.Context, _ []string) error {
			c, err := a.connectOnce()
			if err != nil {
				return err
			}
			p, err := a.raftPage(ctx, c)
			if err != nil {
				return err
			}
			return a.showObject(ctx, p, p.view(a.api.output == formatWide))
		}),
	})
}

// raftPage asks one server, and through it all others at once.
func (a *app) raftPage(ctx context.Context, c *client.Client) (*raftPage, error) {
	p := &raftPage{}
	err := a.call(ctx, func(ctx context.Context) (err error) {
		p.RaftStatus, err = c.Raft(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	p.Servers = make([]memberPage, len(p.Members))
	var wg sync.WaitGroup
	for i, m := range p.Members {
		p.Servers[i] = memberPage{Server: m.Server, Address: m.Address, Voter: m.Voter}
		wg.Go(func() { p.Servers[i].ask(ctx, c, &p.RaftStatus) })
	}
	wg.Wait()
	slices.SortFunc(p.Servers, func(x, y memberPage) int { return cmp.Compare(x.Server, y.Server) })
	p.count()
	return p, nil
}

func (m *memberPage) ask(ctx context.Context, c *client.Client, known *gpuai.RaftStatus) {
	if m.Server == known.Server {
		m.Raft = known
		return
	}
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	st, err := c.RaftOf(ctx, m.Server)
	if err != nil {
		m.Error = err.Error()
		return
	}
	m.Raft = &st
}

func (p *raftPage) count() {
	for i := range p.Servers {
		if !p.Servers[i].Voter {
			continue
		}
		p.Voters++
		if p.Servers[i].Raft != nil {
			p.Answering++
		}
	}
	p.MayFail = int32(p.Answering) - int32(p.Voters/2+1)
}

// applied is the furthest that any server has come.
func (p *raftPage) applied() (most uint64) {
	for i := range p.Servers {
		if r := p.Servers[i].Raft; r != nil {
			most = max(most, r.AppliedIndex)
		}
	}
	return most
}

func (p *raftPage) view(wide bool) *view {
	v := &view{head: []string{"SERVER", "STATE", "VOTER", "TERM", "COMMIT", "APPLIED", "BEHIND", "CONTACT", "SNAPSHOT", "DISK FREE"}}
	v.wide = []string{"NEWEST LEVEL", "LOG", "LOG SIZE", "SNAPSHOTS", "ADDRESS"}
	most := p.applied()
	for i := range p.Servers {
		m := &p.Servers[i]
		v.row(string(m.Server), m.row(most)...)
	}
	v.text = func(w io.Writer) error {
		if err := p.head(w); err != nil {
			return err
		}
		if err := v.write(w, wide); err != nil {
			return err
		}
		return p.tail(w)
	}
	return v
}

func (m *memberPage) row(most uint64) []string {
	voter := "no"
	if m.Voter {
		voter = "yes"
	}
	r := m.Raft
	if r == nil {
		return []string{string(m.Server), "no answer", voter, "", "", "", "", "", "", "", "", "", "", "", m.Address}
	}
	contact := ""
	if r.State != "leader" {
		contact = short(r.LastContact)
	}
	free := ""
	if r.Disk.Size > 0 {
		free = fmt.Sprintf("%s (%d%%)", bytesText(r.Disk.Free), r.Disk.Free*100/r.Disk.Size)
	}
	state := r.State
	if r.Quarantined != "" {
		state = "quarantined"
	}
	return []string{
		string(m.Server), state, voter, num(r.Term), num(r.CommitIndex), num(r.AppliedIndex), num(most - r.AppliedIndex), contact,
		num(r.SnapshotAt), free, num(r.MaxFeatureLevel), num(r.FirstIndex) + ".." + num(r.LastIndex), bytesText(r.Disk.LogBytes),
		fmt.Sprintf("%d (%s)", r.Disk.Snapshots, bytesText(r.Disk.SnapshotBytes)), m.Address,
	}
}

func (p *raftPage) head(w io.Writer) error {
	leader := string(p.Leader)
	if leader == "" {
		leader = "nobody"
	}
	rows := [][]string{
		{"region", string(p.Region)}, {"cluster", string(p.Cluster)}, {"leader", leader}, {"epoch", num(p.Epoch)},
		{"feature level", num(p.FeatureLevel)}, {"region time", gpuai.Duration(p.RegionTime).String()},
	}
	if p.RestoreID != "" {
		rows = append(rows, []string{"restore ID", p.RestoreID})
	}
	if p.QuietUntil > p.RegionTime { // behind a restore
		rows = append(rows, []string{"grants begin in", gpuai.Duration(p.QuietUntil - p.RegionTime).String()})
	}
	err := columns(w, rows)
	if err == nil {
		_, err = io.WriteString(w, "\n")
	}
	return err
}

// tail says what the table means for the region.
func (p *raftPage) tail(w io.Writer) error {
	said := fmt.Sprintf("\n%d of %s answer; ", p.Answering, plural(uint64(p.Voters), "voter"))
	switch {
	case p.MayFail < 0:
		said += "without a majority nothing is done"
	case p.MayFail == 0:
		said += "none may fail"
	default:
		said += num(p.MayFail) + " may fail"
	}
	if p.Leader == "" {
		said += "; no server leads at the moment"
	}
	if _, err := fmt.Fprintln(w, said); err != nil {
		return err
	}
	for i := range p.Servers {
		m := &p.Servers[i]
		why := m.Error
		if m.Raft != nil && m.Raft.Quarantined != "" {
			why = "quarantined: " + m.Raft.Quarantined
		}
		if why == "" {
			continue
		}
		if _, err := fmt.Fprintf(w, "%s: %s\n", m.Server, printable(why)); err != nil {
			return err
		}
	}
	return nil
}
