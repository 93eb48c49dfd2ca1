package httpd

import (
	"bytes"
	"context"
	"io"
	"strings"

	"github.com/gpuai/gpuai"
)

// twinObjects are the blobs that the twin's lease 7 of node gpu-1 has.
type twinObjects map[string][]byte

func (t *twin) holds(l *gpuai.StoreLease, keys ...string) error {
	for _, k := range keys {
		if l.Lease != 7 || l.Node != "gpu-1" || !strings.HasPrefix(k, "mine/") {
			return gpuai.NewError(gpuai.Forbidden, "that is no blob of a lease of the node")
		}
	}
	return nil
}

func (t *twin) GrantObjects(_ context.Context, a *gpuai.StoreAsk) (out gpuai.StoreGrants, err error) {
	for i := range a.Objects {
		if err := t.holds(&a.StoreLease, a.Objects[i].Key); err != nil {
			return out, err
		}
		out.Grants = append(out.Grants, gpuai.StoreGrant{
			URL: "https://store/" + a.Objects[i].Key, Header: map[string]string{"If-None-Match": "*"}, ExpiresIn: gpuai.Minute,
		})
	}
	return out, nil
}

func (t *twin) ListObjects(_ context.Context, l *gpuai.StoreLease, cursor string) (gpuai.StoreObjects, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := gpuai.StoreObjects{Objects: []gpuai.StoreObject{}, Next: "x"}
	if cursor != "" {
		out.Next = ""
	}
	for k, data := range t.objects {
		out.Objects = append(out.Objects, gpuai.StoreObject{Key: k, Bytes: int64(len(data))})
	}
	return out, t.holds(l, "mine/")
}

func (t *twin) DeleteObjects(_ context.Context, d *gpuai.StoreDelete) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range d.Keys {
		delete(t.objects, k)
	}
	return t.holds(&d.StoreLease, d.Keys...)
}

func (t *twin) PutObject(_ context.Context, l *gpuai.StoreLease, op gpuai.StoreOp, r io.Reader) error {
	if err := t.holds(l, op.Key); err != nil {
		return err
	}
	data, err := io.ReadAll(r)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.objects == nil {
		t.objects = twinObjects{}
	}
	t.objects[op.Key] = data
	return err
}

func (t *twin) GetObject(_ context.Context, l *gpuai.StoreLease, key string) (io.ReadCloser, int64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	data, ok := t.objects[key]
	if err := t.holds(l, key); err != nil {
		return nil, 0, err
	}
	if !ok {
		return nil, 0, notThere("blob " + key)
	}
	return io.NopCloser(bytes.NewReader(data)), int64(len(data)), nil
}

const ofLease7 = `{"node":"gpu-1","lease":"7","incarnation":"1",`

// storeExchanges are requests about the region's store.
var storeExchanges = []exchange{
	{"POST", "/v1/agent/store/grants", ofLease7 + `"objects":[{"key":"mine/a"},{"put":true,"key":"mine/b","size_bytes":3}]}`, 200, nil},
	{"POST", "/v1/agent/store/grants", ofLease7 + `"objects":[{"key":"theirs/a"}]}`, 403, nil},
	{"POST", "/v1/agent/store/grants", ofLease7 + `"objects":[]}`, 400, nil},
	{"POST", "/v1/agent/store/grants", ofLease7 + `"objects":[` + strings.Repeat(`{"key":"mine/a"},`, gpuai.MaxStoreOps) + `{"key":"mine/a"}]}`, 400, nil},
	{"PUT", "/v1/agent/store/object?node=gpu-1&lease=7&key=mine/a", "abc", 200, []string{"Content-Type: application/octet-stream"}},
	{"PUT", "/v1/agent/store/object?node=gpu-1&lease=x&key=mine/a", "abc", 400, []string{"Content-Type: application/octet-stream"}},
	{"PUT", "/v1/agent/store/object?node=gpu-1&lease=8&key=mine/a", "abc", 403, []string{"Content-Type: application/octet-stream"}},
	{"GET", "/v1/agent/store/object?node=gpu-1&lease=7&key=mine/a", "", 200, nil},
	{"GET", "/v1/agent/store/object?node=gpu-1&lease=7&key=mine/b", "", 404, nil},
	{"GET", "/v1/agent/store/object?node=gpu-1&lease=7&key=theirs", "", 403, nil},
	{"GET", "/v1/agent/store/objects?node=gpu-1&lease=7", "", 200, nil},
	{"GET", "/v1/agent/store/objects?node=gpu-1&lease=7&cursor=x", "", 200, nil},
	{"GET", "/v1/agent/store/objects?node=gpu-2&lease=7", "", 403, nil},
	{"POST", "/v1/agent/store/objects:delete", ofLease7 + `"keys":["mine/a"]}`, 200, nil},
	{"POST", "/v1/agent/store/objects:delete", ofLease7 + `"keys":["theirs"]}`, 403, nil},
	{"POST", "/v1/agent/store/objects:delete", ofLease7 + `"keys":[]}`, 400, nil},
	{"DELETE", "/v1/agent/store/object?node=gpu-1&lease=7&key=mine/a", "", 405, nil},
}
