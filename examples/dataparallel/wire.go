package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

// A message is all that ranks send one another: numbers, and what they mean.
type message struct {
	kind   kind
	stop   bool   // the sender was told to stop, or all shall
	run    uint64 // what is trained: config.fingerprint
	number uint64 // rank of a hello, step of the others
	values []float64
}

type kind uint8

const (
	// kindHello is a peer's first message to rank 0; values is empty.
	kindHello kind = iota + 1
	// kindState is rank 0's answer: its state after so many steps.
	kindState
	// kindGradient is a peer's part of a step: the gradient, then the loss.
	kindGradient
	// kindSum is the sum of all parts of a step.
	kindSum
	// kindWork is rank 0's beginning of a step of an elastic gang: which parts are
	// the peer's, those of the i-th of n members.
	kindWork
	// kindDone is rank 0's last: the final checkpoint is written.
	kindDone
)

const (
	wireMagic   = 0x31504447 // "GDP1" on the wire
	headerBytes = 32
)

// writeMessage sends m in one write.
func writeMessage(w io.Writer, m *message) error {
	b := make([]byte, 0, headerBytes+8*len(m.values))
	b = binary.LittleEndian.AppendUint32(b, wireMagic)
	stop := byte(0)
	if m.stop {
		stop = 1
	}
	b = append(b, byte(m.kind), stop, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, m.run)
	b = binary.LittleEndian.AppendUint64(b, m.number)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(m.values)))
	_, err := w.Write(appendFloats(b, m.values))
	return err
}

// readMessage receives a message that must be of the kind and run of like, and
// have as many values.
func readMessage(r io.Reader, like *message) (*message, error) {
	var h [headerBytes]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint32(h[:]) != wireMagic {
		return nil, errors.New("what it sent is not of this program")
	}
	m := &message{
		kind: kind(h[4]), stop: h[5] != 0,
		run: binary.LittleEndian.Uint64(h[8:]), number: binary.LittleEndian.Uint64(h[16:]),
	}
	n := binary.LittleEndian.Uint64(h[24:])
	switch {
	case m.run != like.run:
		return nil, errors.New("it trains something else: is it of this job, with the same flags?")
	case m.kind != like.kind || n != uint64(len(like.values)):
		return nil, fmt.Errorf("it sent message %d with %d values, not %d with %d: do all ranks run the same build?", m.kind, n, like.kind, len(like.values))
	}
	b := make([]byte, 8*n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	m.values = floats(b)
	return m, nil
}

func appendFloats(b []byte, values []float64) []byte {
	for _, v := range values {
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
	}
	return b
}

func floats(b []byte) []float64 {
	out := make([]float64, len(b)/8)
	for i := range out {
		out[i] = math.Float64frombits(binary.LittleEndian.Uint64(b[8*i:]))
	}
	return out
}
