package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/internal/identity"
	"github.com/gpuai/gpuai/store"
)

// keyTimeout bounds a question between servers about keys, × multiplier.
const keyTimeout = 3 * time.Second

// A keysBody asks a server which region keys it has, and for some of them. Only
// servers can ask: the Raft port takes nobody else.
type keysBody struct {
	Want []string `json:"want,omitzero"`
}

// A keysAnswer says which keys a server's key file has.
type keysAnswer struct {
	Keys []string `json:"keys"`
	// Ring holds those that were asked for and are there; "" for none. It is secret.
	Ring string `json:"ring,omitzero"`
}

// keysPeer answers another server's askKeys.
func (s *Server) keysPeer(_ context.Context, body []byte) ([]byte, error) {
	var q keysBody
	if err := json.Unmarshal(body, &q, json.RejectUnknownMembers(true)); err != nil {
		return nil, errWire
	}
	if s.warden == nil {
		return nil, errInsecure
	}
	ring := s.warden.ring.Load()
	if ring == nil {
		return nil, errNoKeyring
	}
	out := keysAnswer{Keys: ring.KeyIDs()}
	var want []identity.KeyID
	for _, name := range q.Want {
		id, err := identity.ParseKeyID(name)
		if err != nil {
			return nil, errWire
		}
		want = append(want, id)
	}
	if some := ring.Only(want); some != nil {
		out.Ring = string(some.Encode())
	}
	return json.Marshal(&out)
}

// askKeys asks one server which keys it has, and for some of them.
func (s *Server) askKeys(ctx context.Context, id gpuai.ServerID, want []string) (out keysAnswer, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.scaled(keyTimeout))
	defer cancel()
	body, err := json.Marshal(&keysBody{want})
	if err != nil {
		return out, err
	}
	answer, err := s.askPeer(ctx, id, pathKeys, body)
	if err == nil && json.Unmarshal(answer, &out) != nil {
		err = errWire
	}
	return out, err
}

// changeRing writes the key file and uses what is in it from then on. It returns
// the keyring, and does nothing where change returns what it was given.
func (w *warden) changeRing(dir *store.Dir, change func(*identity.Keyring) *identity.Keyring) (*identity.Keyring, error) {
	w.changes.Lock()
	defer w.changes.Unlock()
	old := w.ring.Load()
	next := change(old)
	if next == old {
		return old, nil
	}
	if err := store.WritePrivate(w.keyFile(dir), next.Encode()); err != nil {
		return old, err
	}
	w.ring.Store(next)
	w.s.log.Info("the key file has changed: keep a copy of it apart from the backups", "keys", next.KeyIDs())
	return next, nil
}

// followKeys brings the key file up to the state: it fetches keys that it lacks,
// seals under the active one from then on, and deletes those that were retired. A
// server that was away does all of it when it is back.
func (w *warden) followKeys(ctx context.Context) error {
	var keys []fsm.RegionKey
	w.s.node.View(func(m *fsm.Machine) { keys = m.RegionKeys() })
	ring := w.ring.Load()
	if len(keys) == 0 || ring == nil {
		return nil
	}
	var got *identity.Keyring
	var failed error
	if lack := lacking(ring, keys); len(lack) > 0 {
		got, failed = w.fetchKeys(ctx, lack)
	}
	_, err := w.changeRing(w.s.dir, func(k *identity.Keyring) *identity.Keyring {
		if got != nil {
			k = k.Take(got)
		}
		for i := range keys {
			if keys[i].State == gpuai.KeyActive {
				k = k.Activate(keys[i].ID)
			}
		}
		return k
	})
	return errors.Join(failed, err, w.dropKeys(keys))
}

// lacking returns the names of the keys that a keyring should have and has not.
func lacking(ring *identity.Keyring, keys []fsm.RegionKey) (out []string) {
	for _, k := range keys {
		if k.State != gpuai.KeyRetired && !ring.Has(k.ID) {
			out = append(out, k.ID.Text())
		}
	}
	return out
}

// dropKeys deletes retired keys, once this server's own key is sealed under the
// active one.
func (w *warden) dropKeys(keys []fsm.RegionKey) error {
	ring := w.ring.Load()
	if c := w.src.Credential(); w.sealed != ring.ActiveID() && c != nil {
		if err := w.keep(w.s.dir, c); err != nil {
			return err
		}
	}
	if w.sealed != ring.ActiveID() {
		return nil
	}
	_, err := w.changeRing(w.s.dir, func(k *identity.Keyring) *identity.Keyring {
		for i := range keys {
			if keys[i].State == gpuai.KeyRetired {
				k = k.Without(keys[i].ID)
			}
		}
		return k
	})
	return err
}

