package image

import (
	"context"
	"io"
	"sync"
)

// progress tells a request's caller how far it is.
type progress struct {
	to func(Progress)

	mu   sync.Mutex // guards below
	at   Progress
	told int64 // Done when it was last told
}

// tellEvery is how many bytes pass between two calls.
const tellEvery = 4 << 20

func (p *progress) tell() {
	if p.to != nil {
		p.to(p.at)
	}
}

// enter begins a phase.
func (p *progress) enter(phase Phase) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at.Phase, p.at.Done, p.told = phase, 0, 0
	p.tell()
}

// add counts bytes.
func (p *progress) add(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at.Done += n
	if p.at.Done-p.told >= tellEvery || p.at.Done == p.at.Total {
		p.told = p.at.Done
		p.tell()
	}
}

func (p *progress) ready(img *Image, resolved string) *Image {
	img.Resolved = resolved
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at.Phase, p.at.Done = Ready, p.at.Total
	p.tell()
	return img
}

// A progressReader counts what is read, and ends with its context.
type progressReader struct {
	ctx  context.Context
	from io.Reader
	p    *progress
}

func (r *progressReader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.from.Read(b)
	r.p.add(int64(n))
	return n, err
}
