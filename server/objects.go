package server

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
	"github.com/gpuai/gpuai/internal/blobs"
)

// Agents have no credentials of the region's store. What one may do there follows
// from the leases of its node, by the replicated state: it stores below the prefixes
// of the lease alone, reads what the lease's task goes on from, and, when the lease
// is over, completes its output. Nothing of it is a command: a grant leaves no trace
// in the log, and ends by itself.

const (
	// objectTimeout bounds what a server itself does in the store for one request.
	objectTimeout = 30 * time.Second
	// deletesAtOnce is how many blobs a request deletes at a time.
	deletesAtOnce = 8
	// maxPageToken bounds what a store has a listing go on by.
	maxPageToken = 4 << 10
	// maxKeyText bounds what is told of a key that was refused.
	maxKeyText = 200
)

var _ httpd.Objects = (*Server)(nil)

// A storeHolder is what is judged by: a lease of the node that asks.
type storeHolder struct {
	lease gpuai.Token
	task  gpuai.TaskRef
	live  bool
	// resume is what the task goes on from, kept what it has published itself.
	resume []gpuai.PublishedCheckpoint
	kept   []gpuai.PublishedCheckpoint
}

var (
	errNoRegionStore = &gpuai.Error{
		Code: gpuai.NoLeader, RetryAfter: gpuai.Second, // others may have been started otherwise
		Detail: "this server was started without --store: ask another server",
	}
	errLogKept = gpuai.NewError(gpuai.PreconditionFailed, "the output of this attempt is in the store already, and is written once")
)

// errNotHeld is the one answer to who asks for a lease that is not the node's: it
// tells nothing of whose it is.
func errNotHeld(l *gpuai.StoreLease) error {
	return gpuai.NewError(gpuai.Forbidden, "node "+strconv.Quote(string(l.Node))+" does not hold the lease "+l.Lease.String())
}

func errNotItsKey(l gpuai.Token, key string) error {
	if len(key) > maxKeyText {
		key = key[:maxKeyText] + "…"
	}
	return gpuai.NewError(gpuai.Forbidden, "the lease "+l.String()+" has no such use of "+strconv.Quote(key))
}

// holderOf returns the lease that a node asks for, as of a state that is as new as
// the leader's when it asked.
func (s *Server) holderOf(ctx context.Context, l *gpuai.StoreLease) (h storeHolder, err error) {
	if s.blobs.url == "" {
		return h, errNoRegionStore
	}
	if err := s.upToDate(ctx); err != nil {
		return h, err
	}
	var a gpuai.Assignment
	void := false
	s.node.View(func(m *fsm.Machine) {
		a, h.live = m.Assignment(l.Lease)
		h.kept = m.CheckpointsOf(l.Lease)
		void = l.Lease.Epoch() < m.Epoch()
	})
	if h.live {
		if a.Lease.Node != l.Node {
			return h, errNotHeld(l)
		}
		if a.Lease.Incarnation != l.Incarnation || void {
			return h, gpuai.NewError(gpuai.Conflict, "the lease "+l.Lease.String()+" is another incarnation's, or void since the region was restored")
		}
		h.lease, h.task, h.resume = l.Lease, a.Lease.TaskRef, a.Resume
		return h, nil
	}
	r, err := s.runOfLease(l.Lease, "")
	switch {
	case isCode(err, gpuai.NotFound) || err == nil && r.node != l.Node:
		return h, errNotHeld(l)
	case err != nil:
		return h, err
	}
	return storeHolder{lease: r.lease, task: r.task}, nil
}

// upToDate returns once this server's state is as new as the leader's was when it
// was called.
func (s *Server) upToDate(ctx context.Context) error {
	if s.node.IsLeader() {
		return s.ReadIndex(ctx)
	}
	_, err := s.keeper.settle(ctx)
	if err != nil {
		return &gpuai.Error{
			Code: gpuai.NoLeader, RetryAfter: gpuai.Second,
			Detail: "this server cannot ask the leader whether the lease still stands: retry, or ask another server",
		}
	}
	return nil
}

// A leave is how a blob may be used.
type leave struct {
	most int64 // bytes
	once bool  // what is there is not replaced
	log  bool  // it is of the attempt's output
}

// judge says whether the lease may use a blob so.
func (h *storeHolder) judge(op *gpuai.StoreOp) (leave, error) {
	if !op.Put {
		return h.judgeGet(op.Key)
	}
	v, err := h.judgePut(op.Key)
	if err == nil && (op.Bytes <= 0 || op.Bytes > v.most) {
		err = gpuai.NewError(gpuai.TooLarge, "a blob "+strconv.Quote(op.Key)+" has 1 to "+strconv.FormatInt(v.most, 10)+" bytes, not "+strconv.FormatInt(op.Bytes, 10))
	}
	return v, err
}

