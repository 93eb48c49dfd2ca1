package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/blobs"
)

// A StoreAccess says how an agent uses the region's store.
type StoreAccess string

// The ways.
const (
	// StoreSigned is by leave of the region's servers, for each lease: the host has
	// no credentials of the store.
	StoreSigned StoreAccess = "signed"
	// StoreDirect is with credentials of the whole store, which the agent's
	// environment has: for hosts that may read and change all that is in it.
	StoreDirect StoreAccess = "direct"
)

// A StoreClient asks the region's servers for leave to use its store, see
// client.Client. A Dialer that is none has the node use a store directly or not at all.
type StoreClient interface {
	GrantObjects(ctx context.Context, a *gpuai.StoreAsk) (gpuai.StoreGrants, error)
	ListObjects(ctx context.Context, l gpuai.StoreLease, cursor string) (gpuai.StoreObjects, error)
	DeleteObjects(ctx context.Context, d *gpuai.StoreDelete) error
	PutObject(ctx context.Context, l gpuai.StoreLease, key string, data []byte) error
	GetObject(ctx context.Context, l gpuai.StoreLease, key string, limit int64) ([]byte, error)
}

// A vault is the region's store of checkpoints and output, as its servers say where it is.
// Where it is used directly it is opened when it is first used.
type vault struct {
	node    gpuai.NodeID
	direct  bool
	servers StoreClient // nil: direct only
	http    *http.Client
	opening chan struct{} // has one while the store is being opened

	mu          sync.Mutex // guards below
	url         string     // "": the region has none, or is not known yet
	incarnation gpuai.Incarnation
	store       *blobs.Store
	known       chan struct{} // closed when a server has said where the store is
}

var (
	// errNoStore is returned where there is nothing to open.
	errNoStore = errors.New("this region's servers name no store: start them with --store")
	errNoLeave = errors.New("this agent has no way to ask for leave to use the region's store")
	errNoGrant = errors.New("this region's servers give no leave to use its store, since they are older than this agent: " +
		"upgrade them, or start the agent with --store=direct where its host may have the store's credentials")
)

func newVault(c *Config) *vault {
	return &vault{
		node: c.Node, direct: c.Store == StoreDirect, http: blobs.NewGrantClient(),
		known: make(chan struct{}), opening: make(chan struct{}, 1),
	}
}

// at is where the store is; "" is nowhere.
func (v *vault) at() string {
	url, _ := v.now()
	return url
}

// set takes what a server says. A store that is open stays open: tasks may be at
// it.
func (v *vault) set(url string, i gpuai.Incarnation) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.incarnation = i; v.url != url {
		v.url, v.store = url, nil
	}
	select {
	case <-v.known:
	default:
		close(v.known)
	}
}

// An opened store is what one lease has of it.
type opened struct {
	*blobs.Trees
	url string // of the store
}

// open returns what a lease may use of the store; it waits for a server to say where
// that is.
func (v *vault) open(ctx context.Context, lease gpuai.Token) (opened, error) {
	select {
	case <-v.known:
	case <-ctx.Done():
		return opened{}, ctx.Err()
	}
	url := v.at()
	switch {
	case url == "":
		return opened{}, errNoStore
	case v.direct:
		return v.openDirect(ctx)
	case v.servers == nil:
		return opened{}, errNoLeave
	}
	return opened{&blobs.NewGranted(&granter{v, lease}, v.http).Trees, url}, nil
}

// openDirect opens the store itself.
func (v *vault) openDirect(ctx context.Context) (opened, error) {
	select { // one opens it; the others, and the loop, are not kept by a store that does not answer
	case v.opening <- struct{}{}:
		defer func() { <-v.opening }()
	case <-ctx.Done():
		return opened{}, ctx.Err()
	}
	url, s := v.now()
	if s != nil {
		return opened{&s.Trees, url}, nil
	}
	s, err := blobs.Open(ctx, url)
	if err != nil {
		return opened{}, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.url == url { // else the next opens the other
		v.store = s
	}
	return opened{&s.Trees, url}, nil
}

func (v *vault) now() (url string, s *blobs.Store) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.url, v.store
}

