package integration

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/rclone/gofakes3"
	"github.com/rclone/gofakes3/s3mem"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent"
	"github.com/gpuai/gpuai/client"
)

// An objectStore is an S3 server that checks signatures.
type objectStore struct {
	url    string
	signed atomic.Int64 // requests by signed URLs
}

func startObjectStore(t *testing.T) *objectStore {
	t.Helper()
	mem := s3mem.New()
	if err := mem.CreateBucket(t.Context(), "bucket"); err != nil {
		t.Fatal(err)
	}
	s := &objectStore{}
	fake := gofakes3.New(mem, gofakes3.WithV4Auth(map[string]string{"the-id": "the-secret"})).Server()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("X-Amz-Signature") {
			s.signed.Add(1)
		}
		fake.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	s.url = "s3://bucket/region?region=eu-west-1&endpoint=" + srv.URL
	return s
}

const guardedSave = `name: %s
type: batch
groups:
  - resources: {cpu: 2, memory: 64MiB}
    task:
      runtime: process
      script: |
        d=$GPUAI_CHECKPOINT_DIR/step-1
        mkdir $d.tmp && echo %s > $d.tmp/state && mv $d.tmp $d
        while ! [ -f $d.json ]; do sleep 0.05; done
        cat $d.json
        exec sleep 600
`

// saves runs a job that publishes a checkpoint and goes on, and returns its lease.
func (g *guarded) saves(token, name string) (l gpuai.Lease) {
	g.t.Helper()
	path := filepath.Join(g.dir, name+".yaml")
	if err := os.WriteFile(path, fmt.Appendf(nil, guardedSave, name, name), 0o600); err != nil {
		g.t.Fatal(err)
	}
	g.must(token, "", "run", path)
	c := g.client(token)
	eventually(g.t, patience, "checkpoint of "+name, func(ctx context.Context) error {
		leases, _, err := c.Leases(ctx, client.LeaseQuery{Job: name, Live: true})
		if err != nil {
			return err
		}
		if len(leases) != 1 || leases[0].Checkpoint == nil {
			return fmt.Errorf("%+v", leases)
		}
		l = leases[0]
		return nil
	})
	return l
}

func (g *guarded) client(token string) *client.Client {
	g.t.Helper()
	trust, err := os.ReadFile(filepath.Join(g.dir, "a", "ca.pem"))
	if err != nil {
		g.t.Fatal(err)
	}
	known := x509.NewCertPool()
	if !known.AppendCertsFromPEM(trust) {
		g.t.Fatal("no CA")
	}
	c, err := client.New(client.Config{Addrs: []string{g.url}, TLS: &tls.Config{RootCAs: known}, Token: gpuai.NewSecret(token)})
	if err != nil {
		g.t.Fatal(err)
	}
	return c
}

// node is a client with the certificate of a node: who is root there has it.
func (g *guarded) node(id string) *client.Client {
	g.t.Helper()
	src, err := agent.OpenIdentity(filepath.Join(g.dir, id))
	if err != nil || src == nil {
		g.t.Fatalf("node %s has no certificate: %v", id, err)
	}
	c, err := client.New(client.Config{Addrs: []string{g.url}, TLS: src.ClientConfig()})
	if err != nil {
		g.t.Fatal(err)
	}
	return c
}

func leaseOf(l *gpuai.Lease) gpuai.StoreLease {
	return gpuai.StoreLease{Node: l.Node, Lease: l.ID, Incarnation: l.Incarnation}
}

// A hostile node is who has a node's certificate, knows all names, and has leases of
// one tenant: what it can do in the store that holds another's checkpoints.
type hostileNode struct {
	t      *testing.T
	c      *client.Client
	mine   gpuai.Lease
	victim gpuai.Lease
}

// forbidsIt reports whether the region refuses, as not the lease's or as over.
func forbidsIt(err error) bool {
	return errors.Is(err, &gpuai.Error{Code: gpuai.Forbidden}) || errors.Is(err, &gpuai.Error{Code: gpuai.Conflict})
}

// tries asks for what is not its own, in each way that there is, and gets nothing.
func (h *hostileNode) tries() {
	h.t.Helper()
	v := &h.victim
	output := gpuai.LogPrefix(v.TaskRef, v.ID) + "index"
	up := gpuai.CheckpointLeasePrefix(h.mine.TaskRef, h.mine.ID) + "../../../" + strings.TrimPrefix(v.Checkpoint.Key, "checkpoints/")
	pretended := leaseOf(v)
	pretended.Node = h.mine.Node
	for who, l := range map[string]gpuai.StoreLease{"its own lease": leaseOf(&h.mine), "the victim's lease": pretended, "the victim's node": leaseOf(v)} {
		for _, key := range []string{v.Checkpoint.Key, output, up, strings.ReplaceAll(v.Checkpoint.Key, "/", "%2F")} {
			_, read := h.c.GrantObjects(h.t.Context(), &gpuai.StoreAsk{StoreLease: l, Objects: []gpuai.StoreOp{{Key: key}}})
			_, write := h.c.GrantObjects(h.t.Context(), &gpuai.StoreAsk{StoreLease: l, Objects: []gpuai.StoreOp{{Put: true, Key: key, Bytes: 5}}})
			for what, err := range map[string]error{
				"read": read, "replace": write,
				"delete": h.c.DeleteObjects(h.t.Context(), &gpuai.StoreDelete{StoreLease: l, Keys: []string{key}}),
			} {
				if !forbidsIt(err) {
					h.t.Errorf("%s %s by %s: %v", what, key, who, err)
				}
			}
		}
		if list, err := h.c.ListObjects(h.t.Context(), l, ""); err == nil {
			for _, o := range list.Objects {
				if !strings.HasPrefix(o.Key, gpuai.CheckpointLeasePrefix(h.mine.TaskRef, h.mine.ID)) {
					h.t.Errorf("by %s it is told of %s", who, o.Key)
				}
			}
		} else if !forbidsIt(err) {
			h.t.Error(err)
		}
	}
}

