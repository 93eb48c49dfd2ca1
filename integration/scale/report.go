package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
)

// A report is what a run measured. Times are milliseconds, processor time is in
// percent of one processor.
type report struct {
	Nodes      int    `json:"nodes"`
	Real       int    `json:"real_sessions"`
	Injected   int    `json:"injected_at_the_folding_step"`
	Leases     int    `json:"nodes_with_a_lease"`
	Processors int    `json:"processors"`
	Multiplier int    `json:"raft_multiplier"`
	TLS        bool   `json:"tls"` // a region with authentication
	Load       string `json:"load_average_before"`
	LoadAfter  string `json:"load_average_after"`
	// ConnectSeconds is how long it took to register the real sessions.
	ConnectSeconds float64        `json:"connect_s"`
	Seconds        float64        `json:"duration_s"`
	Steady         *steadyReport  `json:"steady,omitempty"`
	Kill           *killReport    `json:"leader_kill,omitempty"`
	Death          *deathReport   `json:"agent_death,omitempty"`
	Replace        *replaceReport `json:"replaced,omitempty"`
	Flap           *flapReport    `json:"flapping_node,omitempty"`
	Device         *deviceReport  `json:"bad_device,omitempty"`
	Gone           *goneReport    `json:"gone,omitempty"`
	// Broken are the promises that did not hold.
	Broken []string `json:"broken_promises"`
}

type steadyReport struct {
	Seconds        float64   `json:"duration_s"`
	BeatsPerSecond float64   `json:"beats_per_second"`
	RealAcks       quantiles `json:"real_ack_latency_ms"`
	// InjectedAcks are from the message of a window to its answer.
	InjectedAcks     quantiles `json:"injected_ack_latency_ms"`
	LeaderCPU        use       `json:"leader_cpu_percent"`
	FollowerCPU      []use     `json:"follower_cpu_percent"`
	EntriesPerSecond float64   `json:"log_entries_per_second"`
	RSSPerNode       []int64   `json:"rss_bytes_per_node_by_server"`
	Unconfirmed      int64     `json:"injected_beats_not_confirmed"`
	SessionsLost     int64     `json:"sessions_lost"`
}

type killReport struct {
	NewLeaderMS float64 `json:"new_leader_ms"`
	// AllBackMS is from the kill until a beat of every node, sent after it, was
	// answered.
	AllBackMS        float64 `json:"all_beats_answered_ms"`
	Reconnected      int64   `json:"sessions_opened"`
	AcceptsPerSecond float64 `json:"sessions_opened_per_second_max"`
	NewLeaderCPU     use     `json:"new_leader_cpu_percent"`
	Unconfirmed      int64   `json:"injected_beats_not_confirmed"`
	MaxSuspect       int     `json:"suspect_nodes_max"`
	MaxSilent        int     `json:"silent_nodes_max"`
	LeasesEnded      int     `json:"leases_ended"`
}

type deathReport struct {
	ElsewhereMS float64 `json:"lease_at_another_agent_ms"`
	BoundMS     float64 `json:"bound_ms"` // TTL + grace + 1 s
}

type replaceReport struct {
	Tasks int `json:"tasks"`
	Nodes int `json:"silent_nodes"`
	// A task's wait is from the entry that ended its lease to the one with the
	// next; the span is from the first end to the last grant.
	P50MS    float64 `json:"end_to_next_lease_p50_ms"`
	P99MS    float64 `json:"end_to_next_lease_p99_ms"`
	MaxMS    float64 `json:"end_to_next_lease_max_ms"`
	SpanMS   float64 `json:"first_end_to_last_lease_ms"`
	SilentMS float64 `json:"silence_to_first_end_ms"`
}

type flapReport struct {
	Returns      int     `json:"returns_until_quarantine"`
	QuarantineMS float64 `json:"quarantine_ms"`
}

type deviceReport struct {
	NodeState   string `json:"node_state"`
	Quarantined int    `json:"quarantined_devices"`
}