// fetchKeys asks the other servers for keys, until it has all.
func (w *warden) fetchKeys(ctx context.Context, want []string) (got *identity.Keyring, failed error) {
	for _, m := range w.s.node.Members() {
		if m.ID == w.s.cfg.ID {
			continue
		}
		answer, err := w.s.askKeys(ctx, m.ID, want)
		if err != nil || answer.Ring == "" {
			continue
		}
		some, err := identity.ReadKeyring([]byte(answer.Ring))
		if err != nil {
			return got, fmt.Errorf("server %s: %w", m.ID, err)
		}
		if got == nil {
			got = some
		}
		if got = got.Take(some); len(got.KeyIDs()) >= len(want) {
			return got, nil
		}
	}
	return got, fmt.Errorf("%w: it lacks some of the region's keys %v, and no server that answers has them: put the region's key file in its place", identity.ErrKeyring, want)
}

// RegionKeys implements httpd.Identities.
func (s *Server) RegionKeys(ctx context.Context) (out gpuai.RegionKeyList, err error) {
	if _, err := s.mustSign(); err != nil {
		return out, err
	}
	var keys []fsm.RegionKey
	var counts []fsm.SealCount
	s.node.View(func(m *fsm.Machine) { keys, counts, out.Index = m.RegionKeys(), m.SealCounts(), m.Index() })
	ring := s.warden.ring.Load()
	if !slices.ContainsFunc(keys, func(k fsm.RegionKey) bool { return k.State == gpuai.KeyActive }) {
		keys = append([]fsm.RegionKey{{ID: ring.ActiveID(), State: gpuai.KeyActive}}, keys...) // none was ever replaced
	}
	out.Keys = []gpuai.RegionKey{}
	for _, k := range keys {
		out.Keys = append(out.Keys, gpuai.RegionKey{ID: k.ID.Text(), State: k.State})
	}
	for _, n := range counts {
		i := 0
		for i < len(keys) && keys[i].ID != n.Key {
			i++
		}
		if i == len(keys) { // of a key file that was changed by hand
			keys = append(keys, fsm.RegionKey{ID: n.Key})
			out.Keys = append(out.Keys, gpuai.RegionKey{ID: n.Key.Text(), State: gpuai.KeyOld})
		}
		out.Keys[i].Secrets, out.Keys[i].Authorities = n.Secrets, n.Authorities
	}
	out.Servers = s.keyHolders(ctx)
	return out, nil
}

// keyHolders asks every member which keys it has.
func (s *Server) keyHolders(ctx context.Context) []gpuai.KeyHolder {
	members := s.node.Members()
	out := make([]gpuai.KeyHolder, len(members))
	var wg sync.WaitGroup
	for i, m := range members {
		h := &out[i]
		h.Server, h.Voter, h.Keys = m.ID, m.Voter, []string{}
		if m.ID == s.cfg.ID {
			h.Keys = s.warden.ring.Load().KeyIDs()
			continue
		}
		wg.Go(func() {
			if a, err := s.askKeys(ctx, m.ID, nil); err != nil {
				h.Error = err.Error()
			} else {
				h.Keys = a.Keys
			}
		})
	}
	wg.Wait()
	return out
}

// RotateKey implements httpd.Identities. It begins a rotation, or leaves the one
// that is going on to go on: the leader carries it forward, see reign.reseals.
func (s *Server) RotateKey(ctx context.Context) error {
	list, err := s.RegionKeys(ctx)
	if err != nil {
		return err
	}
	offered, other := "", fsm.SecretKeyID{}
	for i := range list.Keys {
		if list.Keys[i].State == gpuai.KeyOffered {
			offered = list.Keys[i].ID
			other, _ = fsm.ParseSecretKeyID(offered)
		}
	}
	if list.Rotating() != "" && (offered == "" || !lost(&list, offered)) {
		return nil
	}
	var id identity.KeyID
	// First here: it must not be lost once it is offered.
	if _, err := s.warden.changeRing(s.dir, func(k *identity.Keyring) (next *identity.Keyring) {
		next, id = k.Add()
		return next
	}); err != nil {
		return err
	}
	c := fsm.SetRegionKey{Key: id, State: gpuai.KeyOffered, Other: other}
	_, err = s.accessCommand(ctx, c.Append(nil, envelopeOf(ctx, "", "")))
	return err
}

// lost reports whether every server says that it does not have a key.
func lost(list *gpuai.RegionKeyList, id string) bool {
	for i := range list.Servers {
		if h := &list.Servers[i]; h.Error != "" || h.Holds(id) {
			return false
		}
	}
	return true
}

