package agent

import (
	"context"
	"errors"
	"sync"

	"github.com/gpuai/gpuai/internal/blobs"
)

// A vault is the region's store of checkpoints and output, as its servers say where it is.
// It is opened when it is first used.
type vault struct {
	opening chan struct{} // has one while the store is being opened

	mu    sync.Mutex // guards below
	url   string     // "": the region has none, or is not known yet
	store *blobs.Store
	known chan struct{} // closed when a server has said where the store is
}

// errNoStore is returned where there is nothing to open.
var errNoStore = errors.New("this region's servers name no store: start them with --store")

func newVault() *vault { return &vault{known: make(chan struct{}), opening: make(chan struct{}, 1)} }

// at is where the store is; "" is nowhere.
func (v *vault) at() string {
	url, _ := v.now()
	return url
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
	select { // one opens it; the others, and the loop, are not kept by a store that does not answer
	case v.opening <- struct{}{}:
		defer func() { <-v.opening }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	url, s := v.now()
	if s != nil {
		return s, nil
	}
	if url == "" {
		return nil, errNoStore
	}
	s, err := blobs.Open(ctx, url)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.url == url { // else the next opens the other
		v.store = s
	}
	return s, nil
}

func (v *vault) now() (url string, s *blobs.Store) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.url, v.store
}
