package agent

import (
	"context"
	"errors"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/rclone/gofakes3"
	"github.com/rclone/gofakes3/s3mem"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/blobs"
)

// A grantingDialer is the fake region's servers as those that give leave to use its
// store. They judge no more than that a lease's node asks for what is below its task.
type grantingDialer struct {
	tcpDialer
	store *blobs.Store

	mu     sync.Mutex // guards below
	calls  map[string]int
	refuse *gpuai.Error // of every grant
}

var _ StoreClient = (*grantingDialer)(nil)

func (d *grantingDialer) count(what string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls[what]++
}

func (d *grantingDialer) counted(what string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls[what]
}

func (d *grantingDialer) GrantObjects(ctx context.Context, a *gpuai.StoreAsk) (out gpuai.StoreGrants, err error) {
	d.count("grants")
	d.mu.Lock()
	refuse := d.refuse
	d.mu.Unlock()
	if refuse != nil {
		return out, refuse
	}
	for _, op := range a.Objects {
		signed, err := d.store.Sign(ctx, blobs.Op{Put: op.Put, Key: op.Key, Bytes: op.Bytes}, true)
		if err != nil && !errors.Is(err, blobs.ErrUnsigned) {
			return out, err
		}
		out.Grants = append(out.Grants, gpuai.StoreGrant{URL: signed.URL, Header: signed.Header, ExpiresIn: gpuai.Minute})
	}
	return out, nil
}

func (d *grantingDialer) ListObjects(ctx context.Context, l gpuai.StoreLease, _ string) (out gpuai.StoreObjects, err error) {
	for e, err := range d.store.List(ctx, gpuai.CheckpointLeasePrefix(aTask, l.Lease)) {
		if err != nil {
			return out, err
		}
		out.Objects = append(out.Objects, gpuai.StoreObject{Key: e.Key, Bytes: e.Bytes})
	}
	return out, nil
}

func (d *grantingDialer) DeleteObjects(ctx context.Context, x *gpuai.StoreDelete) error {
	return d.store.Delete(ctx, x.Keys...)
}

func (d *grantingDialer) PutObject(ctx context.Context, _ gpuai.StoreLease, key string, data []byte) error {
	d.count("put")
	return d.store.Put(ctx, key, data)
}

func (d *grantingDialer) GetObject(ctx context.Context, _ gpuai.StoreLease, key string, limit int64) ([]byte, error) {
	d.count("get")
	data, err := d.store.Get(ctx, key, limit)
	if errors.Is(err, blobs.ErrNotFound) {
		return nil, gpuai.NewError(gpuai.NotFound, err.Error())
	}
	return data, err
}

// s3URL starts an S3 server that checks signatures, with credentials that this process's
// environment has.
func s3URL(t *testing.T) string {
	t.Helper()
	mem := s3mem.New()
	if err := mem.CreateBucket(t.Context(), "bucket"); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(gofakes3.New(mem, gofakes3.WithV4Auth(map[string]string{"the-id": "the-secret"})).Server())
	t.Cleanup(srv.Close)
	t.Setenv("AWS_ACCESS_KEY_ID", "the-id")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	return "s3://bucket/prefix?region=eu-west-1&endpoint=" + srv.URL
}

// withoutCredentials has what follows in this process find no credentials.
func withoutCredentials(t *testing.T) {
	t.Helper()
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} {
		t.Setenv(name, "")
		if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
	}
}

// granting returns a fixture whose region gives leave to use a store, and has an
// agent run there that has no credentials of it.
func granting(t *testing.T, url string) (*fixture, *grantingDialer) {
	t.Helper()
	f := newFixture(t)
	f.store = url
	d := &grantingDialer{store: f.stored(), calls: map[string]int{}}
	if err := d.store.Put(t.Context(), "opened", nil); err != nil { // it holds its credentials from now on
		t.Fatal(err)
	}
	withoutCredentials(t)
	f.run(func(c *Config) { c.Store, c.Dialer = StoreSigned, d })
	return f, d
}

// An agent without credentials of the store publishes, deletes what is not kept,
// goes on from a checkpoint, and keeps output, by leave of the region's servers.
func TestStoreByLeaveOfTheServers(t *testing.T) {
	for kind, url := range map[string]func(*testing.T) string{
		"file": func(t *testing.T) string { return "file://" + t.TempDir() + "/store" }, "s3": s3URL,
	} {
		t.Run(kind, func(t *testing.T) {
			f, d := granting(t, url(t))
			lease := f.grant(testNode, saving(`save 10 ten; told 10; save 20 twenty; told 20; save 30 thirty; told 30; sleep 0.3; save 40 thirty; told 40`))
			if r := f.last(lease); r.State != gpuai.ReportDone {
				t.Fatalf("%+v: %s", r, f.printed(lease, "stderr"))
			}
			next := f.grant(testNode, saving(`cat $RESUME_FROM/state`, f.kept(2)...))
			if r := f.last(next); r.State != gpuai.ReportDone || f.printed(next, "stdout") != "thirty\n" {
				t.Fatalf("%+v: %s %s", r, f.printed(next, "stdout"), f.printed(next, "stderr"))
			}
			prefix, left := gpuai.CheckpointLeasePrefix(aTask, lease), []string{}
			for e, err := range d.store.List(t.Context(), prefix) {
				if err != nil {
					t.Fatal(err)
				}
				left = append(left, e.Key)
			}
			if kept := f.kept(1); !slices.Contains(left, kept[0].Key) || len(left) > 6 {
				t.Errorf("%v are in the store, %s is kept", left, kept[0].Key)
			}
			eventually(t, "the output", func() bool {
				l, err := d.store.OpenLog(t.Context(), gpuai.LogPrefix(aTask, next))
				if err != nil {
					return false
				}
				c, err := l.Read(t.Context(), &gpuai.LogRequest{Stream: "stdout"})
				return err == nil && string(c.Data) == "thirty\n"
			})
			if d.counted("grants") == 0 || (d.counted("put") > 0) != (kind == "file") || (d.counted("get") > 0) != (kind == "file") {
				t.Errorf("%v", d.calls)
			}
		})
	}
}

// What the servers refuse is told to the task, as what the region refuses is; servers
// that know no grants are waited for, and the log says what to do.
func TestStoreThatIsRefused(t *testing.T) {
	f, d := granting(t, "file://"+t.TempDir()+"/store")
	d.mu.Lock()
	d.refuse = gpuai.NewError(gpuai.Conflict, "the lease has ended")
	d.mu.Unlock()
	lease := f.grant(testNode, saving(`save 1 one; told 1`))
	if r := f.last(lease); r.State != gpuai.ReportDone || !strings.Contains(f.printed(lease, "stdout"), `"code":"conflict"`) || len(f.kept(1)) != 0 {
		t.Fatalf("%+v %s", r, f.printed(lease, "stdout"))
	}
	err := judged(t.Context(), gpuai.NewError(gpuai.NotFound, "there is no such path"))
	var refused *gpuai.Error
	if errors.As(err, &refused) || !strings.Contains(err.Error(), "upgrade them") {
		t.Errorf("servers that know no grants: %v", err)
	}
}
