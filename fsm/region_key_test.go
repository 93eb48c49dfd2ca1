package fsm

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/gpuai/gpuai"
)

func regionKey(n byte) SecretKeyID { return SecretKeyID{n, 0xaa, 0xbb, 0xcc} }

func setKey(n byte, state gpuai.RegionKeyState, other byte) *SetRegionKey {
	c := &SetRegionKey{Key: regionKey(n), State: state}
	if other != 0 {
		c.Other = regionKey(other)
	}
	return c
}

func sealUnder(id SecretKeyID) []byte {
	return append(append([]byte{1}, id[:]...), bytes.Repeat([]byte{9}, 60)...)
}

// A key is offered, made active in place of another, and the other is retired once
// nothing is sealed under it. Each step may be repeated, and none taken back.
func TestRegionKeyRotates(t *testing.T) {
	r := newRegion(t)
	r.refuse(setKey(2, gpuai.KeyOffered, 0), gpuai.InvalidSpec) // below the level
	r.do(&SetFeatureLevel{Level: MaxLevel})
	first, second := authority(1), authority(2)
	first.Key, second.Key = sealUnder(regionKey(1)), sealUnder(regionKey(1))
	r.do(first)
	r.do(second)
	s := putSecret("a", "value")
	s.KeyID = regionKey(1)
	r.do(s)

	r.refuse(&SetRegionKey{State: gpuai.KeyOffered}, gpuai.InvalidSpec)
	r.refuse(setKey(2, gpuai.KeyOld, 0), gpuai.InvalidSpec)
	r.refuse(setKey(2, gpuai.KeyActive, 1), gpuai.NotFound)
	r.refuse(setKey(2, gpuai.KeyOffered, 9), gpuai.Conflict)
	if out := r.apply(setKey(3, gpuai.KeyOffered, 0)); out.Results[0].Code != gpuai.OK || !out.Trust {
		t.Fatalf("%+v", out)
	}
	r.refuse(setKey(2, gpuai.KeyOffered, 0), gpuai.Conflict) // another one is offered
	r.do(setKey(2, gpuai.KeyOffered, 3))
	r.do(setKey(2, gpuai.KeyOffered, 0)) // again
	r.refuse(setKey(2, gpuai.KeyRetired, 0), gpuai.Conflict)
	r.refuse(setKey(2, gpuai.KeyActive, 0), gpuai.Conflict)
	r.do(setKey(2, gpuai.KeyActive, 1))
	r.do(setKey(2, gpuai.KeyActive, 1)) // again
	r.refuse(setKey(1, gpuai.KeyActive, 2), gpuai.Conflict)
	r.refuse(setKey(2, gpuai.KeyRetired, 0), gpuai.Conflict)
	if got := fmt.Sprint(r.m.SealCounts()); got != "[{[1 170 187 204] 1 2}]" {
		t.Error(got)
	}
	r.refuse(setKey(1, gpuai.KeyRetired, 0), gpuai.PreconditionFailed)

	s.Reseal, s.Box, s.KeyID = 1, s.Seal, regionKey(2)
	r.do(s)
	for _, c := range []*PutAuthority{first, second} { // the one that was replaced, too
		c.Replaces, c.Key = c.Hash, sealUnder(regionKey(2))
		r.refuse(setKey(1, gpuai.KeyRetired, 0), gpuai.PreconditionFailed)
		r.do(c)
	}
	r.do(setKey(1, gpuai.KeyRetired, 0))
	r.do(setKey(1, gpuai.KeyRetired, 0)) // again
	r.refuse(setKey(1, gpuai.KeyOffered, 0), gpuai.Conflict)
	again := restored(t, r.m)
	for _, m := range []*Machine{r.m, again} {
		if got := fmt.Sprint(m.RegionKeys(), m.SealCounts()); got != "[{[2 170 187 204] active} {[1 170 187 204] retired}] [{[2 170 187 204] 1 2}]" {
			t.Error(got)
		}
	}
	if again.Digest() != r.m.Digest() {
		t.Error("the restored state is another")
	}
}

// Retired keys are forgotten where there is no room for new ones; others are not.
func TestRegionKeysAreBounded(t *testing.T) {
	r := secured(t)
	for n := byte(2); n < MaxRegionKeys+1; n++ {
		r.do(setKey(n, gpuai.KeyOffered, 0))
		r.do(setKey(n, gpuai.KeyActive, n-1))
	}
	last := byte(MaxRegionKeys)
	r.refuse(setKey(last+1, gpuai.KeyOffered, 0), gpuai.TooLarge)
	r.do(setKey(7, gpuai.KeyRetired, 0))
	r.do(setKey(3, gpuai.KeyRetired, 0))
	r.do(setKey(last+1, gpuai.KeyOffered, 0))
	if n := len(r.m.RegionKeys()); n > MaxRegionKeys {
		t.Errorf("%d keys", n)
	}
	r.refuse(setKey(7, gpuai.KeyRetired, 0), gpuai.NotFound) // forgotten: it was retired first
}

// keyCommand returns a step of a rotation, or none that there is.
func (w *walk) keyCommand() Command {
	return setKey(byte(1+w.r.IntN(4)), gpuai.RegionKeyState(w.r.IntN(5)), byte(w.r.IntN(5)))
}
