package watchdog

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/gpuai/gpuai"
)

// A Spec is a task to start.
type Spec struct {
	Lease       gpuai.Token       `json:"lease"`
	Incarnation gpuai.Incarnation `json:"incarnation"`
	Deadline    int64             `json:"deadline"` // CLOCK_BOOTTIME, ns
	// KillBudget is how long killing may take before the task is said to be
	// unkillable, in ns.
	KillBudget int64 `json:"kill_budget"`
	// Argv[0] is looked up in Env's PATH unless it has a slash.
	Argv []string `json:"argv"`
	Env  []string `json:"env"`
	Cwd  string   `json:"cwd"`
	// LogDir takes the output, in at most LogBytes for each stream.
	LogDir   string         `json:"log_dir"`
	LogBytes int64          `json:"log_bytes"`
	CPU      gpuai.MilliCPU `json:"cpu_milli"`
	Memory   gpuai.Bytes    `json:"memory_bytes"`
	PIDs     int64          `json:"pids"`
	NoFile   uint64         `json:"nofile"`
	// Box is set when the program is an OCI runtime, which runs the task.
	Box *Box `json:"box,omitempty"`
}

// A Box is where an OCI runtime finds the files of its task: Root, mounted at
// RootDir below Target in a mount namespace of the runtime's own, so that it is
// gone when the runtime is. Target is an empty directory that all tasks share. Such a task needs control groups; those that its runtime makes,
// at a relative path, are below the task's.
type Box struct {
	Root   string `json:"root"`
	Target string `json:"target"`
	// Base is the user of the host that the task's user 0 is, and Size how many
	// follow it; so are the groups. Root's files, of users 0 to Size-1, appear
	// as theirs.
	Base uint32 `json:"base"`
	Size uint32 `json:"size"`
	// Nodes are the device files of the task: the i-th is NodesDir/i below
	// Target, of its user 0, and may be opened by all of its users.
	Nodes []Node `json:"nodes,omitempty"`
	// Scratch is the task's room on the disk, nil without.
	Scratch *Scratch `json:"scratch,omitempty"`
	// Secrets are files of the task: the i-th is SecretPath(i) below Target.
	Secrets []Secret `json:"secrets,omitempty"`
	// Pins are namespaces that the runtime finds bound below Target, by name, and
	// that live as long as it does. Each is a path to open at the start, as that of
	// another process's open file.
	Pins map[string]string `json:"pins,omitempty"`
}

// A Node is a device file to make.
type Node struct {
	Block bool   `json:"block,omitzero"`
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
}

// State is what a task is doing.
type State uint8

// The states.
const (
	Starting State = iota
	Running
	// Unkillable: it outlived the kill budget and is still hunted.
	Unkillable
	// Exited: it and all its processes are gone. Kept until acknowledged.
	Exited
)

// By says who ended a task.
type By uint8

// The enders, in rising order: a later one takes over from an earlier.
const (
	ByItself By = iota
	ByStop
	ByKill
	ByDeadline
)

// A Task is what the watchdog knows of a lease's task.
type Task struct {
	Lease       gpuai.Token       `json:"lease"`
	Incarnation gpuai.Incarnation `json:"incarnation"` // that it was started under
	State       State             `json:"state"`
	PID         int               `json:"pid,omitzero"`
	PIDStart    uint64            `json:"pid_start,omitzero"` // clock ticks since the boot
	Cgroup      string            `json:"cgroup,omitzero"`
	Deadline    int64             `json:"deadline"`
	// By, Code and Reason are of an exited or unkillable task.
	By     By     `json:"by,omitzero"`
	Code   int32  `json:"code,omitzero"` // 128+n for signal n
	Reason string `json:"reason,omitzero"`
	// Limit is the one that it reached; "" for none.
	Limit Limit `json:"limit,omitzero"`
}

// A Limit is one that the control groups keep.
type Limit string

// The limits.
const (
	LimitMemory    Limit = "memory"
	LimitProcesses Limit = "processes"
)

// op is what a request asks for.
type op string

const (
	opHello    op = "hello"    // Incarnation → Tasks, Notes
	opStart    op = "start"    // Spec → Task
	opDeadline op = "deadline" // Lease, At
	opStop     op = "stop"     // Lease, Span = grace, Signal, Save
	opKill     op = "kill"     // Lease, Span = budget
	opAck      op = "ack"      // Lease: forget an exited task
	opList     op = "list"     // → Tasks
	opQuit     op = "quit"     // end the watchdog, unless a task runs
	opExec     op = "exec"     // Exec, with three files; the connection is the command's from then on
	opSignal   op = "signal"   // Signal, of that connection's command
)

type request struct {
	ID          uint64            `json:"id"`
	Op          op                `json:"op"`
	Lease       gpuai.Token       `json:"lease,omitzero"`
	Incarnation gpuai.Incarnation `json:"incarnation,omitzero"`
	At          int64             `json:"at,omitzero"`
	Span        int64             `json:"span,omitzero"`
	Signal      gpuai.Signal      `json:"signal,omitzero"` // to send first
	Save        int64             `json:"save,omitzero"`   // ns between the signal and the stop
	Spec        *Spec             `json:"spec,omitempty"`
	Exec        *ExecSpec         `json:"exec,omitempty"`
}

// A reply answers the request of its ID; with ID 0 it is news of one task.
type reply struct {
	ID    uint64 `json:"id,omitzero"`
	Error string `json:"error,omitzero"`
	Tasks []Task `json:"tasks,omitempty"`
	Notes string `json:"notes,omitzero"`
	// Code is of a command that has ended.
	Code *int32 `json:"code,omitempty"`
}

// maxMessage bounds a message: a spec of gpuai.MaxSpecBytes, with room for
// what the agent adds and for JSON's escapes.
const maxMessage = 4 << 20

func writeMessage(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode a message: %w", err)
	}
	if len(body) > maxMessage {
		return errors.New("a message of the watchdog's protocol is too long")
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}

func readMessage(r io.Reader, into any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxMessage {
		return errors.New("a message of the watchdog's protocol is too long")
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	return json.Unmarshal(body, into)
}
