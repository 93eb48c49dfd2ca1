package httpd

import (
	_ "embed"
	"log/slog"
	"net/http"
	"runtime"
	"time"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/gpuai/gpuai"
)

// openapi is the contract, served at /v1/openapi.json.
//
//go:embed openapi.json
var openapi []byte

// Headers of our own.
const (
	headerIndex       = "X-GPUAI-Index"
	headerLastContact = "X-GPUAI-Last-Contact"
	headerLeader      = "X-GPUAI-Known-Leader"
	headerForwarded   = "X-GPUAI-Forwarded"
	headerRequestID   = "X-Request-Id"
	headerLogOffset   = "X-GPUAI-Log-Offset"
	headerLogEOF      = "X-GPUAI-Log-EOF"
)

// A Config says what the handler serves.
type Config struct {
	Backend Backend      // required
	Schema  []byte       // the job file's JSON Schema; nil = the route answers 404
	Metrics http.Handler // of /metrics; nil = the route answers 404
	Logger  *slog.Logger // nil discards
	// Auth says who requests come from; nil: nobody has to say so, and every
	// request is an operator's, called insecure.
	Auth Authenticator
	// Hosts are names under which clients reach a server without Auth, beside
	// localhost and any address; requests under others are refused.
	Hosts []string
	// PeerOf reads certificates, which the listener has verified; nil: none is
	// looked at.
	PeerOf PeerOf
	// PrivateMetrics has /metrics take an operator's token.
	PrivateMetrics bool
	// Registry takes the gpuai_http_* metrics; nil = they are kept nowhere.
	Registry prometheus.Registerer
	// MaxInFlight bounds the requests under way, sessions and streams aside;
	// 0 is 1,024. Submits may take half of it, reads seven eighths, and what
	// is left is for status: so the order of service holds when it is full. What
	// needs no token has an eighth more, apart, of which one address has an eighth.
	MaxInFlight int
	// TenantRate says how many requests a second a tenant may send to this server,
	// each job of a batch counted; 0 is any number. "" asks for the rate of an
	// address where it is not known who asks. It must not block; nil is 0 for all.
	TenantRate func(gpuai.TenantID) uint32
	// MaxSessions bounds agents' sessions; 0 is 50,000.
	MaxSessions int
	// SessionsPerSecond bounds how many of them are opened in a second, so that
	// agents that all come at once leave the processor to what serves them;
	// 0 is 1,000 for each processor, less than half of what they can do.
	SessionsPerSecond int
	// MaxStreams bounds event streams, followed logs and blocking queries;
	// 0 is 4,096.
	MaxStreams int
	// MaxObjects bounds the objects of the store that agents send or fetch here at a
	// time, and apart from them their questions about the store, one node's to an
	// eighth; 0 is 64. ObjectRate bounds the bytes of all of
	// them in a second; 0 is 256 MiB.
	MaxObjects, ObjectRate int
	// MaxBodyBytes bounds the bodies of all requests under way together; 0 is
	// 64 MiB. No batch may take its last 16 MiB.
	MaxBodyBytes int64
	// BodyTimeout is how long a request's body may take to arrive; 0 is 10 s.
	BodyTimeout time.Duration
	// WriteTimeout is how long a reader may block one write; 0 is 10 s.
	WriteTimeout time.Duration
}

func (c *Config) defaults() {
	hosts := c.Hosts
	c.Hosts = nil
	for _, h := range hosts {
		c.Hosts = append(c.Hosts, hostName(h))
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	for _, d := range [...]struct {
		at *int
		to int
	}{
		{&c.MaxInFlight, 1024}, {&c.MaxSessions, 50_000}, {&c.MaxStreams, 4096}, {&c.MaxObjects, 64}, {&c.ObjectRate, 256 << 20},
		{&c.SessionsPerSecond, 1_000 * runtime.GOMAXPROCS(0)},
	} {
		if *d.at <= 0 {
			*d.at = d.to
		}
	}
	if c.MaxBodyBytes <= 0 {
		c.MaxBodyBytes = 64 << 20
	}
	if c.BodyTimeout <= 0 {
		c.BodyTimeout = 10 * time.Second
	}
	if c.WriteTimeout <= 0 {
		c.WriteTimeout = 10 * time.Second
	}
}

// api serves the HTTP API.
type api struct {
	cfg     Config
	backend Backend
	log     *slog.Logger
	router  *mux.Router
	gate    *gate
	fair    *fairQueue
	opening *rate.Limiter // of sessions
	objects *rate.Limiter // of bytes
	bodies  *budget
	metrics *metrics
	cross   *http.CrossOriginProtection
	proxies proxyBuffers

	meetings meetings
}

// New returns the handler of the API. It is safe for concurrent use.
func New(cfg Config) http.Handler {
	cfg.defaults()
	a := &api{
		cfg: cfg, backend: cfg.Backend, log: cfg.Logger,
		gate:    newGate(&cfg),
		opening: rate.NewLimiter(rate.Limit(cfg.SessionsPerSecond), max(1, cfg.SessionsPerSecond/10)),
		objects: rate.NewLimiter(rate.Limit(cfg.ObjectRate), max(cfg.ObjectRate/8, paceBytes)),
		bodies:  &budget{max: cfg.MaxBodyBytes},
		cross:   http.NewCrossOriginProtection(),
	}
	a.fair = newFairQueue(a.gate, &cfg)
	a.router = a.newRouter()
	a.metrics = newMetrics(cfg.Registry, a.gate)
	return a
}

// newRouter lists the routes for mux. Paths are matched as they were sent, so
// that an encoded slash stays within its segment.
func (a *api) newRouter() *mux.Router {
	r := mux.NewRouter().UseEncodedPath().SkipClean(true)
	for i := range routes {
		rt := &routes[i]
		methods := []string{rt.method}
		if rt.method == http.MethodGet && rt.class != classStream && rt.class != classSession && rt.class != classObject {
			methods = append(methods, http.MethodHead)
		}
		r.Path(rt.path).Methods(methods...).Handler(a.handler(rt))
	}
	other := func(path string, handle func(*call) error) *route {
		return &route{path: path, who: anyone, class: classAnonymous, where: here, anyQuery: true, handle: handle}
	}
	r.NotFoundHandler = a.handler(other("unknown", (*call).noSuchPath))
	r.MethodNotAllowedHandler = a.handler(other("unknown", (*call).noSuchMethod))
	return r
}

// ServeHTTP implements http.Handler.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.router.ServeHTTP(w, r)
}

// NewServer returns a server for h that gives slow clients up: 5 s for a
// header of at most 32 KiB, two minutes for an idle connection. Bodies and
// answers have deadlines of their own, which h sets.
func NewServer(h http.Handler, log *slog.Logger) *http.Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}
