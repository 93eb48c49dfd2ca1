package server

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
	"github.com/gpuai/gpuai/internal/identity"
)

// errNoKeyring refuses what a region cannot keep.
var errNoKeyring = gpuai.NewError(gpuai.PreconditionFailed,
	"this region keeps no secrets: its servers have no keyring, under which they would be sealed; see docs/secrets.md")

// keyring returns the region's keys; nil where it has none.
func (s *Server) keyring() *identity.Keyring {
	if s.warden == nil {
		return s.cfg.Keyring
	}
	return s.warden.ring.Load()
}

// secretAAD is what a secret is sealed as: one is never taken for another.
func secretAAD(tenant gpuai.TenantID, name string) string {
	return "secret/" + string(tenant) + "/" + name
}

// PutSecret implements httpd.Secrets.
func (s *Server) PutSecret(ctx context.Context, name string, r gpuai.SecretRequest) (out gpuai.SecretSet, err error) {
	ring := s.keyring()
	if ring == nil {
		return out, errNoKeyring
	}
	seal, box := ring.SealEnvelope(secretAAD(r.Tenant, name), r.Value)
	c := fsm.PutSecret{Name: name, Tenant: r.Tenant, KeyID: ring.ActiveID(), Seal: seal, Box: box}
	a, err := s.accessCommand(ctx, c.Append(nil, envelopeOf(ctx, r.Tenant, "")))
	if err != nil {
		return out, err
	}
	out = gpuai.SecretSet{Name: name, Tenant: r.Tenant, Index: a.Result.Index}
	s.node.View(func(m *fsm.Machine) {
		sealed, _ := m.Secret(r.Tenant, name)
		out.Version = sealed.Version
	})
	return out, nil
}

// DeleteSecret implements httpd.Secrets.
func (s *Server) DeleteSecret(ctx context.Context, name string, tenant gpuai.TenantID) (gpuai.SecretSet, error) {
	c := fsm.DeleteSecret{Name: name, Tenant: tenant}
	a, err := s.accessCommand(ctx, c.Append(nil, envelopeOf(ctx, tenant, "")))
	if isCode(err, gpuai.NotFound) {
		err = gpuai.NewError(gpuai.NotFound, "tenant "+string(tenant)+" has no secret "+strconv.Quote(name)+": gpuai secret list shows those that there are")
	}
	return gpuai.SecretSet{Name: name, Tenant: tenant, Index: a.Result.Index}, err
}

// Secrets implements httpd.Secrets.
func (s *Server) Secrets(p httpd.Page) (out []gpuai.SecretInfo, next string, err error) {
	from, err := readOffset("secrets", p.Cursor)
	if err != nil || from > fsm.MaxSecrets {
		return nil, "", badCursor()
	}
	limit, at := pageSize(p), uint32(from)
	for hold := 0; hold < maxHolds && len(out) < limit; hold++ {
		var page []gpuai.SecretInfo
		s.node.View(func(m *fsm.Machine) { page, at = m.Secrets(at, limit-len(out), p.Tenant) })
		if out = append(out, page...); at == 0 {
			return out, "", nil
		}
	}
	return out, makeCursor("secrets", strconv.FormatUint(uint64(at), 10)), nil
}

// lackingSecrets says which of a job's secrets its tenant does not have.
func (s *Server) lackingSecrets(spec *gpuai.JobSpec) (wrong []gpuai.FieldError) {
	s.node.View(func(m *fsm.Machine) {
		for g := range spec.Groups {
			for i, use := range spec.Groups[g].Task.Secrets {
				if _, ok := m.Secret(spec.Tenant, use.Name); !ok {
					wrong = append(wrong, gpuai.FieldError{
						Pointer: "/groups/" + strconv.Itoa(g) + "/task/secrets/" + strconv.Itoa(i) + "/name",
						Detail:  "there is no secret " + use.Name + " in tenant " + string(spec.Tenant) + ": set it with gpuai secret put " + use.Name,
					})
				}
			}
		}
	})
	return wrong
}

