// Package wire is the binary format of log entries and commands.
//
// An entry is a fixed header and a batch of commands; a command is an envelope
// and a body. Numbers are little endian and of fixed width, strings have their
// length in front. The package is pure and total: whatever the bytes, a reader
// answers with a value within the limits of package gpuai or with an error, and
// what it accepts it writes again as it was.
//
// The hot path, a submit, is read as views of the entry's bytes: ReadJobView
// allocates nothing.
package wire