// uses makes a request of a URL that it was given, or has changed.
func (h *hostileNode) uses(method, url string, header map[string]string, body string) (int, string) {
	h.t.Helper()
	req, err := http.NewRequestWithContext(h.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	for name, value := range header {
		req.Header.Set(name, value)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

// TestHostileNodeAndTheStore has two tenants' tasks save by agents that have no
// credentials of the store, over TLS and by real processes, and lets who has one node's
// certificate try for the other tenant's checkpoints and output.
func TestHostileNodeAndTheStore(t *testing.T) {
	t.Parallel()
	s := startObjectStore(t)
	g, team, other := startGuardedWith(t, func(c *exec.Cmd) {
		c.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID=the-id", "AWS_SECRET_ACCESS_KEY=the-secret", "AWS_EC2_METADATA_DISABLED=true")
	}, "--store", s.url)
	g.joins("n1", "--oci-runtime", "none", "--allow-process-runtime")
	victim := g.saves(team, "precious")
	host := g.joins("n2", "--oci-runtime", "none", "--allow-process-runtime")
	mine := g.saves(other, "bait")
	if victim.Node != "n1" || mine.Node != "n2" || s.signed.Load() == 0 {
		t.Fatalf("%s and %s, %d requests by signed URLs", victim.Node, mine.Node, s.signed.Load())
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", host.cmd.Process.Pid))
	if err != nil || bytes.Contains(environ, []byte("the-secret")) {
		t.Fatalf("the agent has credentials of the store: %v", err)
	}
	h := &hostileNode{t, g.node("n2"), mine, victim}
	h.tries()

	own := gpuai.StoreOp{Put: true, Key: gpuai.CheckpointLeasePrefix(mine.TaskRef, mine.ID) + "chunks/" + strings.Repeat("0a", 32), Bytes: 5}
	ask := gpuai.StoreAsk{StoreLease: leaseOf(&mine), Objects: []gpuai.StoreOp{own, {Key: mine.Checkpoint.Key}}}
	grants, err := h.c.GrantObjects(t.Context(), &ask)
	if err != nil {
		t.Fatal(err)
	}
	put, get := grants.Grants[0], grants.Grants[1]
	if code, text := h.uses("GET", get.URL, get.Header, ""); code != http.StatusOK || !strings.Contains(text, `"path":"state"`) {
		t.Errorf("its own checkpoint: %d %s", code, text)
	}
	for name, u := range map[string]string{
		"another key":  strings.Replace(get.URL, mine.Checkpoint.Key, victim.Checkpoint.Key, 1),
		"its prefix":   strings.Replace(get.URL, mine.Checkpoint.Key, "checkpoints/", 1),
		"a later end":  strings.Replace(get.URL, "X-Amz-Expires=", "X-Amz-Expires=9", 1),
		"no signature": strings.Split(get.URL, "?")[0],
	} {
		if code, text := h.uses("GET", u, get.Header, ""); code == http.StatusOK {
			t.Errorf("%s: %s", name, text)
		}
	}
	if code, text := h.uses("PUT", strings.Replace(put.URL, own.Key, victim.Checkpoint.Key, 1), put.Header, "12345"); code == http.StatusOK {
		t.Errorf("it has replaced the victim's: %s", text)
	}
	if code, text := h.uses("PUT", put.URL, put.Header, "12345"); code != http.StatusOK {
		t.Errorf("its own: %d %s", code, text)
	}

	g.must(other, "", "job", "stop", "bait")
	eventually(t, patience, "end of what the lease may do", func(ctx context.Context) error {
		if _, err := h.c.GrantObjects(ctx, &ask); !errors.Is(err, &gpuai.Error{Code: gpuai.Conflict}) {
			return fmt.Errorf("leave behind the lease's end: %w", err)
		}
		return nil
	})
	if code, _ := h.uses("PUT", put.URL, put.Header, "67890"); code != http.StatusPreconditionFailed {
		t.Errorf("a replay of what was granted has replaced what was stored: %d", code)
	}
	h.tries()
	g.must(team, "", "job", "stop", "precious")
	output := gpuai.StoreAsk{StoreLease: leaseOf(&victim), Objects: []gpuai.StoreOp{{Put: true, Key: gpuai.LogPrefix(victim.TaskRef, victim.ID) + "index", Bytes: 5}}}
	eventually(t, patience, "output in the store", func(ctx context.Context) error {
		if _, err := g.node("n1").GrantObjects(ctx, &output); !errors.Is(err, &gpuai.Error{Code: gpuai.PreconditionFailed}) {
			return fmt.Errorf("output that is complete may be written again: %w", err)
		}
		return nil
	})
}
