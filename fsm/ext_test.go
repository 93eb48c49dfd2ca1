package fsm

import (
	"testing"

	"github.com/gpuai/gpuai"
)

// Below feature level 3 a region answers as builds do that do not know it.
func TestExtensionsNeedTheirLevel(t *testing.T) {
	for level, want := range map[uint32]gpuai.Code{1: gpuai.InvalidSpec, 2: gpuai.InvalidSpec, 3: gpuai.OK} {
		r := newRegion(t)
		if level > 1 {
			r.do(&SetFeatureLevel{Level: level})
		}
		r.node("a", 1)
		spec := jobSpec("j", 1, 1)
		spec.Begin = 1_700_000_000_000
		if got := r.apply(&SubmitJob{ID: r.newID(), Spec: spec}).Results[0]; got.Code != want {
			t.Errorf("level %d: a job with a time to begin is answered with %v, want %v", level, got.Code, want)
		}
		p := gpuai.DefaultPolicy()
		p.AgingEvery = gpuai.Hour
		if got := r.apply(&SetPolicy{Policy: p}).Results[0]; got.Code != want {
			t.Errorf("level %d: a policy with aging is answered with %v, want %v", level, got.Code, want)
		}
		if got := r.apply(&SetPolicy{Policy: gpuai.DefaultPolicy()}).Results[0]; got.Code != gpuai.OK {
			t.Errorf("level %d: the policy of old is answered with %v", level, got.Code)
		}
	}
}
