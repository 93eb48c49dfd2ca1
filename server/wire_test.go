package server

import (
	"reflect"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

func TestBodiesBetweenServers(t *testing.T) {
	beats := []beat{
		{fsm.NodeRef{Node: "a", Incarnation: gpuai.MakeIncarnation(255, 1)}, 1},
		{fsm.NodeRef{Node: "", Incarnation: 0}, 0},
		{fsm.NodeRef{Node: "b", Incarnation: 3}, 1<<64 - 1},
	}
	outs := []outcome{{}, {Code: gpuai.Conflict, Incarnation: 7, Index: 9, Detail: "no"}, {Code: gpuai.NoLeader, Detail: "retry"}}
	cmds := [][]byte{{1, 2, 3}, {}, make([]byte, 300)}
	tests := []struct {
		name       string
		body       []byte
		read       func([]byte) (any, error)
		want, none any
	}{
		{"beats", appendBeats(nil, beats), func(b []byte) (any, error) { return readBeats(b) }, beats, []beat(nil)},
		{"outcomes", appendOutcomes(nil, outs), func(b []byte) (any, error) { return readOutcomes(b) }, outs, []outcome(nil)},
		{"commands", appendCommands(nil, cmds), func(b []byte) (any, error) { return readCommands(b) }, cmds, [][]byte(nil)},
		{"confirmation", (&confirmation{5, beats}).append(nil), func(b []byte) (any, error) { return readConfirmation(b) }, confirmation{5, beats}, nil},
	}
	for _, tt := range tests {
		if got, err := tt.read(tt.body); err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %v, %v", tt.name, got, err)
		}
		if got, err := tt.read(nil); tt.none != nil && (err != nil || !reflect.DeepEqual(got, tt.none)) {
			t.Errorf("%s of nothing: %v, %v", tt.name, got, err)
		}
		if _, err := tt.read(tt.body[:len(tt.body)-1]); err == nil {
			t.Errorf("%s that are cut short were read", tt.name)
		}
	}
}

func FuzzBodies(f *testing.F) {
	f.Add([]byte{1, 'a', 2, 3})
	f.Add([]byte{255, 255, 255, 255, 255, 255, 255, 255, 255, 1})
	f.Fuzz(func(_ *testing.T, b []byte) {
		// None of them may panic, or take more memory than the body has.
		_, _ = readBeats(b)
		_, _ = readOutcomes(b)
		_, _ = readCommands(b)
		_, _ = readConfirmation(b)
	})
}
