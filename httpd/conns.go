package httpd

import (
	lists "container/list"
	"context"
	"net"
	"net/http"
	"sync"
)

// Conns bounds the connections that an http.Server holds, so that whoever opens
// many and asks for nothing takes nobody else's descriptor: beyond the bound
// the one is closed that has been idle for longest, or has sent no whole header
// for longest. Connections that became sessions or streams of their own are
// not counted any more.
type Conns struct {
	max int

	mu      sync.Mutex // guards below
	open    map[net.Conn]*lists.Element
	idle    *lists.List // of net.Conn that nothing is done for, longest first
	evicted uint64
}

// NewConns returns a bound of max connections.
func NewConns(max int) *Conns {
	return &Conns{max: max, open: map[net.Conn]*lists.Element{}, idle: lists.New()}
}

// connKey is the context's key of a request's connection.
type connKey struct{}

// Context is for http.Server.ConnContext.
func (g *Conns) Context(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// Track is for http.Server.ConnState.
func (g *Conns) Track(c net.Conn, s http.ConnState) {
	var old net.Conn
	g.mu.Lock()
	switch s {
	case http.StateNew:
		if g.rest(c); len(g.open) > g.max {
			old = g.idle.Front().Value.(net.Conn) // c at the least
			g.forget(old)
			g.evicted++
		}
	case http.StateIdle:
		g.rest(c)
	case http.StateClosed, http.StateHijacked:
		g.forget(c)
	}
	g.mu.Unlock()
	if old != nil {
		_ = old.Close() // its server finds out
	}
}

// rest notes that nothing is done for a connection from now on.
func (g *Conns) rest(c net.Conn) {
	if e := g.open[c]; e != nil {
		g.idle.Remove(e)
	}
	g.open[c] = g.idle.PushBack(c)
}

func (g *Conns) forget(c net.Conn) {
	if e := g.open[c]; e != nil {
		g.idle.Remove(e)
	}
	delete(g.open, c)
}

// Handler notes what connections are worked for. One that has sent a part of a
// header is not among them: a header that trickles in keeps no place.
func (g *Conns) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(net.Conn); ok {
			g.mu.Lock()
			if e := g.open[c]; e != nil {
				g.idle.Remove(e)
				g.open[c] = nil
			}
			g.mu.Unlock()
		}
		next.ServeHTTP(w, r)
	})
}
