package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/internal/blobs"
)

// digits are those of a chunk.
var digits = strings.Repeat("0a", 32)

// publish publishes a checkpoint of a lease, of which the store has nothing.
func (a *testAgent) publish(l *gpuai.Lease, after uint64, digest byte) (p gpuai.PublishedCheckpoint) {
	a.t.Helper()
	a.mu.Lock()
	before := len(a.judged)
	a.mu.Unlock()
	d := gpuai.BlobDigest{digest}
	a.send(gpuai.Frame{Kind: gpuai.FramePublish, Publish: &gpuai.Publish{
		Lease: l.ID, Incarnation: l.Incarnation, Task: l.TaskRef, After: after, Digest: d, Keep: 2,
	}})
	eventually(a.t, "answer to a publish", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.judged) > before && a.judged[before].Code != gpuai.OK {
			a.t.Fatalf("%+v", a.judged[before])
		}
		return len(a.judged) > before
	})
	return gpuai.PublishedCheckpoint{Lease: l.ID, Key: gpuai.CheckpointKey(l.TaskRef, l.ID, d)}
}

// An estate is a region with a store, and leases of two tenants on two nodes: mine on
// n1, whose task has had an attempt before, and theirs on n2.
type estate struct {
	*region
	url          string
	mine, theirs *testAgent
	lease        gpuai.Lease // mine
	past         gpuai.Lease // of the same task, ended
	other        gpuai.Lease // theirs
}

func newEstate(t *testing.T) *estate {
	t.Helper()
	e := &estate{url: "file://" + t.TempDir() + "/store"}
	e.region = startRegionWith(t, 3, func(c *Config) { c.CheckpointStore = e.url })
	e.write(func(m *member) error {
		_, err := m.CreateTenant(t.Context(), gpuai.TenantRequest{ID: "acme"})
		if isCode(err, gpuai.Conflict) {
			return nil
		}
		return err
	})
	e.mine = join(t, e.followers()[0].Server, helloOf("n1", 1))
	e.submit(jobSpec("mine", 1), "")
	e.past = e.mine.awaitLeases(1)[0].Lease
	e.mine.publish(&e.past, 0, 1)
	e.theirs = join(t, e.leader().Server, helloOf("n2", 1))
	spec := jobSpec("theirs", 1)
	spec.Tenant = "acme"
	e.submit(spec, "")
	e.other = e.theirs.awaitLeases(1)[0].Lease
	e.mine.report(e.mine.held()[0], 1, gpuai.ReportLost)
	eventually(t, "the next attempt", func() bool {
		held := e.mine.held()
		if len(held) == 1 {
			e.lease = held[0].Lease
		}
		return len(held) == 1 && e.lease.ID != e.past.ID
	})
	return e
}

func storeLease(l *gpuai.Lease) gpuai.StoreLease {
	return gpuai.StoreLease{Node: l.Node, Lease: l.ID, Incarnation: l.Incarnation}
}

func chunkOf(l *gpuai.Lease) string {
	return gpuai.CheckpointLeasePrefix(l.TaskRef, l.ID) + "chunks/" + digits
}

func logOf(l *gpuai.Lease, name string) string { return gpuai.LogPrefix(l.TaskRef, l.ID) + name }

// use does what a node asks for, by a server: with leave, and, since the store is one
// of files, by way of it. Both must be judged alike.
func use(t *testing.T, m *member, l gpuai.StoreLease, op gpuai.StoreOp) error {
	t.Helper()
	g, granted := m.GrantObjects(t.Context(), &gpuai.StoreAsk{StoreLease: l, Objects: []gpuai.StoreOp{op}})
	if granted == nil && (len(g.Grants) != 1 || g.Grants[0].URL != "" || g.Grants[0].ExpiresIn <= 0) {
		t.Errorf("%+v: %+v", op, g)
	}
	var err error
	if op.Put {
		err = m.PutObject(t.Context(), &l, op, io.LimitReader(zeros{}, op.Bytes))
	} else {
		var r io.ReadCloser
		if r, _, err = m.GetObject(t.Context(), &l, op.Key); err == nil {
			r.Close()
		}
	}
	if (granted == nil) != (err == nil) && !isCode(err, gpuai.NotFound) {
		t.Errorf("%+v: leave %v, use %v", op, granted, err)
	}
	return errors.Join(granted, err)
}

