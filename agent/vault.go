package agent

import (
	"context"
	"sync"

	"github.com/gpuai/gpuai/internal/blobs"
)

// A vault is the region's store of checkpoints, as its servers say where it is.
// It is opened when it is first used.
type vault struct {
	mu    sync.Mutex // guards below
	url   string     // "": the region has none, or is not known yet
	store *blobs.Store
	known chan struct{} // closed when a server has said where the store is
}

func newVault() *vault { return &vault{known: make(chan struct{})} }

// at is where the store is; "" is nowhere.
func (v *vault) at() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.url
}

// set takes what a server says. A store that is open stays open: tasks may be at
// it.
func (v *vault) set(url string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.url != url {
		v.url, v.store = url, nil
	}
	select {
	case <-v.known:
	default:
		close(v.known)
	}
}

// open returns the store; it waits for a server to say where it is.
func (v *vault) open(ctx context.Context) (*blobs.Store, error) {
	select {
	case <-v.known:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.store != nil {
		return v.store, nil
	}
	s, err := blobs.Open(ctx, v.url)
	if err == nil {
		v.store = s
	}
	return s, err
}
