package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
)

// An AuditQuery asks for the audit in a server's history archive.
type AuditQuery struct {
	Since  uint64         // entries up to this log index are left out
	Server gpuai.ServerID // "" is the one that is asked
}

// Audit calls f for each line of an export of the audit, as it came (without its
// end, not kept) and decoded. One that ended without an error is whole: its last
// line has the head.
func (c *Client) Audit(ctx context.Context, q AuditQuery, f func(raw []byte, l *gpuai.AuditLine) error) error {
	v := url.Values{}
	if q.Since > 0 {
		v.Set("since", strconv.FormatUint(q.Since, 10))
	}
	if q.Server != "" {
		v.Set("server", string(q.Server))
	}
	return c.readLines(ctx, "/v1/operator/audit", v, func(body io.Reader) error { return ReadAudit(body, f) })
}

// ReadAudit reads the lines of an export of the audit.
func ReadAudit(src io.Reader, f func(raw []byte, l *gpuai.AuditLine) error) error {
	r := bufio.NewReaderSize(src, exportBuffer)
	for n := 1; ; n++ {
		line, err := readLine(r)
		if errors.Is(err, io.EOF) {
			err = errors.New("it ends without the audit's head")
		}
		if err != nil {
			return &gpuai.Error{Code: gpuai.Internal, Detail: "the export of the audit broke off: ask again (" + err.Error() + ")"}
		}
		var l gpuai.AuditLine
		if err := json.Unmarshal(line, &l, json.RejectUnknownMembers(true)); err != nil {
			return fmt.Errorf("line %d of the audit: %w", n, err)
		}
		if err := f(line, &l); err != nil || l.Head != nil {
			return err
		}
	}
}
