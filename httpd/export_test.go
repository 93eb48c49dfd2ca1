package httpd

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

func TestExport(t *testing.T) {
	b := newTwin()
	s, doc := serve(t, b), newContract(t)
	for _, name := range []string{"a", "b"} {
		if resp, body := ask(t, s, "POST", "/v1/jobs", spec(name, 1, 1)); resp.StatusCode != 201 {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
	}
	resp, body := ask(t, s, "GET", "/v1/operator/export?since=11", "")
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/x-ndjson" {
		t.Fatalf("%d %v %s", resp.StatusCode, resp.Header, body)
	}
	var kinds []string
	for line := range strings.Lines(body) {
		var v any
		if err := decodeAny(line, &v); err != nil {
			t.Fatal(err)
		}
		if err := doc.doc.Components.Schemas["ExportLine"].Value.VisitJSON(v); err != nil {
			t.Errorf("%s does not fit the document: %v", line, err)
		}
		kinds = append(kinds, v.(map[string]any)["kind"].(string))
	}
	if got := strings.Join(kinds, " "); got != "begin event job job end" {
		t.Errorf("lines %s", got)
	}
}

// endless exports lines until the caller is gone, then fails.
type endless struct{ *twin }

func (endless) Export(ctx context.Context, _ uint64, f func(*gpuai.ExportLine) error) error {
	for range 10_000 {
		if err := f(&gpuai.ExportLine{Kind: gpuai.ExportBegin}); err != nil {
			return err
		}
	}
	return errors.Join(ctx.Err(), errors.New("disk"))
}

// An export that breaks off must not look whole.
func TestExportBreaksOff(t *testing.T) {
	s := serve(t, endless{newTwin()})
	resp, err := http.Get(s.URL + "/v1/operator/export")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("half an export ended like a whole one")
	}
	b := newTwin()
	b.fail = errors.New("disk")
	if resp, _ := ask(t, serve(t, b), "GET", "/v1/operator/export?consistency=stale", ""); resp.StatusCode != 500 {
		t.Errorf("an export that did not get far: %d", resp.StatusCode)
	}
}
