package gpuai_test

import (
	"encoding"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// An enum is a pointer to a number that has a text.
type enum[T ~uint8] interface {
	*T
	encoding.TextMarshaler
	encoding.TextUnmarshaler
	fmt.Stringer
}

// checkEnum walks the values of T from first on: n of them have a text of their
// own, and no other.
func checkEnum[T ~uint8, P enum[T]](t *testing.T, first T, n int) {
	t.Helper()
	seen := map[string]bool{}
	for i := range n {
		v := first + T(i)
		text, err := P(&v).MarshalText()
		if err != nil || seen[string(text)] || strings.HasPrefix(string(text), "unknown") || string(text) != P(&v).String() {
			t.Errorf("%T %d has the text %q, %v", v, v, text, err)
		}
		seen[string(text)] = true
		var back T
		if err := P(&back).UnmarshalText(text); err != nil || back != v {
			t.Errorf("%T: %q is read as %d, %v", v, text, back, err)
		}
	}
	beyond := first + T(n)
	if !strings.HasPrefix(P(&beyond).String(), "unknown(") {
		t.Errorf("%T %d has the text %q: this test knows of %d values", beyond, beyond, P(&beyond).String(), n)
	}
	for _, bad := range []string{"nonsense", P(&beyond).String(), "\x00", strings.Repeat("x", 1<<16)} {
		v := first
		if err := P(&v).UnmarshalText([]byte(bad)); err == nil || v != first || !strings.Contains(err.Error(), " is one of ") {
			t.Errorf("%T: %.20q is read as %d, %v", v, bad, v, err)
		}
	}
}

func TestEnumTexts(t *testing.T) {
	checkEnum(t, gpuai.OK, 17)
	checkEnum(t, gpuai.Batch, 2)
	checkEnum(t, gpuai.ClassUnset, gpuai.NumClasses)
	checkEnum(t, gpuai.PackingBestFit, 3)
	checkEnum(t, gpuai.CauseFailure, 3)
	checkEnum(t, gpuai.JobPending, 5)
	checkEnum(t, gpuai.TaskPending, gpuai.NumTaskStatus)
	checkEnum(t, gpuai.LeaseGranted, 4)
	checkEnum(t, gpuai.CauseNone, 14)
	checkEnum(t, gpuai.NodeReady, 4)
	checkEnum(t, gpuai.DeviceHealthy, 5)
	checkEnum(t, gpuai.JobSubmitted, 22)
	checkEnum(t, gpuai.LauncherNone, gpuai.NumLauncherKinds)
	checkEnum(t, gpuai.ReasonNone, gpuai.NumReasons)
	checkEnum(t, gpuai.Equal, 8)
	checkEnum(t, gpuai.FrameHello, 16)
	checkEnum(t, gpuai.EndOther, gpuai.NumEndCodes)
	checkEnum(t, gpuai.ReportRunning, gpuai.NumReportStates-1)
}

func TestJobStatusFinal(t *testing.T) {
	for s, final := range map[gpuai.JobStatus]bool{
		gpuai.JobPending: false, gpuai.JobRunning: false, gpuai.JobSucceeded: true, gpuai.JobFailed: true, gpuai.JobStopped: true,
	} {
		if s.Final() != final {
			t.Errorf("%s is final: %v", s, !final)
		}
	}
}

func TestError(t *testing.T) {
	err := fmt.Errorf("stopping: %w", gpuai.NewError(gpuai.NotFound, "no job x"))
	if err.Error() != "stopping: not_found: no job x" {
		t.Errorf("text %q", err)
	}
	if !errors.Is(err, &gpuai.Error{Code: gpuai.NotFound}) || errors.Is(err, &gpuai.Error{Code: gpuai.Conflict}) {
		t.Error("errors.Is does not go by the code")
	}
	if errors.Is(err, gpuai.NewError(gpuai.NotFound, "no job y")) {
		t.Error("errors.Is takes another detail")
	}
	fields := &gpuai.Error{Code: gpuai.InvalidSpec, Fields: []gpuai.FieldError{{Pointer: "/name", Detail: "is missing"}}}
	if fields.Error() != "invalid_spec: /name: is missing" {
		t.Errorf("text %q", fields)
	}
}

func TestEnvNames(t *testing.T) {
	if got := fmt.Sprint(gpuai.EnvNames(map[string]string{"b": "", "a": "", "C": ""})); got != "[C a b]" {
		t.Errorf("EnvNames = %s", got)
	}
}
