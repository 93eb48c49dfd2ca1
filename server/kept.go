package server

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/blobs"
)

const (
	// keptReads bounds how many read kept output at a time: each holds a piece.
	keptReads = 16
	// keptTimeout bounds an answer of the store.
	keptTimeout = 10 * time.Second
)

// A blobStore is the region's store, opened when it is first used. It is safe for
// concurrent use.
type blobStore struct {
	url   string // "": the region has none
	turns chan struct{}
	signs chan struct{} // takes one for each who signs

	mu    sync.Mutex // guards below
	store *blobs.Store
}

func newBlobStore(url string) *blobStore {
	return &blobStore{url: url, turns: make(chan struct{}, keptReads), signs: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
}

func (b *blobStore) open(ctx context.Context) (*blobs.Store, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.store != nil {
		return b.store, nil
	}
	s, err := blobs.Open(ctx, b.url)
	if err == nil {
		b.store = s
	}
	return s, err
}

func (b *blobStore) close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.store == nil {
		return nil
	}
	return b.store.Close()
}

// keptLog answers from the store what the node could not: its agent is not
// connected (told), or said that it has no such output (c).
func (s *Server) keptLog(ctx context.Context, r *run, q *gpuai.LogRequest, c gpuai.LogChunk, told error) (gpuai.LogChunk, error) {
	if s.blobs.url == "" {
		return c, told
	}
	kept, err := s.blobs.readLog(ctx, r, q)
	switch {
	case err == nil:
		return kept, nil
	case errors.Is(err, blobs.ErrNotFound) && told == nil:
		return c, nil
	case errors.Is(err, blobs.ErrNotFound):
		return c, gpuai.NewError(gpuai.NotFound, "the agent of node "+string(r.node)+" is not connected, and the region's store has no output of this attempt: it comes there when the attempt has ended; retry when the node is back")
	}
	s.log.Warn("kept output cannot be read", "job", r.task.Job, "lease", r.lease, "error", err)
	return c, gpuai.NewError(gpuai.NotFound, fmt.Sprintf("the agent of node %s is not connected or has this output no more, and the region's store cannot be read: %v", r.node, err))
}

func (b *blobStore) readLog(ctx context.Context, r *run, q *gpuai.LogRequest) (c gpuai.LogChunk, err error) {
	ctx, cancel := context.WithTimeout(ctx, keptTimeout)
	defer cancel()
	select {
	case b.turns <- struct{}{}:
		defer func() { <-b.turns }()
	case <-ctx.Done():
		return c, ctx.Err()
	}
	store, err := b.open(ctx)
	if err != nil {
		return c, err
	}
	l, err := store.OpenLog(ctx, gpuai.LogPrefix(r.task, r.lease))
	if err != nil {
		return c, err
	}
	return l.Read(ctx, q)
}