func (h *storeHolder) judgePut(key string) (v leave, err error) {
	if name, ok := strings.CutPrefix(key, gpuai.LogPrefix(h.task, h.lease)); ok {
		v.log = true
		if v.most, v.once, ok = blobs.OfLog(name); ok {
			return v, nil
		}
	}
	name, own := strings.CutPrefix(key, gpuai.CheckpointLeasePrefix(h.task, h.lease))
	most, ok := blobs.OfTree(name)
	switch {
	case !own || !ok:
		return v, errNotItsKey(h.lease, key)
	case !h.live:
		return v, h.over()
	}
	return leave{most: most, once: true}, nil
}

// judgeGet lets a lease read what it has stored itself, and what its task goes on
// from: never another task's, but where it is told to go on from it.
func (h *storeHolder) judgeGet(key string) (v leave, err error) {
	if !h.live {
		return v, h.over()
	}
	readable := []string{gpuai.CheckpointLeasePrefix(h.task, h.lease)}
	for i := range h.resume {
		readable = append(readable, gpuai.CheckpointLeasePrefix(h.resume[i].TaskRef, h.resume[i].Lease))
	}
	for _, prefix := range readable {
		if name, ok := strings.CutPrefix(key, prefix); ok {
			if v.most, ok = blobs.OfTree(name); ok {
				return v, nil
			}
		}
	}
	return v, errNotItsKey(h.lease, key)
}

// judgeDelete lets a live lease delete what it has stored itself, but for what is
// published and kept.
func (h *storeHolder) judgeDelete(key string) error {
	name, own := strings.CutPrefix(key, gpuai.CheckpointLeasePrefix(h.task, h.lease))
	if _, ok := blobs.OfTree(name); !own || !ok {
		return errNotItsKey(h.lease, key)
	}
	if !h.live {
		return h.over()
	}
	for i := range h.kept {
		if h.kept[i].Key == key {
			return gpuai.NewError(gpuai.Conflict, "the checkpoint "+strconv.FormatUint(h.kept[i].Seq, 10)+" is published and kept")
		}
	}
	return nil
}

func (h *storeHolder) over() error {
	return gpuai.NewError(gpuai.Conflict, "the lease "+h.lease.String()+" has ended: its task runs elsewhere, or will")
}

// GrantObjects implements httpd.Objects.
func (s *Server) GrantObjects(ctx context.Context, a *gpuai.StoreAsk) (out gpuai.StoreGrants, err error) {
	h, err := s.holderOf(ctx, &a.StoreLease)
	if err != nil {
		return out, err
	}
	leaves, logs := make([]leave, len(a.Objects)), false
	for i := range a.Objects {
		if leaves[i], err = h.judge(&a.Objects[i]); err != nil {
			return out, err
		}
		logs = logs || leaves[i].log
	}
	store, err := s.openStore(ctx)
	if err != nil {
		return out, err
	}
	if logs {
		if err := s.logOpen(ctx, store, &h); err != nil {
			return out, err
		}
	}
	out.Grants, err = s.sign(ctx, store, a.Objects, leaves)
	return out, err
}

