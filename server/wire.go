package server

import (
	"encoding/binary"
	"errors"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// Bodies between servers: numbers are uvarints, texts and commands are a
// length and their bytes.

// errWire is returned for a body that is cut short or has a length that is
// out of range.
var errWire = errors.New("the message between servers is malformed")

func appendBytes(b []byte, p string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(p))), p...)
}

// wireReader reads a body; after an error everything is zero.
type wireReader struct {
	b   []byte
	err error
}

func (r *wireReader) number() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.b, r.err = nil, errWire
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *wireReader) bytes() []byte {
	n := r.number()
	if n > uint64(len(r.b)) {
		r.b, r.err = nil, errWire
		return nil
	}
	p := r.b[:n:n]
	r.b = r.b[n:]
	return p
}

func (r *wireReader) more() bool { return len(r.b) > 0 }

// A beat is one agent's beat on its way to the leader.
type beat struct {
	fsm.NodeRef
	Seq uint64
}

func appendBeats(b []byte, beats []beat) []byte {
	for i := range beats {
		b = appendBytes(b, string(beats[i].Node))
		b = binary.AppendUvarint(b, uint64(beats[i].Incarnation))
		b = binary.AppendUvarint(b, beats[i].Seq)
	}
	return b
}

func readBeats(b []byte) (beats []beat, err error) {
	for r := (wireReader{b: b}); r.more() || r.err != nil; {
		var x beat
		x.Node = gpuai.NodeID(r.bytes())
		x.Incarnation = gpuai.Incarnation(r.number())
		x.Seq = r.number()
		if r.err != nil {
			return nil, r.err
		}
		beats = append(beats, x)
	}
	return beats, nil
}

// A confirmation answers a message of beats: the index of the entry that
// confirmed them, and which of them it did.
type confirmation struct {
	Index uint64
	Beats []beat
}

func (c *confirmation) append(b []byte) []byte {
	return appendBeats(binary.AppendUvarint(b, c.Index), c.Beats)
}

func readConfirmation(b []byte) (c confirmation, err error) {
	r := wireReader{b: b}
	if c.Index = r.number(); r.err != nil {
		return c, r.err
	}
	c.Beats, err = readBeats(r.b)
	return c, err
}

// An outcome is what became of one command. Its Index is 0 when it was not
// applied, or nobody knows; Code says which.
type outcome struct {
	Code        gpuai.Code
	Incarnation gpuai.Incarnation
	Index       uint64
	Detail      string
}

// settled reports whether the machine has judged the command.
func (o *outcome) settled() bool { return o.Index != 0 }

func appendOutcomes(b []byte, os []outcome) []byte {
	for i := range os {
		b = binary.AppendUvarint(b, uint64(os[i].Code))
		b = binary.AppendUvarint(b, uint64(os[i].Incarnation))
		b = binary.AppendUvarint(b, os[i].Index)
		b = appendBytes(b, os[i].Detail)
	}
	return b
}

func readOutcomes(b []byte) (os []outcome, err error) {
	for r := (wireReader{b: b}); r.more() || r.err != nil; {
		var o outcome
		o.Code = gpuai.Code(r.number())
		o.Incarnation = gpuai.Incarnation(r.number())
		o.Index = r.number()
		o.Detail = string(r.bytes())
		if r.err != nil {
			return nil, r.err
		}
		os = append(os, o)
	}
	return os, nil
}

func appendCommands(b []byte, cmds [][]byte) []byte {
	for _, c := range cmds {
		b = binary.AppendUvarint(b, uint64(len(c)))
		b = append(b, c...)
	}
	return b
}

func readCommands(b []byte) (cmds [][]byte, err error) {
	for r := (wireReader{b: b}); r.more() || r.err != nil; {
		c := r.bytes()
		if r.err != nil {
			return nil, r.err
		}
		cmds = append(cmds, c)
	}
	return cmds, nil
}
