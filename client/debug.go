package client

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/gpuai/gpuai"
)

// Fetch writes the answer to a GET of a path as it came to w, at most so many bytes
// of it, and reports whether there was more. It tries no other server once w
// was written to: after an error w may hold a part. The end of ctx bounds it.
func (c *Client) Fetch(ctx context.Context, path string, query url.Values, w io.Writer, most int64) (more bool, err error) {
	r := request{method: http.MethodGet, path: path, query: query, accept: "application/json, text/plain, */*", stream: true}
	err = c.round(ctx, &r, func(res *http.Response) error {
		n, err := io.CopyN(w, res.Body, most)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return &gpuai.Error{
				Code: gpuai.Internal, RequestID: res.Header.Get("X-Request-Id"), Detail: "the answer broke off: " + err.Error(),
			}
		}
		one := [1]byte{}
		k, _ := io.ReadFull(res.Body, one[:])
		more = n == most && k > 0
		return nil
	})
	if err != nil {
		return more, c.final(ctx, &r, nil, err)
	}
	return more, nil
}

// RaftOf returns the view of a named server, which any other passes on.
func (c *Client) RaftOf(ctx context.Context, id gpuai.ServerID) (gpuai.RaftStatus, error) {
	return get[gpuai.RaftStatus](ctx, c, "/v1/operator/raft", url.Values{"server": {string(id)}})
}

// DigestOf is Digest of a named server, which any other passes on.
func (c *Client) DigestOf(ctx context.Context, id gpuai.ServerID, index uint64) (gpuai.DigestAt, error) {
	v := url.Values{"server": {string(id)}}
	if index > 0 {
		v.Set("index", strconv.FormatUint(index, 10))
	}
	return get[gpuai.DigestAt](ctx, c, "/v1/operator/digest", v)
}
