package agent

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent/image"
)

func TestPullingSaysHowFar(t *testing.T) {
	for _, c := range []struct {
		at   image.Progress
		want string
	}{
		{image.Progress{}, ""},
		{image.Progress{Phase: image.Resolve}, "resolving the image"},
		{image.Progress{Phase: image.Download, Done: 40 << 20, Total: 100 << 20, Layers: 3}, "pulling 40 % of 100 MiB in 3 layers"},
		{image.Progress{Phase: image.Download}, "pulling"},
		{image.Progress{Phase: image.Unpack, Done: 1, Total: 3 << 20, Layers: 1}, "unpacking 0 % of 3 MiB in 1 layers"},
		{image.Progress{Phase: image.Ready, Done: 1, Total: 1}, ""},
	} {
		var p pulling
		p.tell(c.at)
		if got := p.String(); got != c.want {
			t.Errorf("%+v: %q, want %q", c.at, got, c.want)
		}
	}
}

// How far the start of a task is can be read while it waits for its image, and is
// nothing once it has ended.
func TestProgressIsAStream(t *testing.T) {
	asked := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if strings.Contains(req.URL.Path, "/manifests/") {
			<-asked
			http.NotFound(w, req)
		}
	}))
	defer slow.Close()
	change := boxed(t, t.TempDir())
	f := newFixture(t)
	f.run(func(c *Config) {
		change(c)
		c.Sandbox.Images.LocalRegistry = true
	})
	lease := f.grant(testNode, inImage(strings.TrimPrefix(slow.URL, "http://")+"/app:v1"))
	progress := func() string {
		return string(f.log(testNode, gpuai.LogRequest{Lease: lease, Stream: gpuai.StreamProgress}).Data)
	}
	eventually(t, "the start to say how far it is", func() bool { return progress() == "resolving the image" })
	close(asked)
	if r := f.last(lease); r.State != gpuai.ReportFailed || r.EndCode != gpuai.EndImagePull || !strings.Contains(r.Reason, "has no such image or tag") {
		t.Errorf("reported %+v", r)
	}
	if p := progress(); p != "" {
		t.Errorf("an ended task is %s", p)
	}
}
