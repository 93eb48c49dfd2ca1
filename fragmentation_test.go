package gpuai

import "testing"

func TestFreeBlocks(t *testing.T) {
	var a, b FreeBlocks
	for _, n := range []uint32{0, 1, 3, 4, 8} {
		a.Add(n)
	}
	b.Add(9)
	a.Join(&b)
	want := FreeBlocks{Free: 25, Largest: 9, Usable: [3]uint32{22, 20, 16}}
	if a != want {
		t.Fatalf("%+v, want %+v", a, want)
	}
	for i, r := range []Milli{120, 200, 360} {
		if a.Ratio(i) != r {
			t.Errorf("gangs of %d: %d ‰, want %d", GangSizes[i], a.Ratio(i), r)
		}
	}
	if (&FreeBlocks{}).Ratio(0) != 0 {
		t.Error("nothing free is fragmented")
	}
}
