package main

import (
	"bytes"
	"context"
	"errors"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

const (
	// bundleEvents and bundleIndexes bound the newest events: how many, and of
	// how many log entries.
	bundleEvents  = 2_000
	bundleIndexes = 2_000
	// eventsTimeout bounds the wait for them, eventsQuiet that for a further
	// one: the stream has no end.
	eventsTimeout = 5 * time.Second
	eventsQuiet   = 500 * time.Millisecond
	// digestTries is how many indexes are tried to find one at which every
	// server has a digest.
	digestTries = 32
)

// region adds what the servers say. An error means that none answers.
func (b *bundler) region(ctx context.Context) error {
	p, err := b.a.raftPage(ctx, b.c)
	if err != nil {
		b.missing("region", err)
		return err
	}
	b.object("raft.json", p)
	for i := range p.Servers {
		if m := &p.Servers[i]; m.Raft == nil {
			b.missing("server "+string(m.Server), errors.New(m.Error))
			continue
		}
		b.server(ctx, p.Servers[i].Server)
	}
	b.digests(ctx, p)
	b.a.say("region: policy, queue, jobs, leases, nodes, events\n")
	for _, f := range regionFiles {
		query := url.Values{"consistency": {"stale"}}
		if f.list {
			query.Set("limit", "1000")
		}
		b.fetch(ctx, f.name, f.path, query)
	}
	b.events(ctx, p)
	return nil
}

// regionFiles are the region's own files. Lists of jobs carry no specs.
var regionFiles = [...]struct {
	name, path string
	list       bool
}{
	{name: "policy.json", path: "/v1/operator/policy"},
	{name: "demand.json", path: "/v1/operator/demand"},
	{name: "queue.json", path: "/v1/queue"},
	{name: "pending.json", path: "/v1/queue/pending", list: true},
	{name: "jobs.json", path: "/v1/jobs", list: true},
	{name: "leases.json", path: "/v1/leases", list: true},
	{name: "nodes.json", path: "/v1/nodes", list: true},
}

// server adds one server's files.
func (b *bundler) server(ctx context.Context, id gpuai.ServerID) {
	b.a.say("server %s: settings, metrics, logs, goroutines, memory, CPU\n", id)
	b.manifest.Servers = append(b.manifest.Servers, string(id))
	dir, of := "servers/"+string(id)+"/", url.Values{"server": {string(id)}}
	b.fetch(ctx, dir+"server.json", "/v1/operator/server", of)
	for _, d := range []struct{ what, file string }{
		{gpuai.DebugMetrics, "metrics.txt"}, {gpuai.DebugLogs, "logs.txt"},
		{gpuai.DebugGoroutines, "goroutines.txt"}, {gpuai.DebugHeap, "heap.txt"},
	} {
		b.fetch(ctx, dir+d.file, "/v1/operator/debug/"+d.what, of)
	}
	if b.flags.cpu > 0 {
		of.Set("seconds", strconv.FormatUint(uint64(b.flags.cpu), 10))
		b.fetch(ctx, dir+"cpu.pprof", "/v1/operator/debug/"+gpuai.DebugCPU, of)
	}
}

// fetch adds the answer to one call as a file.
func (b *bundler) fetch(ctx context.Context, name, path string, query url.Values) {
	ctx, cancel := context.WithTimeout(ctx, b.a.api.timeout+time.Duration(b.flags.cpu)*time.Second)
	defer cancel()
	var body bytes.Buffer
	more, err := b.c.Fetch(ctx, path, query, &body, maxBundleFile)
	if err != nil {
		b.missing(name, err)
		return
	}
	b.file(name, body.Bytes(), more)
}

// A digestPage compares the servers' digests at one index.
type digestPage struct {
	Index   uint64                    `json:"index"`
	Agree   bool                      `json:"agree"`
	Digests map[gpuai.ServerID]string `json:"digests"`
}

// digests compares the digests of all servers that answered, at the newest
// index that all remember.
func (b *bundler) digests(ctx context.Context, p *raftPage) {
	var ids []gpuai.ServerID
	least := uint64(0)
	for i := range p.Servers {
		if r := p.Servers[i].Raft; r != nil {
			ids = append(ids, r.Server)
			if least == 0 || r.AppliedIndex < least {
				least = r.AppliedIndex
			}
		}
	}
	var err error
	for i := range uint64(digestTries) {
		if least <= i {
			break
		}
		var page digestPage
		if page, err = b.digestsAt(ctx, ids, least-i); err == nil {
			b.object("digests.json", &page)
			return
		}
	}
	if err == nil {
		err = errors.New("nothing is applied yet")
	}
	b.missing("digests.json", err)
}

func (b *bundler) digestsAt(ctx context.Context, ids []gpuai.ServerID, index uint64) (digestPage, error) {
	page := digestPage{Index: index, Agree: true, Digests: map[gpuai.ServerID]string{}}
	for _, id := range ids {
		err := b.a.call(ctx, func(ctx context.Context) error {
			d, err := b.c.DigestOf(ctx, id, index)
			page.Digests[id] = d.Digest
			return err
		})
		if err != nil {
			return page, err
		}
		page.Agree = page.Agree && page.Digests[id] == page.Digests[ids[0]]
	}
	return page, nil
}

// events adds the newest events.
func (b *bundler) events(ctx context.Context, p *raftPage) {
	last := p.applied()
	from := uint64(1)
	if last > bundleIndexes {
		from = last - bundleIndexes
	}
	ctx, cancel := context.WithTimeout(ctx, eventsTimeout)
	defer cancel()
	quiet := time.AfterFunc(2*eventsQuiet, cancel)
	defer quiet.Stop()
	var kept []gpuai.Event
	err := b.c.Events(ctx, client.EventQuery{From: from}, func(events []gpuai.Event, index uint64) error {
		if kept = append(kept, events...); len(kept) > 2*bundleEvents {
			kept = slices.Delete(kept, 0, len(kept)-bundleEvents)
		}
		if index >= last {
			return errEnough
		}
		quiet.Reset(eventsQuiet)
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) && ctx.Err() == nil {
		b.missing("events.jsonl", err)
		return
	}
	var lines bytes.Buffer
	for i := range kept[max(0, len(kept)-bundleEvents):] {
		line, err := json.Marshal(&kept[max(0, len(kept)-bundleEvents)+i])
		if err != nil {
			b.missing("events.jsonl", err)
			return
		}
		lines.Write(append(line, '\n'))
	}
	b.file("events.jsonl", lines.Bytes(), len(kept) > bundleEvents || from > 1)
}