type goneReport struct {
	Real     int     `json:"real"`
	Injected int     `json:"injected"`
	OpenMS   float64 `json:"breaker_open_ms"`
	// EndedInPause counts leases that ended before the breaker let any through.
	EndedInPause     int     `json:"leases_ended_in_pause"`
	EndedPerSecond   float64 `json:"leases_ended_per_second"`
	AllowedPerSecond float64 `json:"allowed_per_second"`
	AllBackMS        float64 `json:"all_beats_answered_ms"`
	ClosedMS         float64 `json:"breaker_closed_ms"` // from their return
	AcceptsPerSecond float64 `json:"sessions_opened_per_second_max"`
}

// write writes the report as JSON or as a table.
func (r *report) write(w io.Writer, format string) error {
	r.LoadAfter = loadAverage()
	if r.Broken == nil {
		r.Broken = []string{}
	}
	if format == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range r.rows() {
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	return t.Flush()
}

// rows are the table.
func (r *report) rows() (out [][]string) {
	row := func(what, format string, args ...any) {
		out = append(out, []string{what, fmt.Sprintf(format, args...)})
	}
	row("nodes", "%d: %d real sessions, %d injected at the folding step; %d hold a lease", r.Nodes, r.Real, r.Injected, r.Leases)
	row("machine", "%d processors, load average %s before, %s after; Raft multiplier %d", r.Processors, r.Load, r.LoadAfter, r.Multiplier)
	if r.TLS {
		row("region", "with authentication: TLS between all, agents with certificates, clients with tokens")
	} else {
		row("region", "without authentication: plaintext")
	}
	row("duration", "%v s, of which %v s to connect the real sessions", r.Seconds, r.ConnectSeconds)
	if s := r.Steady; s != nil {
		row("steady: beats", "%v/s in %v s; real acks p50 ≤ %v ms, p99 ≤ %v ms; injected p50 ≤ %v ms, p99 ≤ %v ms", s.BeatsPerSecond, s.Seconds,
			s.RealAcks.P50, s.RealAcks.P99, s.InjectedAcks.P50, s.InjectedAcks.P99)
		row("steady: cost", "leader %v %% CPU (max %v), followers %v; %v log entries/s; %v B RSS a node and server", s.LeaderCPU.Mean, s.LeaderCPU.Max,
			s.FollowerCPU, s.EntriesPerSecond, s.RSSPerNode)
	}
	if k := r.Kill; k != nil {
		row("leader kill -9", "new leader after %v ms, every node's beat answered after %v ms; %d leases ended, at most %d nodes suspect, %d silent",
			k.NewLeaderMS, k.AllBackMS, k.LeasesEnded, k.MaxSuspect, k.MaxSilent)
		row("  reconnecting", "%d sessions opened, at most %v/s; new leader %v %% CPU (max %v)", k.Reconnected, k.AcceptsPerSecond, k.NewLeaderCPU.Mean, k.NewLeaderCPU.Max)
	}
	if d := r.Death; d != nil {
		row("agent death", "its task's lease at another agent after %v ms (TTL + G + 1 s = %v)", d.ElsewhereMS, d.BoundMS)
	}
	if p := r.Replace; p != nil {
		row("tasks replaced", "%d of %d silent nodes: end to next lease p50 %v, p99 %v, max %v ms; first end to last lease %v ms", p.Tasks, p.Nodes,
			p.P50MS, p.P99MS, p.MaxMS, p.SpanMS)
	}
	if f := r.Flap; f != nil {
		row("flapping node", "quarantined at return %d, for %v ms", f.Returns, f.QuarantineMS)
	}
	if d := r.Device; d != nil {
		row("bad device", "%d quarantined, its node is %s", d.Quarantined, d.NodeState)
	}
	if g := r.Gone; g != nil {
		row("30 % gone", "%d real and %d injected: breaker open after %v ms, %d leases ended before its pause was over, then %v/s (%v allowed)", g.Real, g.Injected,
			g.OpenMS, g.EndedInPause, g.EndedPerSecond, g.AllowedPerSecond)
		row("  their return", "every beat answered after %v ms, breaker closed after %v ms, at most %v sessions opened/s", g.AllBackMS, g.ClosedMS, g.AcceptsPerSecond)
	}
	for _, s := range r.Broken {
		row("DOES NOT HOLD", "%s", s)
	}
	return out
}

// loadAverage is the machine's, of 1, 5 and 15 minutes.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	f := strings.Fields(string(b))
	if err != nil || len(f) < 3 {
		return "unknown"
	}
	return strings.Join(f[:3], " ")
}
