package main

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/gpuai/gpuai/agent/doctor"
)

// Checks never decide how doctor ends; a probe that is open does, and one that
// was not tried.
func TestDoctorExitCodes(t *testing.T) {
	failing := []doctor.Check{{Code: "kernel", Status: doctor.Fail}}
	closed, open := doctor.ProbeResult{Name: "chroot", Got: "EPERM"}, doctor.ProbeResult{Name: "keyctl", Got: "open", Open: true}
	for name, c := range map[string]struct {
		report doctor.Report
		failed error
		want   int
		text   string
	}{
		"ChecksFail": {doctor.Report{Checks: failing}, nil, exitDone, ""},
		"Closed":     {doctor.Report{Probes: []doctor.ProbeResult{closed}}, nil, exitDone, ""},
		"Open":       {doctor.Report{Probes: []doctor.ProbeResult{closed, open}}, nil, exitOther, "1 probe of 2 got out of the sandbox"},
		"NotTried":   {doctor.Report{Checks: failing}, errors.New("no runtime"), exitOther, "the probes: no runtime"},
		"OpenFirst":  {doctor.Report{Probes: []doctor.ProbeResult{open}}, errors.New("then it ended"), exitOther, "1 probe of 1 got out of the sandbox"},
	} {
		t.Run(name, func(t *testing.T) {
			var said strings.Builder
			a := &app{err: &said}
			err := verdict(&c.report, c.failed)
			if err != nil {
				err = workError{err}
			}
			if got := a.exit(t.Context(), err); got != c.want || !strings.Contains(said.String(), c.text) {
				t.Errorf("exit code %d with %q", got, said.String())
			}
		})
	}
}

// Scripts read these names, and no others.
func TestDoctorJSON(t *testing.T) {
	r := doctor.Report{
		Checks: []doctor.Check{{Code: "kernel", Status: doctor.Fail, Detail: "Linux 5.10", Fix: "install 5.19", Effect: "no images"}},
		Probes: []doctor.ProbeResult{{Name: "keyctl", Control: "system calls", Expected: "EPERM", Got: "open", Open: true}},
	}
	const want = `{"checks":[{"code":"kernel","status":"fail","detail":"Linux 5.10","fix":"install 5.19","effect":"no images"}],` +
		`"probes":[{"name":"keyctl","expected":"EPERM","got":"open","open":true}]}`
	if got, err := json.Marshal(r); err != nil || string(got) != want {
		t.Errorf("%s, %v", got, err)
	}
}
