// Package probe is a task that tries to get out. Each Probe is one attempt with
// the outcomes that a closed sandbox gives; any other means that it is open.
// The program gpuai-probe runs them all and prints a line of JSON for each.
//
// Attempts are made by plain system calls, in a process that expects to be
// killed by none of them. Those that would harm the host if they worked name
// something that is not there.
package probe
