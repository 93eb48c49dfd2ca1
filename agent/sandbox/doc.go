// Package sandbox says what a task may do: it writes the OCI runtime's
// specification of a task's sandbox, and knows the runtimes of this host.
//
// A sandbox has namespaces of its own for users, processes, mounts, network,
// IPC, host name and control groups, no capabilities, a short list of system
// calls, a read-only root and no device but its lease's. docs/isolation.md has
// the table; the tests of package agent run a program inside that tries what it
// forbids, and print what it got.
//
// The package starts nothing: agent/watchdog does, and kills. So a runtime's
// own state, its control groups and its mounts are never needed to end a task;
// they are below what the watchdog removes.
package sandbox
