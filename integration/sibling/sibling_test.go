package sibling

import (
	"encoding/binary"
	"testing"

	"github.com/gpuai/gpuai"
)

func outcome(code gpuai.Code, index uint64) []byte {
	b := binary.AppendUvarint(nil, uint64(code))
	b = binary.AppendUvarint(b, 7)
	b = binary.AppendUvarint(b, index)
	return AppendText(b, "why")
}

func TestOutcomes(t *testing.T) {
	two := append(outcome(gpuai.OK, 300), outcome(gpuai.OK, 301)...)
	got, err := Outcomes(two, 2)
	if want := (Outcome{gpuai.OK, 7, 301, "why"}); err != nil || len(got) != 2 || got[1] != want {
		t.Fatalf("%+v, %v", got, err)
	}
	for name, bad := range map[string][]byte{
		"fewer than asked": outcome(gpuai.OK, 300),
		"a refusal":        append(outcome(gpuai.OK, 300), outcome(gpuai.Conflict, 301)...),
		"an unknown fate":  append(outcome(gpuai.OK, 300), outcome(gpuai.OK, 0)...),
		"cut short":        two[:len(two)-1],
		"a false length":   append(two[:len(two)-4], 0xff, 0xff, 0xff),
	} {
		if got, err := Outcomes(bad, 2); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestNamed(t *testing.T) {
	if id, err := Named("server-2.peer.invalid:80"); err != nil || id != "server-2" {
		t.Errorf("%q, %v", id, err)
	}
}
