package plugins

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// errorCodes pairs the errors of the contract with their codes on the wire, as
// driver.proto documents them.
var errorCodes = [...]struct {
	err  error
	code codes.Code
}{
	{ErrInvalid, codes.InvalidArgument},
	{ErrHeld, codes.ResourceExhausted},
	{ErrMismatch, codes.AlreadyExists},
	{ErrNoDevice, codes.NotFound},
	{ErrStale, codes.Aborted},
	{ErrUnusable, codes.FailedPrecondition},
	{ErrUnsupported, codes.Unimplemented},
	{ErrDown, codes.Unavailable},
	{ErrTimeout, codes.DeadlineExceeded},
}

// toStatus gives err the code of the contract's error that it wraps.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	for _, e := range errorCodes {
		if errors.Is(err, e.err) {
			return status.Error(e.code, err.Error())
		}
	}
	if c := status.FromContextError(err); c.Code() != codes.Unknown {
		return c.Err()
	}
	return status.Error(codes.Internal, err.Error())
}

// fromStatus is the reverse of toStatus, for the call named what. The caller's
// own cancellation stays recognisable.
func fromStatus(what string, err error) error {
	if err == nil {
		return nil
	}
	s := status.Convert(err)
	for _, e := range errorCodes {
		if s.Code() == e.code {
			return fmt.Errorf("%s: %w", what, inWords(e.err, s.Message()))
		}
	}
	if s.Code() == codes.Canceled {
		return fmt.Errorf("%s: %w", what, context.Canceled)
	}
	return fmt.Errorf("%s: driver answered %s: %s", what, s.Code(), clip(s.Message()))
}

// streamEnd is fromStatus for a stream's Recv.
func streamEnd(what string, err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: it ended the %s stream", ErrGarbage, what)
	}
	return fromStatus(what, err)
}

// inWords returns kind with what was said about it. Only what the driver itself
// said replaces our own words: of a crash or a timeout it said nothing.
func inWords(kind error, detail string) error {
	if kind == ErrDown || kind == ErrTimeout || detail == "" {
		return kind
	}
	return &driverError{kind: kind, detail: detail}
}

// A driverError is an error of the contract in the driver's own words.
type driverError struct {
	kind   error
	detail string
}

func (e *driverError) Error() string { return e.detail }
func (e *driverError) Unwrap() error { return e.kind }