// zeros has as many zeros as are read.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A storeCase is one use of the store and how it is judged.
type storeCase struct {
	l    gpuai.StoreLease
	op   gpuai.StoreOp
	code gpuai.Code
}

func storePut(key string, n int64) gpuai.StoreOp {
	return gpuai.StoreOp{Put: true, Key: key, Bytes: n}
}

func storeGet(key string) gpuai.StoreOp { return gpuai.StoreOp{Key: key} }

// leaseCases are about whose leases and prefixes may be used.
func (e *estate) leaseCases() map[string]storeCase {
	mine, theirs, own := storeLease(&e.lease), storeLease(&e.other), chunkOf(&e.lease)
	prefix := gpuai.CheckpointLeasePrefix(e.lease.TaskRef, e.lease.ID)
	as := func(change func(*gpuai.StoreLease)) gpuai.StoreLease {
		l := mine
		change(&l)
		return l
	}
	return map[string]storeCase{
		"store a chunk":              {mine, storePut(own, 8), gpuai.OK},
		"store a manifest":           {mine, storePut(prefix+"manifests/"+digits, 8), gpuai.OK},
		"read it":                    {mine, storeGet(own), gpuai.OK},
		"read what it goes on from":  {mine, storeGet(chunkOf(&e.past)), gpuai.OK},
		"store output":               {mine, storePut(logOf(&e.lease, "stdout/0"), 8), gpuai.OK},
		"theirs store":               {theirs, storePut(chunkOf(&e.other), 8), gpuai.OK},
		"output of an ended attempt": {storeLease(&e.past), storePut(logOf(&e.past, "stderr/0"), 8), gpuai.OK},
		"another tenant's chunk":     {mine, storeGet(chunkOf(&e.other)), gpuai.Forbidden},
		"into another tenant's":      {mine, storePut(chunkOf(&e.other), 8), gpuai.Forbidden},
		"into another's output":      {mine, storePut(logOf(&e.other, "index"), 8), gpuai.Forbidden},
		"read output":                {mine, storeGet(logOf(&e.lease, "stdout/0")), gpuai.Forbidden},
		"read another's output":      {mine, storeGet(logOf(&e.other, "index")), gpuai.Forbidden},
		"into a past attempt":        {mine, storePut(chunkOf(&e.past), 8), gpuai.Forbidden},
		"output of a past attempt":   {mine, storePut(logOf(&e.past, "index"), 8), gpuai.Forbidden},
		"for an ended lease":         {storeLease(&e.past), storePut(chunkOf(&e.past), 8), gpuai.Conflict},
		"read for an ended lease":    {storeLease(&e.past), storeGet(chunkOf(&e.past)), gpuai.Conflict},
		"another node's lease":       {as(func(l *gpuai.StoreLease) { l.Lease = e.other.ID }), storePut(chunkOf(&e.other), 8), gpuai.Forbidden},
		"another node":               {as(func(l *gpuai.StoreLease) { l.Node = "n2" }), storePut(own, 8), gpuai.Forbidden},
		"no node":                    {as(func(l *gpuai.StoreLease) { l.Node = "" }), storePut(own, 8), gpuai.Forbidden},
		"another node's ended lease": {gpuai.StoreLease{Node: "n2", Lease: e.past.ID}, storePut(logOf(&e.past, "index"), 8), gpuai.Forbidden},
		"a lease that never was":     {as(func(l *gpuai.StoreLease) { l.Lease = gpuai.MakeToken(0, 1<<30, 1) }), storePut(own, 8), gpuai.Forbidden},
		"another incarnation":        {as(func(l *gpuai.StoreLease) { l.Incarnation++ }), storePut(own, 8), gpuai.Conflict},
		"no incarnation":             {as(func(l *gpuai.StoreLease) { l.Incarnation = 0 }), storePut(own, 8), gpuai.Conflict},
	}
}

