package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai/server"
	"github.com/gpuai/gpuai/store"
)

// onSay does something when the user is first told something.
type onSay struct {
	said strings.Builder
	do   func()
}

func (o *onSay) Write(b []byte) (int, error) {
	if o.said.Len() == 0 && o.do != nil {
		o.do()
	}
	return o.said.Write(b)
}

func TestBootstrapWaitsForAServerThatHasJustStarted(t *testing.T) {
	write := func(path, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		before, then map[string]string // files, at first and once the user was told of waiting
		patience     time.Duration
		want, err    string // the secret, or what the error has
		told         bool   // that it waits
	}{
		"there":                 {before: map[string]string{server.BootstrapFile: "gpuboot-A\n"}, patience: time.Minute, want: "gpuboot-A"},
		"no directory at first": {then: map[string]string{server.BootstrapFile: "gpuboot-B\n"}, patience: time.Minute, want: "gpuboot-B", told: true},
		"half of it at first": {
			before: map[string]string{server.BootstrapFile: "gpubo"}, then: map[string]string{server.BootstrapFile: "gpuboot-C\n"},
			patience: time.Minute, want: "gpuboot-C", told: true,
		},
		"the CA first":             {then: map[string]string{store.TrustFile: "x", server.BootstrapFile: "gpuboot-D\n"}, patience: time.Minute, want: "gpuboot-D", told: true},
		"bootstrapped before":      {before: map[string]string{store.TrustFile: "x"}, patience: 100 * time.Millisecond, err: "was bootstrapped before, or another"},
		"no server ever comes":     {patience: 100 * time.Millisecond, err: "no server has formed a region there", told: true},
		"formed by another server": {then: map[string]string{store.TrustFile: "x"}, patience: 200 * time.Millisecond, err: "another server formed it", told: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data := filepath.Join(t.TempDir(), "data")
			for file, text := range c.before {
				write(filepath.Join(data, file), text)
			}
			say := &onSay{do: func() {
				for file, text := range c.then {
					write(filepath.Join(data, file), text)
				}
			}}
			a := &app{err: say}
			a.api.timeout = c.patience
			secret, err := a.bootstrapSecret(context.Background(), data)
			var usage usageError
			switch {
			case c.err != "" && (!errors.As(err, &usage) || !strings.Contains(err.Error(), c.err)):
				t.Errorf("error %v, want one of usage with %q", err, c.err)
			case c.err == "" && (err != nil || secret.Reveal() != c.want):
				t.Errorf("%q, %v, want %q", secret.Reveal(), err, c.want)
			}
			if told := strings.HasPrefix(say.said.String(), "waiting for the server of "+data); told != c.told {
				t.Errorf("the user reads %q", say.said.String())
			}
		})
	}
}
