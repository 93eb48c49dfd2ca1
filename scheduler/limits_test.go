package scheduler

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
)

func cpuShape(s *State, cpu int) (ShapeID, gpuai.Code) {
	return s.AddShape(fmt.Append(nil, "cpu", cpu), gpuai.Resources{CPU: gpuai.MilliCPU(cpu)}, nil)
}

// Shapes nobody uses are remembered up to a limit, the longest idle go first,
// and one that is used stays.
func TestIdleShapes(t *testing.T) {
	s := newState(t)
	kept, _ := cpuShape(s, 1_000_000)
	s.RetainShape(kept)
	for i := range MaxIdleShapes + 10 {
		if _, code := cpuShape(s, i); code != gpuai.OK {
			t.Fatalf("shape %d: %v", i, code)
		}
	}
	for i, want := range map[int]bool{0: false, 9: false, 10: true, MaxIdleShapes + 9: true, 1_000_000: true} {
		if _, ok := s.FindShape(fmt.Append(nil, "cpu", i)); ok != want {
			t.Errorf("shape %d is known: %v", i, ok)
		}
	}
	s.ReleaseShape(kept)
	s.ReleaseShape(kept) // one too many does nothing
	if _, ok := s.FindShape(fmt.Append(nil, "cpu", 10)); ok {
		t.Error("the longest idle shape did not make room")
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
}

// When all shapes are in use no more are taken; idle ones make room.
func TestMaxShapes(t *testing.T) {
	s := newState(t)
	for i := range MaxShapes {
		id, code := cpuShape(s, i)
		if code != gpuai.OK {
			t.Fatalf("shape %d: %v", i, code)
		}
		s.RetainShape(id)
		s.space.Commit()
	}
	before := dump(s)
	if _, code := cpuShape(s, MaxShapes); code != gpuai.TooLarge {
		t.Fatalf("one more: %v", code)
	}
	if dump(s) != before {
		t.Fatal("a rejected shape left a trace")
	}
	s.ReleaseShape(77)
	if id, code := cpuShape(s, MaxShapes); code != gpuai.OK || id != 77 {
		t.Fatalf("with one idle: shape %d, %v", id, code)
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
}

func TestMaxFilters(t *testing.T) {
	s := newState(t)
	add := func(i int) gpuai.Code {
		r := whole(1)
		for a := range gpuai.MaxAlternatives {
			r.GPU.Any = append(r.GPU.Any, gpuai.GPUAlternative{Model: fmt.Sprint(i, ".", a)})
		}
		id, code := s.AddShape(fmt.Append(nil, i), r, nil)
		if code == gpuai.OK {
			s.RetainShape(id)
		}
		s.space.Commit()
		return code
	}
	for i := range MaxFilters / gpuai.MaxAlternatives {
		if code := add(i); code != gpuai.OK {
			t.Fatalf("shape %d: %v", i, code)
		}
	}
	if code := add(-1); code != gpuai.TooLarge {
		t.Fatalf("one more: %v", code)
	}
	s.ReleaseShape(3)
	if code := add(-1); code != gpuai.OK {
		t.Fatalf("with idle filters: %v", code)
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
}

// A node that would need one pool too many changes nothing, and keeps the
// definition that it had.
func TestMaxPools(t *testing.T) {
	s := newState(t)
	labelled := func(i int) *NodeInfo {
		return &NodeInfo{CPU: 1000, Memory: 1, Labels: map[string]string{"host": fmt.Sprint(i)}}
	}
	for i := range MaxPools {
		if code := s.SetNode(uint32(i), labelled(i)); code != gpuai.OK {
			t.Fatalf("node %d: %v", i, code)
		}
		s.SetOpen(uint32(i), true)
		s.space.Commit()
	}
	before := dump(s)
	for _, slot := range []uint32{5, MaxPools} {
		if code := s.SetNode(slot, labelled(-1)); code != gpuai.TooLarge {
			t.Fatalf("node %d: %v", slot, code)
		}
		if dump(s) != before {
			t.Fatalf("a rejected node %d left a trace", slot)
		}
	}
	s.RemoveNode(64)
	if code := s.SetNode(MaxPools, labelled(-1)); code != gpuai.OK {
		t.Fatalf("with one pool free: %v", code)
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
}

func TestInvalidInput(t *testing.T) {
	s := newState(t)
	before := dump(s)
	labels := map[string]string{}
	for i := range gpuai.MaxLabels + 1 {
		labels[fmt.Sprint(i)] = ""
	}
	for i, n := range []NodeInfo{
		{CPU: -1}, {Memory: -1}, {CPU: int64(gpuai.MaxCPU)}, {Memory: int64(gpuai.MaxMemory)},
		{Devices: gpus(gpuai.MaxGPUs+1, "x")}, {Devices: []DeviceInfo{{Memory: -1}}}, {Labels: labels},
	} {
		if code := s.SetNode(0, &n); code != gpuai.InvalidSpec {
			t.Errorf("node %d: %v", i, code)
		}
	}
	if code := s.SetNode(MaxNodes, &NodeInfo{}); code != gpuai.InvalidSpec {
		t.Errorf("slot %d: %v", MaxNodes, code)
	}
	many := make([]gpuai.GPUAlternative, gpuai.MaxAlternatives+1)
	for i, r := range []gpuai.Resources{
		{CPU: -1}, {CPU: gpuai.MaxCPU}, {Memory: -1}, {Memory: gpuai.MaxMemory},
		{GPU: gpuai.GPURequest{Count: gpuai.MaxGPUs + 1}},
		{GPU: gpuai.GPURequest{Count: 2, Share: gpuai.Share{Milli: 1}}},
		{GPU: gpuai.GPURequest{Count: 1, Share: gpuai.Share{Milli: gpuai.WholeDevice}}},
		{GPU: gpuai.GPURequest{Any: many[:1]}}, {GPU: gpuai.GPURequest{Count: 1, Any: many}},
		{GPU: gpuai.GPURequest{Count: 1, Any: []gpuai.GPUAlternative{{MemoryMin: -1}}}},
	} {
		if _, code := s.AddShape([]byte{byte(i)}, r, nil); code != gpuai.InvalidSpec {
			t.Errorf("shape %d: %v", i, code)
		}
	}
	if _, code := s.AddShape(nil, whole(1), make([]gpuai.Constraint, gpuai.MaxConstraints+1)); code != gpuai.InvalidSpec {
		t.Errorf("constraints: %v", code)
	}
	if _, code := s.AddShape(nil, whole(1), []gpuai.Constraint{{Values: make([]string, gpuai.MaxValues+1)}}); code != gpuai.InvalidSpec {
		t.Errorf("values: %v", code)
	}
	// What names a node that is not there does nothing.
	s.RemoveNode(3)
	s.SetOpen(3, true)
	s.SetDevice(3, 0, true)
	s.Hold(3, 1, 0, 1, 1)
	s.Give(3, 1, 0, 1, 1)
	if dump(s) != before {
		t.Error("invalid input left a trace")
	}
}

// The largest key has room for the largest node.
func TestKeyBounds(t *testing.T) {
	k := makeKey(gpuai.MaxGPUs, int64(gpuai.MaxCPU)-1, MaxNodes-1)
	if keyPrefix(k) != gpuai.MaxGPUs || keyCPU(k) != uint64(gpuai.MaxCPU)-1 || keyNode(k) != MaxNodes-1 {
		t.Fatalf("%d %d %d", keyPrefix(k), keyCPU(k), keyNode(k))
	}
	s := newState(t, NodeInfo{})
	big := NodeInfo{CPU: int64(gpuai.MaxCPU) - 1, Memory: int64(gpuai.MaxMemory) - 1, Devices: gpus(gpuai.MaxGPUs, "H100")}
	if code := s.SetNode(MaxNodes-1, &big); code != gpuai.OK {
		t.Fatal(code)
	}
	s.SetOpen(MaxNodes-1, true)
	r := whole(gpuai.MaxGPUs)
	r.CPU, r.Memory = gpuai.MaxCPU-1, gpuai.MaxMemory-1
	id := shape(t, s, r)
	f, ok := s.Find(id)
	if !ok || f.Node != MaxNodes-1 || f.Devices != 1<<64-1 {
		t.Fatalf("%+v %v", f, ok)
	}
	s.Take(f, id)
	if _, ok := s.Find(id); ok {
		t.Fatal("it fits twice")
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
}

// Damaged bytes are refused, whatever they are, and cost nothing but an error.
func FuzzRestoreState(f *testing.F) {
	w := newWorld(&testing.T{}, 1)
	for range 60 {
		w.step()
	}
	f.Add(w.s.AppendState(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		s := New(mem.NewSpace())
		err := s.RestoreState(b)
		if err != nil && !errors.Is(err, errState) {
			t.Fatal(err)
		}
		if err != nil {
			return
		}
		again, saved := New(mem.NewSpace()), s.AppendState(nil)
		if err := again.RestoreState(saved); err != nil {
			t.Fatalf("what was restored from %x is written as %x, which is refused: %v", b, saved, err)
		}
		if got := again.AppendState(nil); !bytes.Equal(got, saved) {
			t.Fatalf("%x is restored and written as %x", saved, got)
		}
	})
}

func TestRestoreRefusesDamage(t *testing.T) {
	w := newWorld(t, 1)
	for range 100 {
		w.step()
	}
	good := w.s.AppendState(nil)
	for cut := range len(good) {
		if err := New(mem.NewSpace()).RestoreState(good[:cut]); !errors.Is(err, errState) {
			t.Fatalf("the first %d bytes of %d: %v", cut, len(good), err)
		}
	}
	if err := New(mem.NewSpace()).RestoreState(append(good, 0)); !errors.Is(err, errState) {
		t.Fatalf("one byte more: %v", err)
	}
}
