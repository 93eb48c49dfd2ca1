package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/jobfile"
)

// The exit codes.
const (
	exitDone          = 0
	exitOther         = 1
	exitUsage         = 2 // usage, or an invalid job file
	exitNotFound      = 3
	exitNotAllowed    = 4
	exitConflict      = 5
	exitNothingPlaced = 6 // accepted, nothing placed within --wait
	exitNeverFits     = 7
	exitJobFailed     = 8
	exitNoServer      = 9 // no server or leader
	exitTimedOut      = 124
)

// codeExits maps the codes of the API.
var codeExits = map[gpuai.Code]int{
	gpuai.InvalidSpec: exitUsage, gpuai.TooLarge: exitUsage,
	gpuai.NotFound:        exitNotFound,
	gpuai.Unauthenticated: exitNotAllowed, gpuai.Forbidden: exitNotAllowed,
	gpuai.QuotaExceeded: exitNotAllowed, gpuai.BudgetExceeded: exitNotAllowed,
	gpuai.Conflict: exitConflict, gpuai.PreconditionFailed: exitConflict, gpuai.IdempotencyMismatch: exitConflict,
	gpuai.Unschedulable: exitNeverFits,
	gpuai.RateLimited:   exitNoServer, gpuai.NoLeader: exitNoServer, gpuai.OutcomeUnknown: exitNoServer,
	gpuai.DiskLow:  exitNoServer,
	gpuai.Internal: exitOther,
}

// A usageError is a wrong call of the command.
type usageError struct{ error }

// A workError is an error of the work itself, with whatever code it has.
type workError struct{ error }

func (e workError) Unwrap() error { return e.error }

// An exitError ends the command with a code of its own. Its text may be empty:
// all has been said then.
type exitError struct {
	code int
	text string
	next string
}

func (e *exitError) Error() string { return e.text }

// exit says what went wrong, if anything, and returns the exit code.
func (a *app) exit(ctx context.Context, err error) int {
	var (
		work  workError
		own   *exitError
		api   *gpuai.Error
		files *jobfile.Errors
	)
	switch {
	case err == nil:
		return exitDone
	case !errors.As(err, &work):
		a.say("gpuai: %v\n  next: see gpuai --help\n", err)
		return exitUsage
	case errors.As(err, &own):
		if own.text != "" {
			a.explainError(own.text, own.next)
		}
		return own.code
	case errors.As(err, &files):
		a.say("%v\n", files)
		return exitUsage
	case errors.As(err, &usageError{}):
		a.explainError(err.Error(), "see --help")
		return exitUsage
	case ctx.Err() != nil: // a signal
		return 130
	case errors.As(err, &api):
		a.explainAPI(api)
		return codeExits[api.Code]
	case errors.Is(err, context.DeadlineExceeded):
		a.explainError(err.Error(), "give it longer with --request-timeout")
		return exitTimedOut
	}
	a.explainError(err.Error(), "")
	return exitOther
}

func (a *app) say(format string, args ...any) { fmt.Fprintf(a.err, format, args...) }

func (a *app) explainError(text, next string) {
	a.say("gpuai: %s\n", text)
	if next != "" {
		a.say("  next: %s\n", next)
	}
}

// explainAPI prints code, reason, what was found, the next step and the request.
func (a *app) explainAPI(e *gpuai.Error) {
	detail := e.Detail
	if detail == "" {
		detail = "the server refused the request"
	}
	a.say("gpuai: %v: %s\n", e.Code, detail)
	for _, f := range e.Fields {
		where := f.Pointer
		if f.Line > 0 {
			where += " (line " + strconv.Itoa(int(f.Line)) + ")"
		}
		a.say("  %s: %s\n", where, f.Detail)
	}
	a.reasons(e.Reasons)
	if next := a.nextStep(e); next != "" {
		a.say("  next: %s\n", next)
	}
	if e.RequestID != "" {
		a.say("  request: %s\n", e.RequestID)
	}
}

// reasons prints why something waits or cannot be.
func (a *app) reasons(rs []gpuai.Reason) {
	for _, r := range rs {
		var counts []string
		if r.Nodes > 0 {
			counts = append(counts, plural(uint64(r.Nodes), "node"))
		}
		if r.GPUs > 0 {
			counts = append(counts, plural(uint64(r.GPUs), "GPU"))
		}
		in := ""
		if len(counts) > 0 {
			in = " (" + strings.Join(counts, ", ") + ")"
		}
		a.say("  %v: %s%s\n", r.Code, r.Message, in)
		if r.Fix != "" {
			a.say("    helps: %s\n", r.Fix)
		}
	}
}

func (a *app) nextStep(e *gpuai.Error) string {
	switch e.Code {
	case gpuai.InvalidSpec:
		if a.file != "" {
			return "correct " + a.file + "; gpuai job validate " + a.file + " checks it"
		}
	case gpuai.NotFound:
		return "the list commands show what there is; a job's ID may be cut short while it is unique"
	case gpuai.Unauthenticated:
		return "gpuai login, or a good token in GPUAI_TOKEN; gpuai context show says which one is in use"
	case gpuai.Forbidden:
		return "gpuai context list shows as whom you can ask; an operator or your tenant's administrator makes tokens with gpuai token create"
	case gpuai.Unschedulable:
		return "gpuai node list shows what there is; --hold-anyway keeps the job until such a node joins"
	case gpuai.IdempotencyMismatch:
		return "use another --key, or none, for another job"
	case gpuai.NoLeader:
		return "look at " + strings.Join(a.api.addrs, ", ") + "/readyz, name other servers with --addr, or start a region with gpuai dev"
	case gpuai.OutcomeUnknown:
		if key := a.rec.key(); key != "" {
			return "repeat the command with --key " + key + " to learn the outcome without doing it twice"
		}
		return "look before you repeat it"
	case gpuai.RateLimited:
		if e.RetryAfter > 0 {
			return "try again in " + e.RetryAfter.String()
		}
		return "try again in a moment"
	}
	return ""
}

// plural returns "1 node", "2 nodes".
func plural(n uint64, noun string) string {
	s := strconv.FormatUint(n, 10) + " " + noun
	if n != 1 {
		s += "s"
	}
	return s
}