// keyCases are keys and sizes that no lease has.
func (e *estate) keyCases() map[string]storeCase {
	mine, own := storeLease(&e.lease), chunkOf(&e.lease)
	prefix := gpuai.CheckpointLeasePrefix(e.lease.TaskRef, e.lease.ID)
	return map[string]storeCase{
		"a step up":                    {mine, storeGet(prefix + "chunks/../../" + e.past.ID.String() + "/chunks/" + digits), gpuai.Forbidden},
		"a step up from the prefix":    {mine, storeGet(prefix + "../" + e.past.ID.String() + "/chunks/" + digits), gpuai.Forbidden},
		"an escaped slash":             {mine, storeGet(strings.ReplaceAll(own, "/", "%2f")), gpuai.Forbidden},
		"an escaped step up":           {mine, storeGet(prefix + "chunks/%2e%2e/" + digits), gpuai.Forbidden},
		"a NUL":                        {mine, storeGet(own + "\x00"), gpuai.Forbidden},
		"two slashes":                  {mine, storeGet(prefix + "/chunks/" + digits), gpuai.Forbidden},
		"an absolute key":              {mine, storeGet("/" + own), gpuai.Forbidden},
		"letters in upper case":        {mine, storeGet(prefix + "chunks/" + strings.ToUpper(digits)), gpuai.Forbidden},
		"an attribute file":            {mine, storePut(own+".attrs", 8), gpuai.Forbidden},
		"another kind of blob":         {mine, storePut(prefix+"else/"+digits, 8), gpuai.Forbidden},
		"the prefix itself":            {mine, storeGet(prefix), gpuai.Forbidden},
		"no key":                       {mine, storeGet(""), gpuai.Forbidden},
		"an over-long key":             {mine, storeGet(prefix + strings.Repeat("x", 100_000)), gpuai.Forbidden},
		"an over-large chunk":          {mine, storePut(own, 8<<20+1), gpuai.TooLarge},
		"an empty chunk":               {mine, storePut(own, 0), gpuai.TooLarge},
		"a negative size":              {mine, storePut(own, -1), gpuai.TooLarge},
		"an over-large index":          {mine, storePut(logOf(&e.lease, "index"), 1<<30), gpuai.TooLarge},
		"output of no stream":          {mine, storePut(logOf(&e.lease, "../index"), 8), gpuai.Forbidden},
		"a chunk where output is":      {mine, storePut(logOf(&e.lease, "chunks/"+digits), 8), gpuai.Forbidden},
		"output where checkpoints are": {mine, storePut(prefix+"index", 8), gpuai.Forbidden},
	}
}

// What a node may do in the store is what its leases need, by any server.
func TestStoreIsUsedByLease(t *testing.T) {
	t.Parallel()
	e := newEstate(t)
	if err := use(t, e.leader(), storeLease(&e.lease), storePut(chunkOf(&e.lease), 8)); err != nil {
		t.Fatal(err)
	}
	cases := e.leaseCases()
	maps.Copy(cases, e.keyCases())
	for name, c := range cases {
		for _, m := range []*member{e.leader(), e.followers()[0]} {
			err := use(t, m, c.l, c.op)
			if c.op.Key == chunkOf(&e.past) && c.code == gpuai.OK && isCode(err, gpuai.NotFound) {
				err = nil // it has published only a digest
			}
			if got := codeOf(err); got != c.code {
				t.Errorf("%s, by %s: %v, want %s", name, m.cfg.ID, err, c.code)
			}
			if err != nil && (strings.Contains(err.Error(), "acme") || len(err.Error()) > 2*(maxKeyText+200)) {
				t.Errorf("%s: it tells too much: %v", name, err)
			}
		}
	}
	s := openStore(t, e.url)
	for entry, err := range s.List(t.Context(), "") {
		if err != nil || entry.Bytes != 8 {
			t.Errorf("%+v, %v: refused, and there", entry, err)
		}
	}
}

// codeOf is that of the first error; OK of none.
func codeOf(err error) gpuai.Code {
	var x *gpuai.Error
	if errors.As(err, &x) {
		return x.Code
	}
	if err != nil {
		return gpuai.Internal
	}
	return gpuai.OK
}

// One refused operation refuses all that were asked for with it.
func TestGrantsAreOfOnePiece(t *testing.T) {
	t.Parallel()
	e := newEstate(t)
	ask := gpuai.StoreAsk{StoreLease: storeLease(&e.lease), Objects: []gpuai.StoreOp{{Put: true, Key: chunkOf(&e.lease), Bytes: 8}, {Key: chunkOf(&e.other)}}}
	if g, err := e.leader().GrantObjects(t.Context(), &ask); !isCode(err, gpuai.Forbidden) || g.Grants != nil {
		t.Errorf("%+v, %v", g, err)
	}
}

