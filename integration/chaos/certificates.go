package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/examples/beat"
	"github.com/gpuai/gpuai/integration/oracle"
	"github.com/gpuai/gpuai/internal/identity"
	"github.com/gpuai/gpuai/store"
)

// briefTTL is how long certificates are good where their renewal is looked at.
const briefTTL = 12 * time.Second

// playCertificates has certificates end while servers die, and revokes a node.
func playCertificates(s *scene) error {
	renewed := s.row("33", "certificates of 12 s, and each server killed with -9 in turn and started again without a token",
		"servers come back with their own certificates; all certificates are renewed, and shown, meanwhile; no lease ends, tasks beat on")
	revoked := s.row("33", "a node revoked, the leader killed with -9 at once, and the node's agent started again",
		"every server refuses the node, also the one that comes back; "+inTheEndOf("the node")+"; with a token that names it the node joins again")
	if s.run.options.insecure {
		err := errors.New("regions without authentication have no certificates")
		s.skip(renewed, err)
		s.skip(revoked, err)
		return nil
	}
	revoked.Recovered = deathToElsewhere
	f, err := s.newFieldOf("certificates", briefTTL.String())
	if err != nil {
		return err
	}
	kept, err := f.startHost("kept", 1, nil, f.addrs())
	if err != nil {
		return err
	}
	bad, err := f.startHost("bad", tasksPerHost, nil, f.addrs())
	if err != nil {
		return err
	}
	if _, err := f.beatOn(renewed, "kept", "kept"); err != nil {
		return err
	}
	for k := range tasksPerHost {
		if _, err := f.beatOn(revoked, fmt.Sprint("bad-", k), "bad", "spare"); err != nil {
			return err
		}
	}
	if err := f.renewals(renewed, kept, bad); err != nil {
		return err
	}
	s.end(renewed)
	if err := f.revocation(revoked, kept, bad); err != nil {
		return err
	}
	f.oneRunner(revoked)
	if err := f.digests(revoked, 0); err != nil {
		return err
	}
	s.end(revoked)
	return f.killAllOf()
}

func inTheEndOf(whose string) string {
	return whose + "'s tasks are fenced within their TTL and run elsewhere no sooner than TTL + grace, never twice at once"
}

