package client

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/gpuai/gpuai"
)

const storePath = "/v1/agent/store/"

// GrantObjects asks for leave to use blobs of the region's store, for a lease.
func (c *Client) GrantObjects(ctx context.Context, a *gpuai.StoreAsk) (out gpuai.StoreGrants, err error) {
	err = c.do(ctx, request{method: http.MethodPost, path: storePath + "grants", body: a}, decode(&out))
	return out, err
}

// ListObjects returns a page of what a lease has stored of its task's checkpoints;
// "" is the first.
func (c *Client) ListObjects(ctx context.Context, l gpuai.StoreLease, cursor string) (gpuai.StoreObjects, error) {
	v := leaseQuery(&l)
	if cursor != "" {
		v.Set("cursor", cursor)
	}
	return get[gpuai.StoreObjects](ctx, c, storePath+"objects", v)
}

// DeleteObjects deletes of what a lease has stored.
func (c *Client) DeleteObjects(ctx context.Context, d *gpuai.StoreDelete) error {
	return c.do(ctx, request{method: http.MethodPost, path: storePath + "objects:delete", body: d, wait: 30 * gpuai.Second}, nothing)
}

// PutObject stores a blob by way of a server, where the servers keep the store's
// files.
func (c *Client) PutObject(ctx context.Context, l gpuai.StoreLease, key string, data []byte) error {
	v := leaseQuery(&l)
	v.Set("key", key)
	r := request{method: http.MethodPut, path: storePath + "object", query: v, raw: data, kind: "application/octet-stream", stream: true}
	return c.do(ctx, r, nothing)
}

// GetObject reads a blob of at most limit bytes likewise. A larger one is TooLarge.
func (c *Client) GetObject(ctx context.Context, l gpuai.StoreLease, key string, limit int64) (data []byte, err error) {
	v := leaseQuery(&l)
	v.Set("key", key)
	r := request{method: http.MethodGet, path: storePath + "object", query: v, accept: "application/octet-stream", stream: true}
	err = c.do(ctx, r, func(res *http.Response) (err error) {
		if res.ContentLength < 0 || res.ContentLength > limit {
			return gpuai.NewError(gpuai.TooLarge, fmt.Sprintf("%s has %d bytes, of at most %d", key, res.ContentLength, limit))
		}
		data = make([]byte, res.ContentLength)
		if _, err := io.ReadFull(res.Body, data); err != nil {
			return &transportError{err: fmt.Errorf("reading the server's answer: %w", err)}
		}
		return nil
	})
	return data, err
}

func leaseQuery(l *gpuai.StoreLease) url.Values {
	v := url.Values{"node": {string(l.Node)}, "lease": {l.Lease.String()}}
	if l.Incarnation != 0 {
		v.Set("incarnation", strconv.FormatUint(uint64(l.Incarnation), 10))
	}
	return v
}

// nothing reads no answer.
func nothing(*http.Response) error { return nil }
