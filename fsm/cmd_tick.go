package fsm

import "github.com/gpuai/gpuai/fsm/wire"

// Tick does nothing by itself: its entry's region time lets timers fire, and
// its work budget goes to the backlog. The leader proposes one when
// NextDeadline has come.
type Tick struct{}

// Append appends the encoded command to dst.
func (c *Tick) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeTick, env, func(b []byte) []byte { return b })
}

func applyTick(r *wire.Reader) Result {
	if r.Done() != nil {
		return malformed
	}
	return Result{}
}

// appendCommand frames a command whose body is written by body.
func appendCommand(dst []byte, typ uint8, env Envelope, body func([]byte) []byte) []byte {
	dst, at := wire.BeginCommand(dst, typ, 1, string(env.Tenant), env.Actor, env.Key)
	return wire.EndCommand(body(dst), at)
}