// What was granted ends with the lease, by way of a server at once; what the lease
// has stored stays as it is, but for its own agent while it runs, and what is kept.
func TestStoreUseEndsWithTheLease(t *testing.T) {
	t.Parallel()
	e := newEstate(t)
	l, m := storeLease(&e.lease), e.followers()[1]
	op := gpuai.StoreOp{Put: true, Key: chunkOf(&e.lease), Bytes: 8}
	if err := use(t, m, l, op); err != nil {
		t.Fatal(err)
	}
	if got := list(t, m, l); len(got) != 1 || got[0].Key != op.Key || got[0].Bytes != 8 {
		t.Errorf("%+v", got)
	}
	if got := list(t, m, storeLease(&e.other)); len(got) != 0 {
		t.Errorf("another's list: %+v", got)
	}
	kept := e.mine.publish(&e.lease, 1, 2)
	remove := func(keys ...string) error {
		return m.DeleteObjects(t.Context(), &gpuai.StoreDelete{StoreLease: l, Keys: keys})
	}
	for name, c := range map[string]struct {
		key  string
		code gpuai.Code
	}{
		"what is published":   {kept.Key, gpuai.Conflict},
		"a past attempt's":    {chunkOf(&e.past), gpuai.Forbidden},
		"another tenant's":    {chunkOf(&e.other), gpuai.Forbidden},
		"its own output":      {logOf(&e.lease, "index"), gpuai.Forbidden},
		"a prefix":            {gpuai.CheckpointLeasePrefix(e.lease.TaskRef, e.lease.ID), gpuai.Forbidden},
		"with others' in one": {chunkOf(&e.other) + "," + op.Key, gpuai.Forbidden},
	} {
		if err := remove(strings.Split(c.key+","+op.Key, ",")...); codeOf(err) != c.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := list(t, m, l); len(got) != 1 {
		t.Fatalf("a delete that was refused has deleted: %+v", got)
	}
	if err := errors.Join(remove(op.Key), remove(op.Key)); err != nil || len(list(t, m, l)) != 0 {
		t.Errorf("its own: %v", err)
	}
	index := gpuai.StoreOp{Put: true, Key: logOf(&e.lease, blobs.LogIndex), Bytes: 8}
	if code := e.mine.report(e.mine.held()[0], 1, gpuai.ReportDone); code != gpuai.OK {
		t.Fatal(code)
	}
	for name, err := range map[string]error{"store": use(t, m, l, op), "read": use(t, m, l, gpuai.StoreOp{Key: op.Key}), "delete": remove(op.Key)} {
		if !isCode(err, gpuai.Conflict) {
			t.Errorf("%s behind the end: %v", name, err)
		}
	}
	if _, err := m.ListObjects(t.Context(), &l, ""); !isCode(err, gpuai.Conflict) {
		t.Errorf("list behind the end: %v", err)
	}
	if err := use(t, m, l, index); err != nil {
		t.Errorf("its output: %v", err)
	}
	for _, op := range []gpuai.StoreOp{index, {Put: true, Key: logOf(&e.lease, "stdout/0"), Bytes: 8}} {
		if err := use(t, e.leader(), l, op); !isCode(err, gpuai.PreconditionFailed) {
			t.Errorf("output that is complete is written again: %v", err)
		}
	}
}

func list(t *testing.T, m *member, l gpuai.StoreLease) []gpuai.StoreObject {
	t.Helper()
	out, err := m.ListObjects(t.Context(), &l, "")
	if err != nil || out.Next != "" {
		t.Errorf("%+v, %v", out, err)
	}
	return out.Objects
}

// A server that has lost its leader gives no leave: it cannot know that a lease stands.
func TestStoreNeedsALeader(t *testing.T) {
	t.Parallel()
	e := newEstate(t)
	cut := e.followers()[0]
	for _, m := range e.servers {
		if m != cut {
			e.halt(m)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	l := storeLease(&e.lease)
	if _, err := cut.GrantObjects(ctx, &gpuai.StoreAsk{StoreLease: l, Objects: []gpuai.StoreOp{{Key: chunkOf(&e.lease)}}}); !isCode(err, gpuai.NoLeader) {
		t.Errorf("%v", err)
	}
	if err := cut.PutObject(ctx, &l, gpuai.StoreOp{Put: true, Key: chunkOf(&e.lease), Bytes: 8}, bytes.NewReader(make([]byte, 8))); !isCode(err, gpuai.NoLeader) {
		t.Errorf("%v", err)
	}
}

// The certificate says which node asks, whatever the request says; a revoked one asks
// for nothing.
func TestStoreTakesTheCertificatesNode(t *testing.T) {
	t.Parallel()
	url := "file://" + t.TempDir() + "/store"
	r := formSecureWith(t, 1, func(c *Config) { c.CheckpointStore = url })
	own, other := r.joined("n1"), r.joined("n2")
	r.mustWelcome(own, r.urls()[0], "n1")
	r.submit(jobSpec("j", 1), "")
	var l gpuai.Lease
	eventually(t, "the lease", func() bool {
		r.servers[0].node.View(func(m *fsm.Machine) {
			if all := m.LeasesOfNode("n1", 1); len(all) == 1 {
				l = all[0]
			}
		})
		return l.ID != 0
	})
	ask := gpuai.StoreAsk{StoreLease: storeLease(&l), Objects: []gpuai.StoreOp{{Put: true, Key: chunkOf(&l), Bytes: 8}}}
	holder, stranger := r.client(own.ClientConfig()), r.client(other.ClientConfig())
	if g, err := holder.GrantObjects(t.Context(), &ask); err != nil || len(g.Grants) != 1 {
		t.Fatalf("%+v, %v", g, err)
	}
	if err := holder.PutObject(t.Context(), ask.StoreLease, ask.Objects[0].Key, make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	for _, node := range []gpuai.NodeID{"n1", "n2", ""} {
		s := ask.StoreLease
		s.Node = node
		_, granted := stranger.GrantObjects(t.Context(), &gpuai.StoreAsk{StoreLease: s, Objects: ask.Objects})
		_, read := stranger.GetObject(t.Context(), s, ask.Objects[0].Key, 100)
		_, listed := stranger.ListObjects(t.Context(), s, "")
		for what, err := range map[string]error{
			"leave": granted, "read": read, "list": listed,
			"store":  stranger.PutObject(t.Context(), s, ask.Objects[0].Key, make([]byte, 8)),
			"delete": stranger.DeleteObjects(t.Context(), &gpuai.StoreDelete{StoreLease: s, Keys: []string{ask.Objects[0].Key}}),
		} {
			if !isCode(err, gpuai.Forbidden) {
				t.Errorf("%s as %q: %v", what, node, err)
			}
		}
	}
	if _, err := r.client(nil).GrantObjects(t.Context(), &ask); err == nil {
		t.Error("leave without a certificate")
	}
	if data, err := holder.GetObject(t.Context(), ask.StoreLease, ask.Objects[0].Key, 100); err != nil || len(data) != 8 {
		t.Fatalf("%d bytes, %v", len(data), err)
	}
	r.write(func(m *member) error { return m.RevokeIdentity(t.Context(), nodeNamed("n1")) })
	eventually(t, "the end of a revoked node's leave", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := holder.GrantObjects(ctx, &ask)
		return isCode(err, gpuai.Unauthenticated)
	})
}

// What earlier attempts have stored goes once nothing of them is kept, and not before.
func TestStoreIsSweptOfEarlierAttempts(t *testing.T) {
	t.Parallel()
	e := newEstate(t)
	s := openStore(t, e.url)
	stale := e.past
	stale.ID = gpuai.MakeToken(0, 1, 0)
	for _, key := range []string{chunkOf(&stale), chunkOf(&e.past), chunkOf(&e.lease), chunkOf(&e.other)} {
		if err := s.Put(t.Context(), key, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	there := func() string {
		out := ""
		for _, l := range []*gpuai.Lease{&stale, &e.past, &e.lease, &e.other} {
			ok, err := s.Exists(t.Context(), chunkOf(l))
			if err != nil {
				t.Fatal(err)
			}
			out += map[bool]string{true: "1", false: "0"}[ok]
		}
		return out
	}
	e.mine.publish(&e.lease, 1, 2)
	eventually(t, "what no checkpoint is of to go", func() bool { return there() == "0111" })
	e.mine.publish(&e.lease, 2, 3) // two are kept
	eventually(t, "the last attempt's to go", func() bool { return there() == "0011" })
}
