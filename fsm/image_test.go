package fsm

import (
	"slices"
	"testing"

	"github.com/gpuai/gpuai"
)

// imageSpec is a job of one task in an image.
func imageSpec(name string) *gpuai.JobSpec {
	s := jobSpec(name, 1, 1)
	s.Groups[0].Task = gpuai.TaskSpec{Image: "team/app:v1", Args: []string{"--secret", ""}}
	s.Defaults()
	return s
}

// A task with an image goes only to a node that says it runs images, and is told
// of it, also by a machine that was restored.
func TestImageGoesToTheNodeWithARuntime(t *testing.T) {
	r := newest(t, nil)
	r.node("plain", 8)
	r.refuse(&SubmitJob{ID: r.newID(), Spec: imageSpec("early")}, gpuai.Unschedulable)
	n := nodeSpec("boxes", 8, "H100")
	n.Labels = map[string]string{gpuai.LabelOCI: gpuai.LabelYes}
	r.register(n)
	id := r.submit(imageSpec("image"))
	l := r.wantLive(id, 1)[0]
	if l.Node != "boxes" {
		t.Fatalf("it is leased to %s", l.Node)
	}
	for name, m := range map[string]*Machine{"": r.m, "restored": restored(t, r.m)} {
		a, ok := m.Assignment(l.ID)
		if !ok || a.Task.Runtime != gpuai.RuntimeOCI || a.Task.Image != "team/app:v1" || !slices.Equal(a.Task.Args, []string{"--secret", ""}) || len(a.Task.Command) > 0 {
			t.Errorf("%s: the agent is told %+v", name, a.Task)
		}
	}
}

// Scratch space is placed where there is that much, and the agent is told of it.
func TestScratchGoesToANodeThatHasIt(t *testing.T) {
	r := newest(t, nil)
	for id, room := range map[string]string{"a": "", "b": "1073741824", "c": "2147483648"} {
		n := nodeSpec(id, 8, "H100")
		n.Labels = map[string]string{gpuai.LabelOCI: gpuai.LabelYes, gpuai.LabelScratch: room}
		r.register(n)
	}
	s := imageSpec("scratch")
	s.Groups[0].Resources.Scratch, s.Groups[0].Resources.Shm = 2<<30, 1<<20
	s.Defaults()
	s.Defaults() // idempotent
	id := r.submit(s)
	l := r.wantLive(id, 1)[0]
	if l.Node != "c" || len(s.Groups[0].Constraints) != 2 {
		t.Fatalf("it is leased to %s by %+v", l.Node, s.Groups[0].Constraints)
	}
	for name, m := range map[string]*Machine{"": r.m, "restored": restored(t, r.m)} {
		if a, ok := m.Assignment(l.ID); !ok || a.Scratch != 2<<30 || a.Shm != 1<<20 {
			t.Errorf("%s: the agent is told %+v", name, a)
		}
	}
	big := imageSpec("too-large")
	big.Groups[0].Resources.Scratch = 4 << 30
	big.Defaults()
	r.refuse(&SubmitJob{ID: r.newID(), Spec: big}, gpuai.Unschedulable)
}

func TestImageNeedsItsLevel(t *testing.T) {
	r := newRegion(t)
	r.do(&SetFeatureLevel{Level: LevelPlacement - 1})
	r.node("a", 8)
	r.refuse(&SubmitJob{ID: r.newID(), Spec: imageSpec("image")}, gpuai.InvalidSpec)
	s := jobSpec("args", 1, 1)
	s.Groups[0].Task.Args = []string{"x"}
	r.refuse(&SubmitJob{ID: r.newID(), Spec: s}, gpuai.InvalidSpec)
	s = jobSpec("shm", 1, 1)
	s.Groups[0].Resources.Shm = 1
	r.refuse(&SubmitJob{ID: r.newID(), Spec: s}, gpuai.InvalidSpec)
}

// What a bundle shows of a job has neither its image's name nor its arguments.
func TestImageIsRedacted(t *testing.T) {
	s := imageSpec("image")
	var x Redaction
	x.spec(s)
	if got := s.Groups[0].Task; got.Image != "xxxxxxxxxxx" || !slices.Equal(got.Args, []string{"xxxxxxxx", ""}) {
		t.Errorf("%+v", got)
	}
}
