package main

import (
	"os"
	"time"
)

// How often progress is told: to a person who looks on, and to a file.
const (
	progressTerminal = 200 * time.Millisecond
	progressFile     = 10 * time.Second
)

// A workProgress tells on standard error how far long work has come: on a terminal
// on one line that changes, else on a line now and then.
type workProgress struct {
	a        *app
	quiet    bool
	terminal bool
	told     time.Time
	open     bool // there is a line on the terminal that has not ended
}

func (a *app) newProgress(quiet bool) *workProgress {
	p := &workProgress{a: a, quiet: quiet, told: time.Now()}
	if f, ok := a.err.(*os.File); ok {
		info, err := f.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

// of returns a function that tells of a part of the work.
func (p *workProgress) of(what, unit string) func(done, of int) {
	return func(done, of int) {
		every := progressFile
		if p.terminal {
			every = progressTerminal
		}
		if p.quiet || time.Since(p.told) < every {
			return
		}
		p.told = time.Now()
		if p.terminal {
			p.a.say("\r\x1b[K%s%d of %d %s", what, done, of, unit)
			p.open = true
			return
		}
		p.a.say("%s%d of %d %s\n", what, done, of, unit)
	}
}

// end ends the line of a terminal.
func (p *workProgress) end() {
	if p.open {
		p.a.say("\r\x1b[K")
		p.open = false
	}
}