// RetireKey implements httpd.Identities.
func (s *Server) RetireKey(ctx context.Context, name string) error {
	if _, err := s.mustSign(); err != nil {
		return err
	}
	id, ok := fsm.ParseSecretKeyID(name)
	if !ok {
		_, err := identity.ParseKeyID(name)
		return gpuai.NewError(gpuai.InvalidSpec, fmt.Sprint(err))
	}
	c := fsm.SetRegionKey{Key: id, State: gpuai.KeyRetired}
	_, err := s.accessCommand(ctx, c.Append(nil, envelopeOf(ctx, "", "")))
	return err
}

const (
	// resealEvery is how often a leader looks for what is sealed under another
	// region key than the one that seals.
	resealEvery = time.Hour
	// rotateEvery is how often it looks while a rotation goes on.
	rotateEvery = time.Second
)

// reseals carries a rotation of the region's keys forward, and has everything
// sealed under the key that seals now: when this server begins to lead, when the
// keys have changed, and from time to time.
func (r *reign) reseals(ctx context.Context) {
	if r.s.keyring() == nil {
		return
	}
	var changed chan struct{}
	if r.s.warden != nil {
		changed = r.s.warden.rotates
	}
	for said := ""; ; {
		wait := resealEvery
		goes, err := r.rotate(ctx)
		n, failed := r.reseal(ctx)
		if n > 0 {
			r.s.log.Info("secrets were sealed under the region key that is active now", "secrets", n)
		}
		if err = errors.Join(err, failed); goes || err != nil {
			wait = rotateEvery
		}
		if err != nil && err.Error() != said && ctx.Err() == nil {
			said = err.Error()
			r.s.log.Warn("the region's keys: it is tried again", "error", err)
		}
		select {
		case <-time.After(wait):
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// rotate makes an offered key the active one once all voters hold it, and has the
// CAs' keys sealed under the active one. It reports whether a rotation goes on.
func (r *reign) rotate(ctx context.Context) (goes bool, err error) {
	w := r.s.warden
	if w == nil {
		return false, nil
	}
	var keys []fsm.RegionKey
	r.s.node.View(func(m *fsm.Machine) { keys = m.RegionKeys() })
	var offered, active fsm.SecretKeyID
	for _, k := range keys {
		switch k.State {
		case gpuai.KeyOffered:
			offered = k.ID
		case gpuai.KeyActive:
			active = k.ID
		}
	}
	ring := w.ring.Load()
	if offered != (fsm.SecretKeyID{}) {
		if active == (fsm.SecretKeyID{}) {
			active = ring.ActiveID()
		}
		return true, r.activate(ctx, offered, active)
	}
	if active != (fsm.SecretKeyID{}) && ring.ActiveID() != active {
		return true, nil // the warden changes it
	}
	return false, r.resealAuthorities(ctx, ring)
}

// activate makes an offered key the active one, if all voters hold it.
func (r *reign) activate(ctx context.Context, offered, active fsm.SecretKeyID) error {
	for _, h := range r.s.keyHolders(ctx) {
		if h.Voter && !h.Holds(offered.Text()) {
			return nil // 'gpuai operator key show' says who
		}
	}
	c := fsm.SetRegionKey{Key: offered, State: gpuai.KeyActive, Other: active}
	return r.s.must(ctx, c.Append(nil, fsm.Envelope{Actor: actorSelf}))
}

// must proposes a command of this server's own; a rejection is an error.
func (s *Server) must(ctx context.Context, cmd []byte) error {
	a, err := s.node.Propose(ctx, cmd)
	if err == nil && a.Result.Code != gpuai.OK {
		err = refusedError(&a.Result)
	}
	return err
}

// resealAuthorities has the keys of all CAs sealed under the key that seals.
func (r *reign) resealAuthorities(ctx context.Context, ring *identity.Keyring) error {
	var list []fsm.Authority
	r.s.node.View(func(m *fsm.Machine) { list = m.Authorities() })
	for i := range list {
		a := &list[i]
		if identity.SealID(a.Key) == ring.ActiveID() {
			continue
		}
		key, err := ring.Open(authorityAAD, a.Key)
		if err != nil {
			return err
		}
		c := fsm.PutAuthority{
			Hash: a.Hash, Replaces: a.Hash, Domain: a.Domain, Certificate: a.Certificate, Cross: a.Cross,
			Key: ring.Seal(authorityAAD, key), Retire: fsm.MinAuthorityRetire,
		}
		if err := r.s.must(ctx, c.Append(nil, fsm.Envelope{Actor: actorSelf})); err != nil {
			return err
		}
	}
	return nil
}
