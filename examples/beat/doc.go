// Package beat lets a task leave a trace by which an outsider can check that
// the task never had two runners at once.
//
// A runner writes one line every 50 ms: its fencing token, which task it is,
// and CLOCK_BOOTTIME, which all processes of a host share and no change of the
// wall clock moves. Each runner has a file of its own, named for its token and
// its start, that is only appended to. Of two runners of one task, the last
// beat of the one must come before the first beat of the other, and the later
// one must have the greater token.
//
// The nouns are Identity (who beats), Beat (one line), Writer (a runner's
// trace as it is written) and Run (the same, read again).
package beat
