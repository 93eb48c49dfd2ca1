// Command hostile measures what others notice of a client that means harm: one
// that floods a region with submits, and one that opens connections by the
// thousand and asks for nothing, or sends headers that never end.
//
// It runs a server of its own, without TLS on loopback, where clients are told
// apart by their addresses. The probe is a client that sends a fixed number of
// submits and reads a second, and its latencies are taken with the harm and
// without, by turns in one run. The hostile clients are processes of their own,
// beside the server on the same machine: what they take of its processors is in
// the figures, too.
package main
