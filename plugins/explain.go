package plugins

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ErrProtocol is returned when the program is no driver of this contract: it
// prints something else than the handshake, or speaks another version.
var ErrProtocol = errors.New("not a driver for this agent")

// explain turns a failed start into one sentence: what happened, to which
// driver, and what to do about it. It judges by what the process did rather
// than by go-plugin's words.
func (p *Process) explain(cfg HostConfig, err error) error {
	who := fmt.Sprintf("driver %s (%s)", cfg.Name, cfg.Path)
	if p.child.ID() == "" {
		return fmt.Errorf("%w: %s cannot be started: %w: it must be a program for this machine", ErrBinary, who, err)
	}
	if errors.Is(err, ErrInvalid) {
		return fmt.Errorf("%s refuses its configuration: %w", who, err)
	}
	words := p.child.lines.words()
	if why := checkHandshake(p.child.firstLine()); why != "" {
		return fmt.Errorf("%w: %s %s%s", ErrProtocol, who, why, words)
	}
	if state, died := p.awaitEnd(err); died {
		return fmt.Errorf("%w: %s ended at its start with %s%s: run it by hand with --help", ErrDown, who, state, p.child.lines.words())
	}
	if p.child.firstLine() == "" {
		return fmt.Errorf("%w: %s did not serve within %s and was killed%s", ErrTimeout, who, p.timing.start, words)
	}
	if errors.Is(err, ErrTimeout) {
		return fmt.Errorf("%s hung at its start and was killed: %w%s", who, err, words)
	}
	return fmt.Errorf("starting %s: %w%s", who, err, words)
}

// awaitEnd gives a process whose connection broke a moment to be seen dead.
func (p *Process) awaitEnd(err error) (state string, died bool) {
	if !errors.Is(err, ErrTimeout) {
		moment := time.NewTimer(p.timing.stop / 4)
		defer moment.Stop()
		select {
		case <-p.child.gone:
		case <-moment.C:
		}
	}
	return p.child.end()
}

// checkHandshake says what is wrong with the first line that a driver printed,
// or "" when it is the handshake or there is none.
func checkHandshake(line string) string {
	if line == "" {
		return ""
	}
	parts := strings.Split(line, "|")
	if len(parts) < 6 || parts[0] != "1" {
		return "printed " + clip(line) + " instead of the plugin handshake: it is no driver, or prints before it serves"
	}
	if parts[1] != strconv.Itoa(ProtocolVersion) {
		return fmt.Sprintf("speaks version %s of the contract, this agent speaks %d: install the driver that came with the agent", clip(parts[1]), ProtocolVersion)
	}
	if parts[4] != "grpc" {
		return "serves " + clip(parts[4]) + " and not grpc"
	}
	if len(parts[5]) <= 50 {
		return "serves without TLS"
	}
	return ""
}
