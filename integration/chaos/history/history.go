// Package history records what clients asked of one register and were told,
// and checks that there is an order in which it all makes sense: one that
// keeps to the order of real time, and in which every read sees the last write
// before it (linearizability). The register is the region's policy, whose
// values are all different here.
package history

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// A Log is a history. It is safe for concurrent use.
type Log struct {
	began time.Time

	mu  sync.Mutex // guards below
	ops []op
}

// An op is one operation that was answered, or a write of which it is not known
// whether it was done.
type op struct {
	client  int
	write   bool
	value   int64
	call    int64
	ret     int64 // math.MaxInt64 while not known
	unknown bool
}

// New returns an empty history of a register that holds a value.
func New(first int64) *Log {
	return &Log{began: time.Now(), ops: []op{{write: true, value: first, call: -2, ret: -1}}}
}

// Now is the time for the calls of the other methods.
func (l *Log) Now() int64 { return int64(time.Since(l.began)) }

// Read notes that a client that asked at call was told a value just now.
func (l *Log) Read(client int, call, value int64) {
	l.add(op{client: client, value: value, call: call, ret: l.Now()})
}

// Wrote notes that a client's write of a value was acknowledged just now.
func (l *Log) Wrote(client int, call, value int64) {
	l.add(op{client: client, write: true, value: value, call: call, ret: l.Now()})
}

// MayHaveWritten notes a write of which it is not known whether it was done, or
// will be.
func (l *Log) MayHaveWritten(client int, call, value int64) {
	l.add(op{client: client, write: true, value: value, call: call, ret: math.MaxInt64, unknown: true})
}

func (l *Log) add(o op) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ops = append(l.ops, o)
}

// Len returns how many operations there are.
func (l *Log) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.ops) - 1
}

// ErrUndecided is returned by Check when it took too long.
var ErrUndecided = errors.New("it could not be decided in time whether the history is linearizable")

// Check returns nil for a history that is linearizable.
func (l *Log) Check(within time.Duration) error {
	l.mu.Lock()
	ops := settle(l.ops)
	l.mu.Unlock()
	history := make([]porcupine.Operation, 0, len(ops))
	for _, o := range ops {
		history = append(history, porcupine.Operation{ClientId: o.client, Input: o, Call: o.call, Output: o.value, Return: o.ret})
	}
	switch porcupine.CheckOperationsTimeout(register, history, within) {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return ErrUndecided
	}
	return fmt.Errorf("the history of %d operations is not linearizable%s", len(ops)-1, firstStale(ops))
}

// settle makes the history one that is quick to check, without changing the
// verdict. A write of which nothing is known is left out where no read saw it:
// if it was done, it may have been done behind everything. Where a read saw it,
// it was done before that read's answer.
func settle(ops []op) []op {
	seen := map[int64]int64{} // value: the first answer that has it
	for _, o := range ops {
		if at, ok := seen[o.value]; !o.write && (!ok || o.ret < at) {
			seen[o.value] = o.ret
		}
	}
	out := make([]op, 0, len(ops))
	for _, o := range ops {
		at, read := seen[o.value]
		switch {
		case !o.unknown:
			out = append(out, o)
		case read:
			o.ret = max(at, o.call)
			out = append(out, o)
		}
	}
	return out
}

// register is the sequential register.
var register = porcupine.Model{
	Init: func() any { return int64(0) },
	Step: func(state, input, output any) (bool, any) {
		o := input.(op)
		if o.write {
			return true, o.value
		}
		return state.(int64) == output.(int64), state
	},
}

// firstStale describes the first read that saw a value which another write had
// replaced before the read began, if there is one: the commonest way in which
// a history goes wrong.
func firstStale(ops []op) string {
	writes := map[int64]op{}
	for _, o := range ops {
		if o.write {
			writes[o.value] = o
		}
	}
	for _, r := range ops {
		w, known := writes[r.value]
		switch {
		case r.write:
			continue
		case !known:
			return fmt.Sprintf(": client %d read %d, which nobody had written", r.client, r.value)
		}
		for _, later := range ops {
			if later.write && later.call > w.ret && later.ret < r.call {
				return fmt.Sprintf(": client %d read %d from %.3f to %.3f s, but %d was written over it from %.3f to %.3f s",
					r.client, r.value, seconds(r.call), seconds(r.ret), later.value, seconds(later.call), seconds(later.ret))
			}
		}
	}
	return ""
}

func seconds(ns int64) float64 { return float64(ns) / 1e9 }