// sign signs what was judged. It takes no more than half of the processors, whoever
// asks: beats and leases need them first.
func (s *Server) sign(ctx context.Context, store *blobs.Store, ops []gpuai.StoreOp, leaves []leave) ([]gpuai.StoreGrant, error) {
	select {
	case s.blobs.signs <- struct{}{}:
		defer func() { <-s.blobs.signs }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	out := make([]gpuai.StoreGrant, len(ops))
	for i := range ops {
		op, g := &ops[i], &out[i]
		g.ExpiresIn = gpuai.Duration(blobs.SignedFor / time.Millisecond)
		signed, err := store.Sign(ctx, blobs.Op{Put: op.Put, Key: op.Key, Bytes: op.Bytes}, leaves[i].once)
		if err != nil && !errors.Is(err, blobs.ErrUnsigned) {
			return nil, s.storeFailed(err)
		}
		g.URL, g.Header = signed.URL, signed.Header
	}
	return out, nil
}

// logOpen refuses output of an attempt that is complete.
func (s *Server) logOpen(ctx context.Context, store *blobs.Store, h *storeHolder) error {
	ctx, cancel := context.WithTimeout(ctx, keptTimeout)
	defer cancel()
	there, err := store.Exists(ctx, gpuai.LogPrefix(h.task, h.lease)+blobs.LogIndex)
	if err != nil {
		return s.storeFailed(err)
	}
	if there {
		return errLogKept
	}
	return nil
}

func (s *Server) openStore(ctx context.Context) (*blobs.Store, error) {
	store, err := s.blobs.open(ctx)
	if err != nil {
		return nil, s.storeFailed(err)
	}
	return store, nil
}

// storeFailed tells an agent that the store is the matter, and that another try, or
// another server, may do. What it has said is the operators'.
func (s *Server) storeFailed(err error) error {
	s.log.Warn("the store cannot be used for an agent", "error", err)
	return &gpuai.Error{
		Code: gpuai.NoLeader, RetryAfter: gpuai.Second,
		Detail: "server " + string(s.cfg.ID) + " cannot use the region's store, its log says why: retry, or ask another server",
	}
}

// ListObjects implements httpd.Objects.
func (s *Server) ListObjects(ctx context.Context, l *gpuai.StoreLease, cursor string) (out gpuai.StoreObjects, err error) {
	page, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil || len(page) > maxPageToken {
		return out, badCursor()
	}
	h, err := s.holderOf(ctx, l)
	if err != nil {
		return out, err
	}
	if !h.live {
		return out, h.over()
	}
	store, err := s.openStore(ctx)
	if err != nil {
		return out, err
	}
	ctx, cancel := context.WithTimeout(ctx, objectTimeout)
	defer cancel()
	if len(page) == 0 {
		page = nil
	}
	prefix := gpuai.CheckpointLeasePrefix(h.task, h.lease)
	entries, next, err := store.ListPage(ctx, prefix, page, gpuai.MaxStorePage)
	if err != nil {
		return out, s.storeFailed(err)
	}
	out.Objects = make([]gpuai.StoreObject, 0, len(entries))
	for _, e := range entries {
		if _, ok := blobs.OfTree(strings.TrimPrefix(e.Key, prefix)); ok { // else it is half stored, and goes with the lease's others
			out.Objects = append(out.Objects, gpuai.StoreObject{Key: e.Key, Bytes: e.Bytes})
		}
	}
	out.Next = base64.RawURLEncoding.EncodeToString(next)
	return out, nil
}

// DeleteObjects implements httpd.Objects. The server deletes: leave to do so that
// an agent could keep is not given.
func (s *Server) DeleteObjects(ctx context.Context, d *gpuai.StoreDelete) error {
	h, err := s.holderOf(ctx, &d.StoreLease)
	if err != nil {
		return err
	}
	for _, key := range d.Keys {
		if err := h.judgeDelete(key); err != nil {
			return err
		}
	}
	store, err := s.openStore(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, objectTimeout)
	defer cancel()
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(deletesAtOnce)
	for _, key := range d.Keys {
		work.Go(func() error { return store.Delete(ctx, key) })
	}
	if err := work.Wait(); err != nil {
		return s.storeFailed(err)
	}
	return nil
}

// ofFiles refuses objects by way of this server where the store takes them itself.
func (s *Server) ofFiles() error {
	if s.blobs.url != "" && !strings.HasPrefix(s.blobs.url, "file:") {
		return gpuai.NewError(gpuai.Conflict, "this region's store takes its objects itself: ask for leave at /v1/agent/store/grants")
	}
	return nil
}

// PutObject implements httpd.Objects.
func (s *Server) PutObject(ctx context.Context, l *gpuai.StoreLease, op gpuai.StoreOp, r io.Reader) error {
	if err := s.ofFiles(); err != nil {
		return err
	}
	h, err := s.holderOf(ctx, l)
	if err != nil {
		return err
	}
	may, err := h.judge(&op)
	if err != nil {
		return err
	}
	store, err := s.openStore(ctx)
	if err != nil {
		return err
	}
	if may.log {
		if err := s.logOpen(ctx, store, &h); err != nil {
			return err
		}
	}
	err = store.PutFrom(ctx, blobs.Op{Put: true, Key: op.Key, Bytes: op.Bytes}, may.once, r)
	switch {
	case errors.Is(err, blobs.ErrThere):
		return gpuai.NewError(gpuai.Conflict, err.Error()+", with another size")
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return s.storeFailed(err)
	}
	return nil
}

// GetObject implements httpd.Objects.
func (s *Server) GetObject(ctx context.Context, l *gpuai.StoreLease, key string) (io.ReadCloser, int64, error) {
	if err := s.ofFiles(); err != nil {
		return nil, 0, err
	}
	h, err := s.holderOf(ctx, l)
	if err != nil {
		return nil, 0, err
	}
	may, err := h.judge(&gpuai.StoreOp{Key: key})
	if err != nil {
		return nil, 0, err
	}
	store, err := s.openStore(ctx)
	if err != nil {
		return nil, 0, err
	}
	r, size, err := store.Reader(ctx, key, may.most)
	switch {
	case errors.Is(err, blobs.ErrNotFound):
		return nil, 0, gpuai.NewError(gpuai.NotFound, err.Error())
	case errors.Is(err, blobs.ErrCorrupt):
		return nil, 0, gpuai.NewError(gpuai.TooLarge, err.Error())
	case err != nil:
		return nil, 0, s.storeFailed(fmt.Errorf("read for node %s: %w", l.Node, err))
	}
	return r, size, nil
}