// renewals kills the servers while all certificates are renewed.
func (f *field) renewals(w *row, hosts ...*host) error {
	began := time.Now()
	for _, m := range f.members {
		if err := m.proc.Kill(); err != nil {
			return err
		}
		w.Injected++
		if err := f.startAll(); err != nil {
			return err
		}
	}
	// What is good for longer than a certificate of the start is a renewed one; two
	// lifetimes are more than one renewal.
	after := began.Add(2 * briefTTL)
	for _, m := range f.members {
		if err := f.showsAfter(m, after); err != nil {
			return err
		}
	}
	for _, h := range hosts {
		err := f.until(3*briefTTL, "agent "+h.id+" to renew its certificate", func(context.Context) error {
			c, err := h.certificate(f)
			if err == nil && !c.NotAfter.After(after) {
				err = fmt.Errorf("it ends at %s", c.NotAfter)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	w.note("all certificates of %s had been renewed twice after %.0f s", briefTTL, time.Since(began).Seconds())
	for _, l := range f.watcher.All(func(l *oracle.Lease) bool { return l.Ended != 0 }) {
		w.fail("lease %s on node %s ended, cause %s", l.Token, l.Node, l.Cause)
	}
	now := beat.Boottime()
	for _, t := range f.tasks {
		if err := f.beatsOn(t.first, now); err != nil {
			w.fail("%v", err)
		}
	}
	return nil
}

// showsAfter waits until a server shows who connects a certificate that is good
// after a moment.
func (f *field) showsAfter(m *member, t time.Time) error {
	return f.until(3*briefTTL, "server "+m.id+" to renew its certificate", func(ctx context.Context) error {
		d := tls.Dialer{Config: f.access.TLS()}
		c, err := d.DialContext(ctx, "tcp", m.http)
		if err != nil {
			return err
		}
		defer c.Close()
		if shown := c.(*tls.Conn).ConnectionState().PeerCertificates[0]; !shown.NotAfter.After(t) {
			return fmt.Errorf("the one that it shows ends at %s", shown.NotAfter)
		}
		return nil
	})
}

func (h *host) data(f *field) string { return filepath.Join(f.beats, "host-"+h.id) }

// certificate reads an agent's own.
func (h *host) certificate(f *field) (*x509.Certificate, error) {
	text, err := os.ReadFile(filepath.Join(h.data(f), store.CredentialFile))
	if err != nil {
		return nil, err
	}
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return nil, errors.New("there is no certificate in the agent's file")
		}
		if block.Type == "CERTIFICATE" {
			return x509.ParseCertificate(block.Bytes)
		}
	}
}

// revocation revokes a node whose tasks run, and has it join again in the end.
func (f *field) revocation(w *row, kept, bad *host) error {
	if _, err := f.startHost("spare", tasksPerHost, nil, f.addrs()); err != nil {
		return err
	}
	lead, _, err := f.leader()
	if err != nil {
		return err
	}
	bad.proc.MayEnd()
	if _, err := f.api.RevokeIdentity(f, gpuai.Identity{Kind: gpuai.IdentityNode, Name: bad.id}); err != nil {
		return fmt.Errorf("revoke a node: %w", err)
	}
	since := beat.Boottime()
	w.Injected++
	if err := lead.proc.Kill(); err != nil {
		return err
	}
	f.say("node %s revoked, leader %s killed", bad.id, lead.id)
	if err := errors.Join(f.startAll(), bad.proc.Kill()); err != nil {
		return err
	}
	if bad.proc, err = f.nursery.Start("agent-"+bad.id, nil, bad.argv...); err != nil {
		return err
	}
	bad.proc.MayEnd()
	if err := f.digests(w, 0); err != nil { // all have applied it
		return err
	}
	for _, m := range f.members {
		f.refuses(w, m, kept, bad)
	}
	for _, t := range f.tasks {
		if t.host != bad.id {
			continue
		}
		if err := f.moved(w, t, since, 1); err != nil {
			return err
		}
	}
	n, err := f.api.Node(f, gpuai.NodeID(bad.id))
	if err != nil || n.State == gpuai.NodeReady {
		w.fail("the revoked node is %s (%v)", n.State, err)
	}
	if err := bad.proc.Kill(); err != nil {
		return err
	}
	return f.joinAgain(bad)
}

// refuses checks that a server takes one node's certificate and not another's.
func (f *field) refuses(w *row, m *member, good, bad *host) {
	if err := f.knocks(m, good); err != nil {
		w.fail("server %s refuses node %s, which is not revoked: %v", m.id, good.id, err)
	}
	if err := f.knocks(m, bad); err == nil {
		w.fail("server %s lets node %s in, which is revoked", m.id, bad.id)
	}
}

// knocks asks a server who a host is, over the host's certificate.
func (f *field) knocks(m *member, h *host) error {
	text, err := os.ReadFile(filepath.Join(h.data(f), store.CredentialFile))
	if err != nil {
		return err
	}
	held, err := identity.ReadCredential(text, nil)
	if err != nil {
		return err
	}
	source := identity.NewSource(identity.SourceConfig{})
	source.Set(held)
	c, err := client.New(client.Config{Addrs: f.urlsOf([]string{m.http}), TLS: source.ClientConfig(), RetryFor: -1})
	if err != nil {
		return err
	}
	_, err = c.WhoAmI(f)
	return err
}

// joinAgain has a revoked node join with a token that names it, as its operator does.
func (f *field) joinAgain(h *host) error {
	made, err := f.api.CreateJoinToken(f, gpuai.JoinTokenRequest{Join: gpuai.IdentityNode, Name: h.id})
	if err != nil {
		return fmt.Errorf("make a join token for %s: %w", h.id, err)
	}
	join := exec.CommandContext(f, f.run.program("gpuai"), "agent", "join", "--id", h.id, "--data", h.data(f), f.members[0].http)
	join.Env = append(os.Environ(), "GPUAI_JOIN_TOKEN="+made.Token)
	if out, err := join.CombinedOutput(); err != nil {
		return fmt.Errorf("gpuai agent join: %w: %s", err, out)
	}
	return f.startAgain(h)
}
