package gpuai

// This file is the protocol of exec: a command that is run beside a task, in
// its sandbox. Client and agent each open a WebSocket with the subprotocol
// ExecProtocol to a server, which passes every message on unchanged. A text
// message is an ExecControl in JSON, the client's first one a Start. A binary
// message is an ExecStream's byte and data; stdin without data is its end.

// ExecProtocol is the WebSocket subprotocol of exec.
const ExecProtocol = "gpuai.exec.v1"

const (
	// MaxExecMessage bounds a message in either direction, in bytes.
	MaxExecMessage = 512 << 10
	// MaxExecData bounds the data that is put into a message.
	MaxExecData = 32 << 10
	// MaxExecArgs bounds a command's arguments.
	MaxExecArgs = 1024
	// MaxExecCommand bounds all bytes of a command's arguments.
	MaxExecCommand = 64 << 10
)

// LabelExec is the label, with the value LabelYes, of nodes that run commands
// beside tasks: their agents can, and their operators have not denied it.
const LabelExec = "exec"

// An ExecStream is the first byte of a binary message.
type ExecStream byte

// The streams. With a terminal there is no stderr.
const (
	ExecStdin ExecStream = iota // from the client
	ExecStdout
	ExecStderr
)

// An ExecStart is what to run.
type ExecStart struct {
	Command []string `json:"command"`
	// TTY asks for a terminal, of the kind Term and of a size.
	TTY  bool     `json:"tty,omitzero"`
	Term string   `json:"term,omitzero"`
	Size ExecSize `json:"size,omitzero"`
}

// An ExecSize is a terminal's size in characters.
type ExecSize struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Validate says what is wrong with a start, "" when nothing is.
func (s *ExecStart) Validate() string {
	n := len(s.Term)
	for _, arg := range s.Command {
		n += len(arg) + 1
		for i := range len(arg) {
			if arg[i] == 0 {
				return "an argument of the command has a zero byte"
			}
		}
	}
	switch {
	case len(s.Command) == 0 || s.Command[0] == "":
		return "there is no command to run"
	case len(s.Command) > MaxExecArgs || n > MaxExecCommand:
		return "the command is too long"
	}
	for i := range len(s.Term) {
		if s.Term[i] <= ' ' || s.Term[i] > '~' || s.Term[i] == '=' {
			return "the kind of terminal is not well-formed"
		}
	}
	return ""
}

// An ExecControl is a text message; one of its fields is set.
type ExecControl struct {
	Start  *ExecStart `json:"start,omitzero"`  // from the client, first
	Resize *ExecSize  `json:"resize,omitzero"` // from the client
	Signal Signal     `json:"signal,omitzero"` // from the client
	Exit   *ExecExit  `json:"exit,omitzero"`   // to the client, last
}

// An ExecExit says how a command ended, or with Error that it was not run.
type ExecExit struct {
	Code  int32  `json:"code"` // 128+n for signal n
	Error string `json:"error,omitzero"`
}

// An ExecRequest asks an agent to run a command beside the task of a lease. The
// agent opens a WebSocket to the server under the ID, which is a secret of the
// two.
type ExecRequest struct {
	ID     string    `json:"id"`
	Server ServerID  `json:"server"`
	Lease  Token     `json:"lease"`
	Start  ExecStart `json:"start"`
}

// An ExecRule says whether commands may be run beside tasks.
type ExecRule uint8

// The rules.
const (
	ExecAllow ExecRule = iota
	ExecDeny
)

var execRuleNames = []string{"allow", "deny"}

// String returns the rule's text.
func (r ExecRule) String() string { return enumName(execRuleNames, uint8(r)) }

// MarshalText writes the rule's text.
func (r ExecRule) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads a rule's text.
func (r *ExecRule) UnmarshalText(b []byte) error {
	return enumParse(execRuleNames, "exec rule", b, (*uint8)(r))
}
