// Package watchdog is the process that runs an agent's tasks and ends them in
// time. It is apart from the agent and outlives it: an agent that hangs, is
// stopped or is killed cannot keep a task alive.
//
// One watchdog serves one data directory. It is the parent of every task and
// the subreaper of all that they fork. For each task it holds a deadline in a
// timer of CLOCK_BOOTTIME, armed before the task is forked; when the timer
// fires it kills everything of the task, by its cgroup where there is one and
// by what it finds in /proc, and goes on until nothing is left. It keeps exit
// codes until the agent has acknowledged them. It never opens the network, and
// needs nothing from the agent to fence.
//
// Nouns: a Spec says what to start, a Task what became of it, a Server is the
// watchdog, a Client the agent's end of its unix socket.
package watchdog
