package server

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/store"
)

// Raft implements httpd.Operator.
func (s *Server) Raft(context.Context) gpuai.RaftStatus {
	st := s.node.Status()
	st.Disk, st.Quarantined = s.disk(), s.quarantine.why()
	return st
}

// disk looks at the data directory; what cannot be read is 0, and logged.
func (s *Server) disk() (d gpuai.DiskUse) {
	free, size, err := store.DiskFree(s.dir.Path())
	if err != nil {
		s.log.Warn("the room on the disk is not known", "error", err)
	}
	use, err := s.dir.Usage()
	if err != nil {
		s.log.Warn("the use of the disk is not known", "error", err)
	}
	return gpuai.DiskUse{
		Free: gpuai.Bytes(free), Size: gpuai.Bytes(size),
		LogBytes: gpuai.Bytes(use.Log), SnapshotBytes: gpuai.Bytes(use.Snapshots), Snapshots: use.Count,
	}
}

// ForwardTo implements httpd.Operator.
func (s *Server) ForwardTo(_ context.Context, id gpuai.ServerID) (http.RoundTripper, error) {
	members := s.node.Status().Members
	if slices.ContainsFunc(members, func(m gpuai.RaftMember) bool { return m.Server == id }) {
		return &leaderTransport{s, id}, nil
	}
	names := make([]string, len(members))
	for i := range members {
		names[i] = string(members[i].Server)
	}
	return nil, notFound(fmt.Sprintf("no server of this region is called %q; there are %s", id, strings.Join(names, ", ")))
}

// Info implements httpd.Operator.
func (s *Server) Info() gpuai.ServerInfo {
	st := s.Status()
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	return gpuai.ServerInfo{
		Server: s.cfg.ID, Version: gpuai.Version, Go: runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH,
		CPUs: uint32(runtime.GOMAXPROCS(0)), StartedAt: gpuai.WallTime(s.start.UnixMilli()),
		Ready: st.Ready, NotReady: st.NotReady, Sessions: uint32(s.sessions.len()),
		Goroutines: uint32(runtime.NumGoroutine()), Heap: gpuai.Bytes(mem.HeapAlloc), Disk: s.disk(),
		Config: s.cfg.settings(),
	}
}

// settings lists the configuration for an operator. What is not named here is
// not shown: a secret that is added later stays one.
func (c *Config) settings() []gpuai.Setting {
	peers := make([]string, len(c.Peers))
	for i, p := range c.Peers {
		peers[i] = string(p.ID) + "=" + p.Addr
	}
	return []gpuai.Setting{
		{Name: "id", Value: string(c.ID)},
		{Name: "region", Value: string(c.Region)},
		{Name: "data", Value: c.DataDir},
		{Name: "http", Value: c.HTTP.Addr().String()},
		{Name: "raft", Value: c.Raft.Addr().String()},
		{Name: "advertise", Value: c.Advertise},
		{Name: "peers", Value: strings.Join(peers, ",")},
		{Name: "bootstrap", Value: strconv.FormatBool(c.Bootstrap)},
		{Name: "join", Value: strings.Join(c.Join, ",")},
		{Name: "nonvoter", Value: strconv.FormatBool(c.NonVoter)},
		{Name: "raft-multiplier", Value: strconv.Itoa(c.Multiplier)},
		{Name: "max-feature-level", Value: strconv.FormatUint(uint64(c.MaxFeatureLevel), 10)},
		{Name: "disk-low-mib", Value: strconv.FormatUint(c.DiskLow>>20, 10)},
		{Name: "disk-hard-mib", Value: strconv.FormatUint(c.DiskHard>>20, 10)},
		{Name: "retain", Value: c.Retain.String()},
		{Name: "archive-max", Value: strconv.FormatInt(c.ArchiveMax, 10)},
		{Name: "insecure-plaintext", Value: strconv.FormatBool(c.InsecurePlaintext)},
	}
}

// profiling is held while a CPU profile is taken: a process has one at a time,
// and a development region several servers.
var profiling = make(chan struct{}, 1)

// Debug implements httpd.Operator.
func (s *Server) Debug(ctx context.Context, what string, seconds uint32, w io.Writer) error {
	switch what {
	case gpuai.DebugLogs:
		if s.cfg.Recent == nil {
			return notFound("this server keeps no log lines")
		}
		_, err := s.cfg.Recent.WriteTo(w)
		return err
	case gpuai.DebugGoroutines:
		return writeProfile(w, "goroutine")
	case gpuai.DebugHeap:
		return writeProfile(w, "heap")
	case gpuai.DebugCPU:
		return profileCPU(ctx, time.Duration(seconds)*time.Second, w)
	}
	return notFound("there is no debug text " + strconv.Quote(what))
}

// writeProfile writes a profile as text, made whole first: who reads slowly
// holds nothing.
func writeProfile(w io.Writer, name string) error {
	var b bytes.Buffer
	if err := pprof.Lookup(name).WriteTo(&b, 1); err != nil {
		return fmt.Errorf("write the profile %s: %w", name, err)
	}
	_, err := b.WriteTo(w)
	return err
}

// profileCPU profiles this process for a while, when nobody else does.
func profileCPU(ctx context.Context, d time.Duration, w io.Writer) error {
	select {
	case profiling <- struct{}{}:
		defer func() { <-profiling }()
	case <-ctx.Done():
		return ctx.Err()
	}
	var b bytes.Buffer
	if err := pprof.StartCPUProfile(&b); err != nil {
		return gpuai.NewError(gpuai.Conflict, "this process is being profiled by somebody else: try again ("+err.Error()+")")
	}
	over := time.NewTimer(d)
	select {
	case <-over.C:
	case <-ctx.Done():
		over.Stop()
	}
	pprof.StopCPUProfile()
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err := b.WriteTo(w)
	return err
}
