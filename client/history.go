package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
)

// JobEvents returns a page of what happened to a job, retired or not, in order.
func (c *Client) JobEvents(ctx context.Context, ref string, p Page) ([]gpuai.Event, string, error) {
	out, err := get[struct {
		Events []gpuai.Event `json:"events"`
		Next   string        `json:"next_cursor"`
	}](ctx, c, jobPath(ref)+"/events", p.values())
	return out.Events, out.Next, err
}

// exportBuffer is what is read of an export at once; a longer line has room
// too, up to maxExportLine.
const (
	exportBuffer  = 64 << 10
	maxExportLine = 16 << 20
)

// Export calls f for each line of an export, as it came (without its end, not
// kept) and decoded. since leaves out history up to an index. No other server
// is tried once f was called; an export that ended without an error is whole.
func (c *Client) Export(ctx context.Context, since uint64, f func(raw []byte, l *gpuai.ExportLine) error) error {
	v := url.Values{}
	if since > 0 {
		v.Set("since", strconv.FormatUint(since, 10))
	}
	return c.readLines(ctx, "/v1/operator/export", v, func(body io.Reader) error { return readExport(body, f) })
}

// readLines gives f the body of an answer of lines, once: another server would begin anew.
func (c *Client) readLines(ctx context.Context, path string, query url.Values, f func(body io.Reader) error) error {
	r := request{method: http.MethodGet, path: path, query: query, accept: "application/x-ndjson", stream: true}
	var failed error // f's own
	err := c.round(ctx, &r, func(res *http.Response) error {
		failed = f(res.Body)
		return nil
	})
	if err != nil {
		return c.final(ctx, &r, nil, err)
	}
	return failed
}

func readExport(body io.Reader, f func(raw []byte, l *gpuai.ExportLine) error) error {
	r := bufio.NewReaderSize(body, exportBuffer)
	for {
		line, err := readLine(r)
		if errors.Is(err, io.EOF) {
			err = errors.New("the connection ended")
		}
		if err != nil {
			return &gpuai.Error{Code: gpuai.Internal, Detail: "the export broke off: go on with it from where it came to (" + err.Error() + ")"}
		}
		var l gpuai.ExportLine
		if err := json.Unmarshal(line, &l); err != nil {
			return fmt.Errorf("decoding a line of the export: %w", err)
		}
		if err := f(line, &l); err != nil || l.Kind == gpuai.ExportEnd {
			return err
		}
	}
}

// readLine returns a line without its end.
func readLine(r *bufio.Reader) ([]byte, error) {
	var long []byte
	for {
		b, err := r.ReadSlice('\n')
		switch {
		case err == nil && long == nil:
			return b[:len(b)-1], nil
		case err == nil:
			return append(long, b[:len(b)-1]...), nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		case len(long) > maxExportLine:
			return nil, fmt.Errorf("a line is longer than %d bytes", maxExportLine)
		}
		long = append(long, b...)
	}
}
