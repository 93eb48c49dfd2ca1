// Package sibling speaks the protocol between servers (server/wire.go,
// raft/mux.go) as another server of the region does. The programs that measure
// large regions are to the leader what its siblings' lanes and collectors are:
// so nodes can be registered, and beat, that have no agent.
package sibling

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/identity"
)

// As is the member that a program stands in for.
type As struct {
	From   gpuai.ServerID
	Source *identity.Source // its certificate; nil in a region without authentication
}

// Dial connects to the Raft port of the server to, in the name of another
// member, for HTTP.
func Dial(ctx context.Context, addr string, as As, to gpuai.ServerID) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	if as.Source != nil {
		c = as.Source.Client(c, identity.Want{Kind: gpuai.IdentityServer, Name: string(to)})
	}
	const kindPeer, version = 2, 1
	names := "\x00" + string(as.From) + "\x00" + string(to) // of no cluster yet: a member may ask
	hello := binary.BigEndian.AppendUint16([]byte{kindPeer, version}, uint16(len(names)))
	_, errSend := c.Write(append(hello, names...))
	head := make([]byte, 3)
	_, errRecv := io.ReadFull(c, head)
	rest := make([]byte, binary.BigEndian.Uint16(head[1:]))
	_, errRest := io.ReadFull(c, rest)
	if err := errors.Join(errSend, errRecv, errRest); err != nil || head[0] != 0 {
		c.Close()
		return nil, errors.Join(err, fmt.Errorf("server %s takes no connection: %q", to, rest))
	}
	return c, nil
}

// Ask posts a body to a server by a transport whose connections Dial makes, and
// returns its answer.
func Ask(ctx context.Context, t *http.Transport, to gpuai.ServerID, what string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+string(to)+".peer.invalid/peer/v1/"+what, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	res, err := t.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("server %s: %s", to, strings.TrimSpace(string(answer)))
	}
	return answer, err
}

// Named returns whom Ask addressed, by the address that its transport dials.
func Named(addr string) (gpuai.ServerID, error) {
	host, _, err := net.SplitHostPort(addr)
	return gpuai.ServerID(strings.TrimSuffix(host, ".peer.invalid")), err
}

// Commands returns the body that has commands proposed.
func Commands(cmds [][]byte) []byte {
	var body []byte
	for _, c := range cmds {
		body = AppendText(body, string(c))
	}
	return body
}

// An Outcome is what became of a command.
type Outcome struct {
	Code        gpuai.Code
	Incarnation gpuai.Incarnation
	Index       uint64
	Detail      string
}

// Outcomes reads the answer to n commands. One that was not done is an error.
func Outcomes(answer []byte, n int) (out []Outcome, err error) {
	for r := (Reader{B: answer}); r.More(); {
		o := Outcome{gpuai.Code(r.Number()), gpuai.Incarnation(r.Number()), r.Number(), r.Text()}
		if r.Bad {
			return nil, fmt.Errorf("an answer to %d commands breaks off", n)
		}
		if o.Index == 0 || o.Code != gpuai.OK {
			return nil, fmt.Errorf("a command was answered %s: %s", o.Code, o.Detail)
		}
		out = append(out, o)
	}
	if len(out) != n {
		return nil, fmt.Errorf("%d commands had %d answers", n, len(out))
	}
	return out, nil
}

// AppendText appends a text behind its length.
func AppendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// A Reader reads a body; once it is Bad everything is zero.
type Reader struct {
	B   []byte
	Bad bool
}

// More reports whether there is more to read.
func (r *Reader) More() bool { return len(r.B) > 0 && !r.Bad }

// Number reads a number.
func (r *Reader) Number() uint64 {
	v, n := binary.Uvarint(r.B)
	if n <= 0 {
		r.B, r.Bad = nil, true
		return 0
	}
	r.B = r.B[n:]
	return v
}

// Text reads a text.
func (r *Reader) Text() string {
	n := r.Number()
	if n > uint64(len(r.B)) {
		r.B, r.Bad = nil, true
		return ""
	}
	s := string(r.B[:n])
	r.B = r.B[n:]
	return s
}
