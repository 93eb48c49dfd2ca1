// Package virtual runs whole regions in one synctest bubble each: their time is
// virtual, so elections, time-outs and partitions of minutes take no time, and
// no test waits for a busy machine. It has nothing but tests.
//
// Real are the servers (package server whole: hashicorp/raft, bolt files and
// their fsyncs, snapshots, the HTTP API, the port between servers, agents'
// sessions over WebSocket) and the client package, which makes every call.
//
// Not real are
//   - the network: connections in memory, with a random delay, that can be cut
//     one way or both. What is sent over a cut is kept and arrives after it, as
//     TCP's retransmissions would; a dial over a cut hangs;
//   - a crash: the files are copied while every goroutine of the bubble waits
//     for something, a moment at which no write is half done, and the server
//     goes on from the copy. What the process had in memory is lost; what the
//     kernel had not yet written is not. Half-done writes and power cuts are
//     package chaos's;
//   - a stopped process (pause): nothing reaches it or leaves it, and each
//     goroutine stops at its next line of log, such as the library's own just
//     before it steps down; others run on;
//   - the agents: simulated ones, over real sessions, that run nothing;
//   - the order of goroutines: seeds repeat what is done to a region, not how
//     its goroutines interleave.
//
// -times N plays each scenario with N times as many seeds, -first S begins with
// seed S, GPUAI_TEST_LOG=1 prints the servers' logs.
//
// Every call is recorded and the history of each job is checked for
// linearizability with porcupine. A call whose outcome is not known (a broken
// connection, a time-out, 504) may take effect at any later time, or never; one
// that was refused as no_leader must not have, since that is what it says.
package virtual
