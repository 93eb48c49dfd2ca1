package agent

import (
	"testing"

	"github.com/gpuai/gpuai/agent/image"
)

func TestPullingSaysHowFar(t *testing.T) {
	for _, c := range []struct {
		at   image.Progress
		want string
	}{
		{image.Progress{}, ""},
		{image.Progress{Phase: image.Resolve}, "resolving the image"},
		{image.Progress{Phase: image.Download, Done: 40 << 20, Total: 100 << 20, Layers: 3}, "pulling 40 % of 100.0 MiB in 3 layers"},
		{image.Progress{Phase: image.Download}, "pulling"},
		{image.Progress{Phase: image.Unpack, Done: 1, Total: 3 << 20, Layers: 1}, "unpacking 0 % of 3.0 MiB in 1 layers"},
		{image.Progress{Phase: image.Ready, Done: 1, Total: 1}, ""},
	} {
		var p pulling
		p.tell(c.at)
		if got := p.String(); got != c.want {
			t.Errorf("%+v: %q, want %q", c.at, got, c.want)
		}
	}
}