// of says for which lease the servers are asked, by the node's present incarnation.
func (v *vault) of(lease gpuai.Token) gpuai.StoreLease {
	v.mu.Lock()
	defer v.mu.Unlock()
	return gpuai.StoreLease{Node: v.node, Lease: lease, Incarnation: v.incarnation}
}

// objectTime bounds one object on its way to or from a server.
const objectTime = 10 * time.Minute

// A granter asks the region's servers for one lease.
type granter struct {
	v     *vault
	lease gpuai.Token
}

var _ blobs.Granter = (*granter)(nil)

// judged returns an error of the servers. Only what they have refused is a
// *gpuai.Error, and for good: all else may be otherwise at the next try.
func judged(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if end := ctx.Err(); end != nil {
		return end
	}
	var e *gpuai.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code {
	case gpuai.Conflict, gpuai.Forbidden, gpuai.InvalidSpec, gpuai.PreconditionFailed, gpuai.TooLarge:
		return e
	case gpuai.NotFound:
		return errNoGrant
	}
	return errors.New(e.Error())
}

// Grant implements blobs.Granter.
func (g *granter) Grant(ctx context.Context, ops []blobs.Op) ([]blobs.Grant, error) {
	ask := gpuai.StoreAsk{StoreLease: g.v.of(g.lease), Objects: make([]gpuai.StoreOp, len(ops))}
	for i, op := range ops {
		if ask.Objects[i] = (gpuai.StoreOp{Put: op.Put, Key: op.Key}); op.Put {
			ask.Objects[i].Bytes = op.Bytes
		}
	}
	got, err := g.v.servers.GrantObjects(ctx, &ask)
	if err != nil {
		return nil, judged(ctx, err)
	}
	out := make([]blobs.Grant, len(got.Grants))
	for i, x := range got.Grants {
		out[i] = blobs.Grant{Signed: blobs.Signed{URL: x.URL, Header: x.Header}, ExpiresIn: time.Duration(x.ExpiresIn) * time.Millisecond}
	}
	return out, nil
}

// PutObject implements blobs.Granter.
func (g *granter) PutObject(ctx context.Context, key string, data []byte) error {
	bounded, cancel := context.WithTimeout(ctx, objectTime)
	defer cancel()
	return judged(ctx, g.v.servers.PutObject(bounded, g.v.of(g.lease), key, data))
}

// GetObject implements blobs.Granter.
func (g *granter) GetObject(ctx context.Context, key string, limit int64) ([]byte, error) {
	bounded, cancel := context.WithTimeout(ctx, objectTime)
	defer cancel()
	data, err := g.v.servers.GetObject(bounded, g.v.of(g.lease), key, limit)
	var e *gpuai.Error
	switch {
	case err == nil:
		return data, nil
	case errors.As(err, &e) && e.Code == gpuai.NotFound:
		return nil, fmt.Errorf("%w: %s", blobs.ErrNotFound, key)
	case errors.As(err, &e) && e.Code == gpuai.TooLarge:
		return nil, fmt.Errorf("%w: %s", blobs.ErrCorrupt, e.Detail)
	}
	return nil, judged(ctx, err)
}

// ListPage implements blobs.Granter.
func (g *granter) ListPage(ctx context.Context, page string) ([]blobs.Entry, string, error) {
	got, err := g.v.servers.ListObjects(ctx, g.v.of(g.lease), page)
	if err != nil {
		return nil, "", judged(ctx, err)
	}
	out := make([]blobs.Entry, len(got.Objects))
	for i, o := range got.Objects {
		out[i] = blobs.Entry{Key: o.Key, Bytes: o.Bytes}
	}
	return out, got.Next, nil
}

// DeleteObjects implements blobs.Granter.
func (g *granter) DeleteObjects(ctx context.Context, keys []string) error {
	return judged(ctx, g.v.servers.DeleteObjects(ctx, &gpuai.StoreDelete{StoreLease: g.v.of(g.lease), Keys: keys}))
}
