// Package decide is what an agent decides, and nothing else: no clock, no I/O,
// no goroutine, no randomness but a seed. Events go in with the time at which
// they are handled, actions come out. The agent carries the actions out; a
// simulation can drive the same code.
//
// All times are CLOCK_BOOTTIME in nanoseconds: suspended time counts, the wall
// clock has no say.
//
// The promise is that no task runs past its lease's fence, which is t_send of
// the newest beat whose ack named the lease, plus gpuai.Policy.FenceAfter. The
// watchdog keeps the same promise on its own; here a late tick looks at the
// fence before anything else.
package decide