// askSecrets has the leader judge whether an agent may have a task's secrets.
func (se *session) askSecrets(a gpuai.SecretAsk) error {
	c := fsm.GiveSecrets{Node: se.ref.Node, Lease: a.Lease, Incarnation: a.Incarnation}
	return se.carry(agentCommand{cmd: c.Append(nil, se.envelope()), secrets: a.Lease})
}

// errChanged is returned while secrets change between the machine's word and
// their delivery.
var errChanged = errors.New("a secret has had another value meanwhile")

// giveSecrets delivers what the machine has judged, or says why not; errChanged
// wants it judged anew. What it reads is of the versions that were noted.
func (se *session) giveSecrets(ctx context.Context, lease gpuai.Token, o *outcome) error {
	d := gpuai.SecretDelivery{Lease: lease, Code: o.Code, Detail: o.Detail}
	if o.Code == gpuai.OK {
		if se.s.node.WaitApplied(ctx, o.Index) != nil {
			return ctx.Err()
		}
		values, err := se.s.unseal(lease)
		if errors.Is(err, errChanged) {
			return err
		}
		if d.Values = values; err != nil {
			se.s.log.Error("secrets cannot be unsealed", "lease", lease, "error", err)
			d.Code, d.Detail = gpuai.Internal, "server "+string(se.s.cfg.ID)+" cannot unseal the task's secrets: "+err.Error()
		}
	}
	se.mu.Lock()
	defer se.mu.Unlock()
	if len(se.secrets) >= maxSecretAnswers {
		return errors.New("the agent does not read its tasks' secrets")
	}
	se.secrets = append(se.secrets, d)
	se.sends()
	return nil
}

// maxSecretAnswers bounds the answers with secrets that wait to be sent to one
// agent: each may be a megabyte.
const maxSecretAnswers = 64

// unseal returns the secrets of a lease's task, in their order.
func (s *Server) unseal(lease gpuai.Token) (values [][]byte, err error) {
	ring := s.keyring()
	if ring == nil {
		return nil, errNoKeyring
	}
	var sealed []fsm.SealedSecret
	s.node.View(func(m *fsm.Machine) {
		a, _ := m.Assignment(lease)
		for _, noted := range a.Lease.Secrets {
			x, _ := m.Secret(a.Lease.Tenant, noted.Name)
			if x.Version != noted.Version {
				err = errChanged
				return
			}
			sealed = append(sealed, x)
		}
	})
	for i := range sealed {
		x := &sealed[i]
		plain, bad := ring.OpenEnvelope(secretAAD(x.Tenant, x.Name), x.Seal, x.Box)
		if bad != nil {
			return nil, fmt.Errorf("secret %s: %w", x.Name, bad)
		}
		values = append(values, plain)
	}
	return values, err
}

// reseal returns how many it has sealed anew, and why one was not.
func (r *reign) reseal(ctx context.Context) (n int, failed error) {
	ring := r.s.keyring()
	id := ring.ActiveID()
	for from := uint32(0); ctx.Err() == nil; from++ {
		var x fsm.SealedSecret
		found := false
		r.s.node.View(func(m *fsm.Machine) {
			if m.Level() >= fsm.LevelTenants {
				x, from, found = m.NextSecretUnder(from, id)
			}
		})
		if !found {
			break
		}
		seal, err := ring.Reseal(secretAAD(x.Tenant, x.Name), x.Seal)
		if err != nil {
			failed = fmt.Errorf("secret %s of tenant %s: %w", x.Name, x.Tenant, err)
			continue
		}
		c := fsm.PutSecret{Name: x.Name, Tenant: x.Tenant, Reseal: x.Version, KeyID: id, Seal: seal, Box: x.Seal}
		a, err := r.s.node.Propose(ctx, c.Append(nil, fsm.Envelope{Tenant: x.Tenant, Actor: actorSelf}))
		switch {
		case err != nil:
			return n, err
		case a.Result.Code == gpuai.OK:
			n++
		}
	}
	return n, failed
}
