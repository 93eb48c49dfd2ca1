package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/httpd"
)

// Paths between servers, on the HTTP side of the Raft port. Everything else
// that comes there is a request that another server forwarded.
const (
	pathBeats   = "/peer/v1/beats"
	pathPropose = "/peer/v1/propose"
	pathLogs    = "/peer/v1/logs"
	pathHolds   = "/peer/v1/holds"
	pathIndex   = "/peer/v1/index"
	pathArchive = "/peer/v1/archive"

	pathJoin     = "/peer/v1/join"
	pathMember   = "/peer/v1/member"
	pathMembers  = "/peer/v1/members"
	pathPosition = "/peer/v1/position"

	pathDigest = "/peer/v1/digest"
	pathState  = "/peer/v1/state"
	pathLog    = "/peer/v1/log"

	pathUses = "/peer/v1/uses"
	pathKeys = "/peer/v1/keys"

	// maxPeerBody bounds a body in either direction.
	maxPeerBody = 16 << 20
	// codeHeader carries the code of an answer that is an error.
	codeHeader = "X-GPUAI-Code"
	// peerDomain ends the host of a URL that names a server by its ID.
	peerDomain = ".peer.invalid"
)

// newPeerTransport returns a transport that finds servers by their ID.
func (s *Server) newPeerTransport() *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			host, _, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			return s.node.DialPeer(ctx, gpuai.ServerID(strings.TrimSuffix(host, peerDomain)))
		},
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     time.Minute,
		DisableCompression:  true,
	}
}

// peerHandler serves the other servers.
func (s *Server) peerHandler(api http.Handler) http.Handler {
	mux := http.NewServeMux()
	for path, serve := range map[string]func(context.Context, []byte) ([]byte, error){
		pathBeats: s.beatsPeer, pathPropose: s.proposePeer, pathLogs: s.logsPeer, pathHolds: s.holdsPeer, pathIndex: s.indexPeer, pathLevel: s.levelPeer,
		pathJoin: s.joinPeer, pathMember: s.memberPeer, pathMembers: s.membersPeer, pathPosition: s.positionPeer,
		pathDigest: s.digestPeer, pathLog: s.logPeer,
		pathArchive: s.archivePeer, pathUses: s.usesPeer, pathKeys: s.keysPeer,
	} {
		mux.Handle("POST "+path, answerPeer(serve))
	}
	mux.HandleFunc("POST "+pathState, s.statePeer)
	mux.Handle("/", httpd.FromServers(api))
	return mux
}

// answerPeer adapts a function from body to body.
func answerPeer(serve func(context.Context, []byte) ([]byte, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxPeerBody))
		if err == nil {
			body, err = serve(r.Context(), body)
		}
		if err != nil {
			e := gpuai.NewError(gpuai.Internal, err.Error())
			errors.As(err, &e)
			w.Header().Set(codeHeader, strconv.Itoa(int(e.Code)))
			http.Error(w, e.Detail, http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write(body) // the other side notices a cut itself
	})
}

// askLeader posts a body to the leader, which must be another server. Its
// errors are *gpuai.Error.
func (s *Server) askLeader(ctx context.Context, path string, body []byte) ([]byte, error) {
	id, ok := s.node.Leader()
	if !ok || id == s.cfg.ID {
		return nil, gpuai.NewError(gpuai.NoLeader, "no leader is known; retry")
	}
	return s.askPeer(ctx, id, path, body)
}

// askPeer posts a body to another server.
func (s *Server) askPeer(ctx context.Context, id gpuai.ServerID, path string, body []byte) ([]byte, error) {
	return post(ctx, s.peerHTTP, string(id)+peerDomain, "server "+string(id), path, body)
}

// post posts a body to a server, which who names. Its errors are *gpuai.Error.
func post(ctx context.Context, rt http.RoundTripper, host, who, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+host+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return nil, gpuai.NewError(gpuai.OutcomeUnknown, fmt.Sprintf("%s did not answer (%v); retry", who, err))
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxPeerBody))
	if err != nil {
		return nil, gpuai.NewError(gpuai.OutcomeUnknown, fmt.Sprintf("%s's answer was cut short (%v); retry", who, err))
	}
	if resp.StatusCode != http.StatusOK {
		code, err := strconv.Atoi(resp.Header.Get(codeHeader))
		if err != nil || code <= 0 || code > 255 {
			code = int(gpuai.Internal)
		}
		return nil, gpuai.NewError(gpuai.Code(code), strings.TrimSpace(string(answer)))
	}
	return answer, nil
}

// beatsPeer serves another server's collector.
func (s *Server) beatsPeer(ctx context.Context, body []byte) ([]byte, error) {
	beats, err := readBeats(body)
	if err != nil {
		return nil, err
	}
	r := s.reign.Load()
	if r == nil {
		return nil, errNotLeading
	}
	c, err := r.confirm(ctx, beats)
	if err != nil {
		return nil, err
	}
	return c.append(nil), nil
}

// leaderTransport sends whole requests to one server.
type leaderTransport struct {
	s  *Server
	id gpuai.ServerID
}

var _ http.RoundTripper = (*leaderTransport)(nil)

// RoundTrip sends a copy of the request to the leader.
func (t *leaderTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host = "http", string(t.id)+peerDomain
	out.RequestURI = ""
	return t.s.peerHTTP.RoundTrip(out)
}
