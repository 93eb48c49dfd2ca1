package server

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

const (
	// pathLevel is where servers tell each other their feature levels: asked
	// with the newest that the asker takes part in, answered with the
	// answerer's, the level of its state, and its ID: a version that does not
	// know the path takes it for a client's request, and forwards it to the
	// leader, who would answer itself.
	pathLevel = "/peer/v1/level"
	// levelEvery is how often the leader asks while it could raise the level,
	// and a server that starts asks whether it is new enough.
	levelEvery = time.Second
)

// maxLevel is the newest feature level that this server takes part in.
func (s *Server) maxLevel() uint32 {
	if s.cfg.MaxFeatureLevel == 0 {
		return fsm.MaxLevel
	}
	return s.cfg.MaxFeatureLevel
}

func (s *Server) level() (level uint32) {
	s.node.View(func(m *fsm.Machine) { level = m.Level() })
	return level
}

// levelPeer answers another server.
func (s *Server) levelPeer(_ context.Context, body []byte) ([]byte, error) {
	w := wireReader{b: body}
	if w.number(); w.err != nil {
		return nil, w.err
	}
	b := binary.AppendUvarint(binary.AppendUvarint(nil, uint64(s.maxLevel())), uint64(s.level()))
	return appendBytes(b, string(s.cfg.ID)), nil
}

// askLevel asks another server. A version that does not know the question does
// not answer it.
func (s *Server) askLevel(ctx context.Context, id gpuai.ServerID) (newest, level uint32, err error) {
	ctx, cancel := context.WithTimeout(ctx, levelEvery)
	defer cancel()
	answer, err := s.askPeer(ctx, id, pathLevel, binary.AppendUvarint(nil, uint64(s.maxLevel())))
	if err != nil {
		return 0, 0, err
	}
	w := wireReader{b: answer}
	newest, level = uint32(w.number()), uint32(w.number())
	if by := gpuai.ServerID(w.bytes()); w.err == nil && by != id {
		return 0, 0, fmt.Errorf("server %s was asked for its feature level, and %s answered", id, by)
	}
	return newest, level, w.err
}

// joinLevel refuses, once the leader can be asked, to be part of a region that
// is beyond this server. Its log would stop it too, but only when it has come
// that far.
func (s *Server) joinLevel(ctx context.Context) {
	every := time.NewTicker(levelEvery)
	defer every.Stop()
	for {
		id, ok := s.node.Leader()
		if ok && id == s.cfg.ID {
			return
		}
		if ok {
			_, level, err := s.askLevel(ctx, id)
			if err == nil && level > s.maxLevel() {
				s.fail(fmt.Errorf("%w (server %s leads it at feature level %d, this server goes to %d)", fsm.ErrLevel, id, level, s.maxLevel()))
			}
			if err == nil {
				return
			}
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			return
		}
	}
}

// levels raises the region's feature level to the newest that every voter takes
// part in. A voter that does not answer holds it back: it may come back as old
// as it went.
func (r *reign) levels(ctx context.Context) {
	every := time.NewTicker(levelEvery)
	defer every.Stop()
	said := ""
	for r.s.level() < r.s.maxLevel() {
		common, behind := r.commonLevel(ctx)
		if common > r.s.level() {
			r.raise(ctx, common)
		} else if behind != said && ctx.Err() == nil {
			r.s.log.Info("the feature level waits for servers that are older, or do not answer",
				"level", r.s.level(), "newest", r.s.maxLevel(), "servers", behind)
			said = behind
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			return
		}
	}
}

func (r *reign) raise(ctx context.Context, level uint32) {
	a, err := r.s.node.Propose(ctx, (&fsm.SetFeatureLevel{Level: level}).Append(nil, fsm.Envelope{}))
	if err != nil || a.Result.Code != gpuai.OK {
		r.s.log.Warn("the feature level was not raised; it is tried again", "level", level, "error", err, "result", a.Result.Code)
		return
	}
	r.s.log.Info("the region's feature level is raised: servers that do not know it can no longer take part", "level", level, "index", a.Index)
}

// commonLevel returns the newest level that all voters take part in, and the
// voters that hold it below this server's; 0 while one does not answer.
func (r *reign) commonLevel(ctx context.Context) (common uint32, behind string) {
	newest := map[gpuai.ServerID]uint32{}
	var mu sync.Mutex // guards newest
	var wg sync.WaitGroup
	for _, m := range r.s.node.Status().Members {
		if !m.Voter {
			continue
		}
		wg.Go(func() {
			level := r.s.maxLevel()
			if m.Server != r.s.cfg.ID {
				level, _, _ = r.s.askLevel(ctx, m.Server) // 0: no answer
			}
			mu.Lock()
			defer mu.Unlock()
			newest[m.Server] = level
		})
	}
	wg.Wait()
	common = r.s.maxLevel()
	var slow []string
	for id, level := range newest {
		if common = min(common, level); level < r.s.maxLevel() {
			slow = append(slow, string(id))
		}
	}
	slices.Sort(slow)
	return common, strings.Join(slow, ", ")
}
