package wire

import (
	"bytes"
	"slices"

	"github.com/gpuai/gpuai"
)

// AppendShape appends the canonical form of what a task needs: constraints in
// order and each once, the values of in and not_in too. GPU alternatives keep
// their order, which is the user's preference. Equal needs have equal bytes, and
// the scheduler knows a shape by them.
//
//	cpu memory:i64 gpus:u8 alternatives:u8 share:u16, each alternative:
//	vendor model memory_min memory_max:i64; constraints:u8, each:
//	attribute op:u8 values:u8 value …
func AppendShape(b []byte, r *gpuai.Resources, cs []gpuai.Constraint) []byte {
	b = appendI64(b, int64(r.CPU))
	b = appendI64(b, int64(r.Memory))
	b = append(b, uint8(min(r.GPU.Count, 255)))
	b = appendCount8(b, len(r.GPU.Any))
	b = le.AppendUint16(b, uint16(r.GPU.Share.Milli))
	for i := range r.GPU.Any {
		a := &r.GPU.Any[i]
		b = AppendStr(AppendStr(b, a.Vendor), a.Model)
		b = appendI64(appendI64(b, int64(a.MemoryMin)), int64(a.MemoryMax))
	}
	if len(cs) == 0 {
		return append(b, 0)
	}
	encoded := make([][]byte, 0, len(cs))
	for i := range cs {
		encoded = append(encoded, appendConstraint(nil, &cs[i]))
	}
	slices.SortFunc(encoded, bytes.Compare)
	encoded = slices.CompactFunc(encoded, bytes.Equal)
	b = appendCount8(b, len(encoded))
	for _, e := range encoded {
		b = append(b, e...)
	}
	return b
}

// isSet reports whether the values of a constraint are a set.
func isSet(op gpuai.Op) bool { return op == gpuai.In || op == gpuai.NotIn }

func appendConstraint(b []byte, c *gpuai.Constraint) []byte {
	b = append(AppendStr(b, c.Attribute), uint8(c.Op))
	values := c.Values
	if isSet(c.Op) {
		values = slices.Clone(values)
		slices.Sort(values)
		values = slices.Compact(values)
	}
	b = appendCount8(b, len(values))
	for _, v := range values {
		b = AppendStr(b, v)
	}
	return b
}

// checkShape says why ReadShape would not take b, without allocating, or that it
// has more constraints than most.
func checkShape(b []byte, most int) error {
	r := Reader{b: b}
	r.within(r.I64(), 0, int64(gpuai.MaxCPU)-1)
	r.within(r.I64(), 0, int64(gpuai.MaxMemory)-1)
	gpus, alternatives := r.count8(gpuai.MaxGPUs), r.count8(gpuai.MaxAlternatives)
	share := r.within(int64(r.U16()), 0, int64(gpuai.WholeDevice)-1)
	if share > 0 && gpus != 1 || alternatives > 0 && gpus == 0 {
		r.Fail("a share or a kind of a device needs a device")
	}
	for range alternatives {
		r.alternative()
	}
	var last []byte
	for range r.count8(most) {
		c := r.constraint()
		if bytes.Compare(last, c) >= 0 {
			r.Fail("constraints are out of order")
			break
		}
		last = c
	}
	return r.Done()
}

func (r *Reader) alternative() {
	r.text()
	r.text()
	least := r.within(r.I64(), 0, int64(gpuai.MaxMemory)-1)
	if most := r.within(r.I64(), 0, int64(gpuai.MaxMemory)-1); most != 0 && most < least {
		r.Fail("a memory range is empty")
	}
}

// constraint checks a constraint and returns a view of it.
func (r *Reader) constraint() []byte {
	before := r.b
	r.text()
	op := gpuai.Op(r.within(int64(r.U8()), 0, int64(gpuai.AtLeast)))
	n := r.within(int64(r.U8()), 1, gpuai.MaxValues)
	if n > 1 && !isSet(op) {
		r.Fail("a constraint has too many values")
	}
	var last []byte
	for i := range n {
		v := r.text()
		if i > 0 && bytes.Compare(last, v) >= 0 {
			r.Fail("the values of a constraint are out of order")
			break
		}
		last = v
	}
	return before[:len(before)-len(r.b)]
}

// ReadShape reads what a task needs. It takes the canonical form only.
func ReadShape(b []byte) (gpuai.Resources, []gpuai.Constraint, error) {
	if err := checkShape(b, gpuai.MaxConstraints); err != nil {
		return gpuai.Resources{}, nil, err
	}
	r := NewReader(b)
	out := gpuai.Resources{CPU: gpuai.MilliCPU(r.I64()), Memory: gpuai.Bytes(r.I64())}
	out.GPU.Count = uint32(r.U8())
	alternatives := r.U8()
	out.GPU.Share.Milli = gpuai.Milli(r.U16())
	for range alternatives {
		out.GPU.Any = append(out.GPU.Any, gpuai.GPUAlternative{
			Vendor: r.Str(), Model: r.Str(), MemoryMin: gpuai.Bytes(r.I64()), MemoryMax: gpuai.Bytes(r.I64()),
		})
	}
	var cs []gpuai.Constraint
	for range r.U8() {
		c := gpuai.Constraint{Attribute: r.Str(), Op: gpuai.Op(r.U8())}
		for range r.U8() {
			c.Values = append(c.Values, r.Str())
		}
		cs = append(cs, c)
	}
	return out, cs, r.Done()
}
