package httpd

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
)

// slowly opens n connections that begin a request and say no more, and returns
// once the server works for as many as it ever will.
func slowly(t *testing.T, s *httptest.Server, n int, head string) {
	t.Helper()
	for range n {
		c, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if _, err := io.WriteString(c, head); err != nil {
			t.Fatal(err)
		}
	}
}

// askAs is ask with a role's token.
func askAs(t *testing.T, s *httptest.Server, role, method, path, body string) int {
	t.Helper()
	resp, _ := ask(t, s, method, path, body, "Authorization: Bearer T-"+role)
	return resp.StatusCode
}

// Whoever shows no token takes no room from who does: neither by bodies that are
// announced and never sent, nor by many requests that last.
func TestAnonymousBodiesTakeNobodysRoom(t *testing.T) {
	for _, path := range []string{"/v1/join", "/v1/login/oidc", "/v1/operator/bootstrap"} {
		for _, length := range []int{100, maxBody} {
			t.Run(fmt.Sprint(path, " ", length), func(t *testing.T) {
				t.Parallel()
				x := newSecured(func(c *Config) { c.MaxInFlight, c.MaxBodyBytes = 64, maxBody })
				s := httptest.NewServer(x.h)
				defer s.Close()
				defer s.CloseClientConnections()
				slowly(t, s, 70, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n{", path, length))
				for range 3 {
					if got := askAs(t, s, "submit", "POST", "/v1/jobs", spec("x", 1, 1)); got >= 300 {
						t.Errorf("a submit beside them: %d", got)
					}
					if got := askAs(t, s, "read", "GET", "/v1/jobs", ""); got != 200 {
						t.Errorf("a read beside them: %d", got)
					}
					for _, probe := range []string{"/healthz", "/readyz"} {
						if resp, body := ask(t, s, "GET", probe, ""); resp.StatusCode != 200 {
							t.Errorf("%s beside them: %d %s", probe, resp.StatusCode, body)
						}
					}
				}
			})
		}
	}
}

// The budget of bodies is charged for what has come, not for what was announced.
func TestBodiesAreChargedAsTheyCome(t *testing.T) {
	x := newSecured(func(c *Config) { c.MaxBodyBytes = 4096 })
	s := httptest.NewServer(x.h)
	defer s.Close()
	defer s.CloseClientConnections()
	slowly(t, s, 8, fmt.Sprintf("POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer T-beta\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n{", maxBody))
	for range 8 {
		if got := askAs(t, s, "submit", "POST", "/v1/jobs", spec("x", 1, 1)); got >= 300 {
			t.Errorf("a submit beside bodies that do not come: %d", got)
		}
	}
	if got := askAs(t, s, "submit", "POST", "/v1/jobs", `{"name":"`+strings.Repeat("a", 8192)+`"}`); got != 429 {
		t.Errorf("a body beyond the budget: %d", got)
	}
	if got := askAs(t, s, "submit", "POST", "/v1/jobs", spec("x", 1, 1)); got >= 300 {
		t.Errorf("what a refused body took is gone: %d", got)
	}
}

func TestAnonymousBodiesAreSmall(t *testing.T) {
	x := newSecured()
	for _, path := range []string{"/v1/join", "/v1/login/oidc", "/v1/operator/bootstrap"} {
		w := x.as("nobody", "POST", path, `{"token":"`+strings.Repeat("a", maxAnonymousBody)+`"}`)
		if w.Code != http.StatusRequestEntityTooLarge {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

// One address has a part of the room of those who show nothing, and one network
// of IPv6 is one address. A forwarded request is whose it was.
func TestAnonymousLanes(t *testing.T) {
	a := &api{cfg: Config{}}
	who := func(p gpuai.Principal, remote string) string {
		r := httptest.NewRequest("POST", "/v1/join", http.NoBody)
		r.RemoteAddr = remote
		c := &call{api: a, r: r.WithContext(WithPrincipal(t.Context(), &p))}
		c.asker()
		return fmt.Sprint(c.claim.kind, c.claim.who)
	}
	for _, same := range [][2]string{
		{who(gpuai.Principal{From: "2001:db8:1:2::1"}, ""), who(gpuai.Principal{From: "2001:db8:1:2:ffff::9"}, "")},
		{who(gpuai.Principal{From: "10.0.0.7"}, "10.1.1.1:80"), who(gpuai.Principal{}, "10.0.0.7:9")},
		{who(gpuai.Principal{From: "::ffff:10.0.0.7"}, ""), who(gpuai.Principal{From: "10.0.0.7"}, "")},
	} {
		if same[0] != same[1] {
			t.Errorf("%s and %s are two", same[0], same[1])
		}
	}
	for _, other := range [][2]string{
		{who(gpuai.Principal{From: "2001:db8:1:2::1"}, ""), who(gpuai.Principal{From: "2001:db8:1:3::1"}, "")},
		{who(gpuai.Principal{Actor: "token/x", Contributor: "a"}, ""), who(gpuai.Principal{Actor: "token/y", Contributor: "b"}, "")},
		{who(gpuai.Principal{Actor: "node/a", Node: "a"}, ""), who(gpuai.Principal{Actor: "node/b", Node: "b"}, "")},
		{who(gpuai.Principal{Actor: "token/x", Contributor: "a"}, ""), who(gpuai.Principal{Actor: "token/x", Tenant: "a"}, "")},
	} {
		if other[0] == other[1] {
			t.Errorf("%s is one, and should be two", other[0])
		}
	}
	f := newFairQueue(newGate(&Config{MaxInFlight: 1024}), &Config{MaxInFlight: 1024})
	now := time.Now()
	for i := range 3 * maxLanes { // addresses, and nodes, take no tenant's lane
		f.laneOf(&claim{kind: laneAddress, who: fmt.Sprint(i)}, now)
		f.laneOf(&claim{kind: laneNode, who: fmt.Sprint(i)}, now)
	}
	one, two := f.laneOf(&claim{who: "tenant/a"}, now), f.laneOf(&claim{who: "tenant/b"}, now)
	if one == two {
		t.Error("two tenants are one beside many addresses")
	}
	for kind := range f.lanes {
		if n := len(f.lanes[kind]); n > maxLanes+1 {
			t.Errorf("%d lanes of kind %d", n, kind)
		}
	}
}

// A contributor, or a node, that holds all streams it can leaves some to tenants.
func TestStreamsOfOneLeaveRoom(t *testing.T) {
	for _, role := range []string{"contributor", "beta"} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			x := newSecured(func(c *Config) { c.MaxStreams = 16 })
			s := httptest.NewServer(x.h)
			defer s.Close()
			defer s.CloseClientConnections()
			path := map[string]string{"contributor": "/v1/nodes", "beta": "/v1/jobs"}[role]
			refused := 0
			for range 16 {
				c, err := net.Dial("tcp", s.Listener.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				fmt.Fprintf(c, "GET %s?index=99999999&wait=5m HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer T-%s\r\n\r\n", path, role)
				_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)) // who waits is not answered
				if line, _ := bufio.NewReader(c).ReadString('\n'); strings.Contains(line, " 429 ") {
					refused++
				}
			}
			if got := askAs(t, s, "read", "GET", "/v1/jobs?index=99999999&wait=1ms", ""); got == http.StatusTooManyRequests {
				t.Error("a tenant finds no stream beside one that has taken all")
			}
		})
	}
}
