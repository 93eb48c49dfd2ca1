package server

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
	"github.com/gpuai/gpuai/internal/identity"
)

// wanting is a job that wants secrets.
func wanting(name string, secrets ...string) *gpuai.JobSpec {
	s := jobSpec(name, 1)
	for _, n := range secrets {
		s.Groups[0].Task.Secrets = append(s.Groups[0].Task.Secrets, gpuai.TaskSecret{Name: n})
	}
	s.Defaults()
	return s
}

// secretHello is of a node that asks for secrets.
func secretHello(id string, gpus int) gpuai.Hello {
	h := helloOf(id, gpus)
	h.Node.Labels = map[string]string{gpuai.LabelSecrets: gpuai.LabelYes}
	return h
}

// ask asks for a lease's secrets and returns the answer.
func (a *testAgent) ask(lease gpuai.Token) (d gpuai.SecretDelivery) {
	a.t.Helper()
	a.mu.Lock()
	before := len(a.secrets)
	a.mu.Unlock()
	a.send(gpuai.Frame{Kind: gpuai.FrameSecretAsk, SecretAsk: &gpuai.SecretAsk{Lease: lease, Incarnation: a.welcome.Incarnation}})
	eventually(a.t, "the secrets of lease "+lease.String(), func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		if len(a.secrets) == before {
			return false
		}
		d = a.secrets[before]
		return true
	})
	return d
}

// put sets a secret of tenant default, on the leader.
func (r *region) put(name, value string) {
	r.t.Helper()
	eventually(r.t, "the level of secrets", func() bool { return r.leader().level() >= fsm.LevelTenants })
	r.write(func(m *member) error {
		_, err := m.PutSecret(context.Background(), name, gpuai.SecretRequest{Value: []byte(value), Tenant: gpuai.DefaultTenant})
		return err
	})
}

// Secrets go to the agent that holds the lease and to no other, by any server, and
// are sealed in the state of all.
func TestSecretsGoToTheLeasesAgent(t *testing.T) {
	t.Parallel()
	ring := identity.NewKeyring()
	r := startRegionWith(t, 3, func(c *Config) { c.Keyring = ring })
	r.put("a", "hush-a")
	r.put("b", "hush-b")
	holder := join(t, r.followers()[0].Server, secretHello("n1", 4))
	other := join(t, r.leader().Server, helloOf("n2", 4))
	r.submit(wanting("j", "a", "b"), "")
	lease := holder.awaitLeases(1)[0].Lease.ID
	if d := other.ask(lease); d.Code != gpuai.Conflict || d.Values != nil {
		t.Errorf("another agent was given %v %s", d, d.Detail)
	}
	r.put("b", "hush-b2")
	if d := holder.ask(lease); d.Code != gpuai.OK || len(d.Values) != 2 || string(d.Values[0]) != "hush-a" || string(d.Values[1]) != "hush-b2" {
		t.Fatalf("its agent was given %v %s %q", d, d.Detail, d.Values)
	}
	l, err := r.leader().Lease(lease, "")
	if err != nil || len(l.Secrets) != 2 || l.Secrets[1] != (gpuai.LeaseSecret{Name: "b", Version: 2}) {
		t.Errorf("the lease says %+v, %v", l.Secrets, err)
	}
	if page, _, err := r.leader().Secrets(httpd.Page{Limit: 10}); err != nil || len(page) != 2 || page[0].Bytes != 6 || page[0].Key != ring.KeyIDs()[0] {
		t.Errorf("%+v, %v", page, err)
	}
	r.equalDigests()
	r.submit(wanting("k", "b"), "")
	second := holder.awaitLeases(2)[1].Lease.ID
	if second == lease {
		second = holder.awaitLeases(2)[0].Lease.ID
	}
	r.write(func(m *member) error {
		_, err := m.DeleteSecret(context.Background(), "b", gpuai.DefaultTenant)
		return err
	})
	if d := holder.ask(second); d.Code != gpuai.NotFound || !strings.Contains(d.Detail, "gpuai secret put b") {
		t.Errorf("a deleted secret: %v %s", d, d.Detail)
	}
	_, err = r.leader().Submit(context.Background(), httpd.SubmitRequest{Spec: wanting("l", "a", "b")})
	var e *gpuai.Error
	if !errors.As(err, &e) || e.Code != gpuai.InvalidSpec || len(e.Fields) != 1 || e.Fields[0].Pointer != "/groups/0/task/secrets/1/name" {
		t.Errorf("a job that wants a deleted secret: %+v", e)
	}
}

// Another active region key takes over at the next start of a leader, and a server
// without the key says which one it lacks.
func TestSecretsAreSealedAnew(t *testing.T) {
	t.Parallel()
	old := identity.NewKeyring()
	next := old.Rotate()
	r := startRegionWith(t, 1, func(c *Config) { c.Keyring = old })
	r.put("a", "hush")
	m := r.servers[0]
	r.halt(m)
	m.cfg.Keyring = next
	r.restart(m)
	eventually(t, "another seal", func() bool {
		page, _, err := m.Secrets(httpd.Page{Limit: 10})
		return err == nil && len(page) == 1 && page[0].Key == next.KeyIDs()[0] && page[0].Version == 1
	})
	a := join(t, m.Server, secretHello("n1", 4))
	r.submit(wanting("j", "a"), "")
	if d := a.ask(a.awaitLeases(1)[0].Lease.ID); len(d.Values) != 1 || string(d.Values[0]) != "hush" {
		t.Errorf("behind the rotation: %v %s", d, d.Detail)
	}
	r.halt(m)
	m.cfg.Keyring = old
	r.restart(m)
	h := secretHello("n2", 4)
	a = join(t, m.Server, h)
	spec := wanting("k", "a")
	spec.Groups[0].Resources.GPU.Count = 4
	r.submit(spec, "")
	if d := a.ask(a.awaitLeases(1)[0].Lease.ID); d.Code != gpuai.Internal || d.Values != nil || !strings.Contains(d.Detail, next.KeyIDs()[0]) {
		t.Errorf("without the key: %v %s", d, d.Detail)
	}
}

func TestRegionWithoutAKeyringTakesNoSecrets(t *testing.T) {
	t.Parallel()
	r := startRegion(t, 1)
	_, err := r.leader().PutSecret(context.Background(), "a", gpuai.SecretRequest{Value: []byte("x"), Tenant: gpuai.DefaultTenant})
	if !errors.Is(err, errNoKeyring) {
		t.Errorf("%v", err)
	}
}
