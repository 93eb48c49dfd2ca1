package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/httpd"
	"github.com/gpuai/gpuai/internal/identity"
	"github.com/gpuai/gpuai/internal/telemetry"
	"github.com/gpuai/gpuai/raft"
	"github.com/gpuai/gpuai/server/hub"
	"github.com/gpuai/gpuai/server/liveness"
	"github.com/gpuai/gpuai/store"
)

const (
	// keptEvents is how many events a watcher may fall behind.
	keptEvents = 65_536
	// stopTimeout bounds each step of a planned stop.
	stopTimeout = 5 * time.Second
	// headerTimeout bounds the header of a request, idleConnTimeout an open
	// connection without one.
	headerTimeout   = 5 * time.Second
	idleConnTimeout = 2 * time.Minute
	maxHeaderBytes  = 64 << 10
)

// A Server is one running member of a region. Its methods are safe for
// concurrent use.
type Server struct {
	cfg   Config
	log   *slog.Logger
	start time.Time // origin of now

	replica
	hub       *hub.Hub
	sessions  *registry
	collector *collector
	lane      *lane
	announcer *announcer
	keeper    *keeper
	provider  *identity.Provider // nil: users do not log in
	tribunal  *tribunal
	auditor   *auditor

	quarantine  quarantine
	explainer   *explainer
	calibration *calibration
	readiness   readiness
	changed     changes
	metrics     *metrics
	blobs       *blobStore
	warden      *warden               // nil without authentication
	reign       atomic.Pointer[reign] // nil while another server leads

	web
	life
}

// replica is the node and its files.
type replica struct {
	dir           *store.Dir
	archive       *archiver
	node          *raft.Node
	opened        atomic.Pointer[raft.Node] // node, for its own callbacks
	restoredEarly atomic.Bool               // … before it was opened
}

// web is the HTTP servers, and the client for the other servers.
type web struct {
	public   *http.Server
	peers    *http.Server
	peerHTTP *http.Transport
}

// life is what Run and Close need.
type life struct {
	ctx       context.Context // ends with the server
	cancel    context.CancelFunc
	failed    chan error // the first reason why this server cannot go on
	wg        sync.WaitGroup
	running   atomic.Bool
	closeOnce sync.Once
	closeErr  error
}

var _ httpd.Backend = (*Server)(nil)

// Open starts a member: its ports are open and its log is replayed when it
// returns; Run serves. Its errors are sentences for the operator; after one
// the configured listeners are closed.
func Open(cfg Config) (*Server, error) {
	cfg.Secure = cfg.Secure || IsSecure(cfg.DataDir)
	cfg.Authenticate = cfg.Authenticate || cfg.Secure
	if err := cfg.validate(); err != nil {
		cfg.close()
		return nil, err
	}
	if err := cfg.listen(); err != nil {
		cfg.close()
		return nil, err
	}
	s := &Server{
		cfg: cfg, log: cfg.Logger.With("server", cfg.ID), start: time.Now(),
		hub: hub.New(keptEvents), sessions: newRegistry(),
	}
	s.failed = make(chan error, 1)
	if cfg.InsecurePlaintext {
		s.log.Warn("INSECURE: --insecure-plaintext is on: nothing between servers, agents and clients is encrypted or authenticated; use it on test networks only")
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.collector, s.lane, s.explainer = newCollector(s), &lane{s: s}, newExplainer(s)
	s.announcer, s.tribunal, s.auditor = newAnnouncer(s), newTribunal(s), newAuditor(s)
	s.calibration, s.keeper = newCalibration(), newKeeper(s)
	if cfg.OIDCIssuer != "" {
		s.provider = identity.NewProvider(cfg.OIDCIssuer, cfg.OIDCClientID)
	}
	s.warden = newWarden(s)
	s.peerHTTP = s.newPeerTransport()
	s.metrics = newMetrics(s)
	s.blobs = newBlobStore(cfg.CheckpointStore)
	if err := s.openNode(); err != nil {
		s.cancel()
		cfg.close()
		return nil, err
	}
	if err := s.metrics.register(cfg.Metrics, cfg.ID); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.writeBootstrapSecret(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.serveHTTP()
	return s, nil
}

func (s *Server) openNode() error {
	dir, err := store.OpenDir(s.cfg.DataDir)
	if err != nil {
		return err
	}
	if s.warden != nil {
		if err := s.warden.open(dir); err != nil {
			return errors.Join(err, dir.Close())
		}
	}
	s.openArchive(dir) // before the log is applied
	node, err := raft.Open(raft.Config{
		ID: s.cfg.ID, Region: s.cfg.Region, Dir: dir,
		Listener: s.cfg.Raft, Advertise: s.cfg.Advertise, Peers: s.cfg.peers(),
		Bootstrap: s.cfg.Bootstrap, Multiplier: s.cfg.Multiplier, MaxFeatureLevel: s.cfg.MaxFeatureLevel,
		DiskLow: s.cfg.DiskLow, DiskHard: s.cfg.DiskHard, DiskFree: s.cfg.DiskFree,
		TrailingLogs: s.cfg.TrailingLogs, Identity: s.source(), Dial: s.cfg.Dial, Wall: s.cfg.Wall,
		OnApply: s.applied, OnRestore: func() { s.metrics.tally.forget(); s.restored() }, OnDamage: s.fail,
		BeforeSnapshot: s.archive.beforeSnapshot,
		Logger:         s.log, Metrics: s.cfg.Metrics,
	})
	if err != nil {
		return errors.Join(err, s.archive.close(), dir.Close())
	}
	s.dir, s.node = dir, node
	if err := s.checkSecure(); err != nil {
		return errors.Join(err, node.Close(), s.archive.close(), dir.Close())
	}
	if s.opened.Store(node); s.restoredEarly.Load() {
		s.restored()
	}
	if at := node.RestoredIndex(); at > 0 {
		s.hub.Reset(at) // what happened before is not in it
	}
	s.archive.start(node.RestoredIndex())
	return nil
}

// serveHTTP makes the two HTTP servers.
func (s *Server) serveHTTP() {
	var auth httpd.Authenticator
	if s.cfg.Authenticate {
		auth = s.keeper
	}
	api := httpd.New(httpd.Config{
		Auth: auth, Hosts: s.cfg.reachedAt(), PeerOf: identity.CertificateOf, PrivateMetrics: s.cfg.PrivateMetrics, TenantRate: s.tenantRate,
		Backend: s, Schema: s.cfg.JobSchema, Logger: s.log, MaxSessions: maxSessions,
		Metrics:  telemetry.Handler(s.cfg.Metrics),
		Registry: prometheus.WrapRegistererWith(prometheus.Labels{"server": string(s.cfg.ID)}, s.cfg.Metrics),
	})
	logger := slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)
	conns := httpd.NewConns(maxConns())
	s.public = &http.Server{
		ConnState: conns.Track, ConnContext: conns.Context, Handler: conns.Handler(api),
		ReadHeaderTimeout: headerTimeout, IdleTimeout: idleConnTimeout,
		MaxHeaderBytes: maxHeaderBytes, ErrorLog: logger,
	}
	s.peers = &http.Server{
		Handler: s.peerHandler(api), ReadHeaderTimeout: headerTimeout, IdleTimeout: idleConnTimeout,
		MaxHeaderBytes: maxHeaderBytes, ErrorLog: logger,
	}
}

// tenantRate is how many requests a second a tenant may send here: what its quota
// says, the same on every server, else what this server was told.
func (s *Server) tenantRate(tenant gpuai.TenantID) uint32 {
	if tenant == "" {
		return s.cfg.TenantRate
	}
	rate, ok := uint32(0), false
	s.node.View(func(m *fsm.Machine) { rate, ok = m.RequestRate(tenant) })
	if !ok {
		return s.cfg.TenantRate
	}
	return max(rate, 1) // 0 stands for any
}

// HTTPAddr returns the address of the API, with the port in use.
func (s *Server) HTTPAddr() string { return s.cfg.HTTP.Addr().String() }

// RaftAddr returns the address of the Raft port.
func (s *Server) RaftAddr() string { return s.cfg.Raft.Addr().String() }

// Run serves until ctx ends or this server can go on no longer, and closes it.
// A planned stop returns Close's error. It may be called once.
func (s *Server) Run(ctx context.Context) error {
	if s.running.Swap(true) {
		return errors.New("server: Run was called twice")
	}
	for _, f := range []func(context.Context){
		s.followTerms, s.collector.run, s.pollReadiness, s.metrics.run, s.explainer.run, s.joinLevel,
		s.announcer.run, s.tribunal.run, s.keeper.run, s.auditor.run,
	} {
		s.wg.Go(func() { f(s.ctx) })
	}
	public := s.cfg.HTTP
	if s.warden != nil {
		s.wg.Go(func() { s.warden.run(s.ctx) })
		public = s.warden.src.Listener(public, identity.Want{})
	}
	s.wg.Go(func() { s.serve("HTTP", func() error { return s.public.Serve(public) }) })
	s.wg.Go(func() { s.serve("other servers", func() error { return s.peers.Serve(s.node.PeerListener()) }) })
	if c := &s.cfg; !c.Bootstrap && len(c.Join)+len(c.Peers)+len(s.node.Members()) == 0 {
		s.log.Warn("this server is in no region, and waits: start it with --bootstrap to form one, or with --join and --join-token to join one")
	}
	s.log.Info("serving", "http", s.HTTPAddr(), "raft", s.RaftAddr(), "region", s.cfg.Region)
	var err error
	select {
	case <-ctx.Done():
	case err = <-s.failed:
	case <-s.ctx.Done():
	}
	return errors.Join(err, s.Close())
}

// serve runs one HTTP server; one that ends by itself ends the Server.
func (s *Server) serve(what string, run func() error) {
	if err := run(); err != nil && !errors.Is(err, http.ErrServerClosed) && s.ctx.Err() == nil {
		s.fail(fmt.Errorf("serve %s: %w", what, err))
	}
}

// fail ends Run: this server must not go on.
func (s *Server) fail(err error) {
	select {
	case s.failed <- err:
		s.readiness.set(false, "this server failed: "+err.Error())
	default:
	}
}

// Close is a planned stop: no more agents, leadership handed over, sessions
// ended, requests under way finished, then the node. It is idempotent.
func (s *Server) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.stop() })
	return s.closeErr
}

func (s *Server) stop() error {
	s.readiness.stop()
	if s.node.IsLeader() && len(s.node.Members()) > 1 {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		if err := s.node.TransferLeadership(ctx); err != nil {
			s.log.Warn("stopping without a hand-over of leadership", "error", err)
		}
		cancel()
	}
	s.sessions.close()
	s.sessions.await(stopTimeout / 5)
	s.shutdown(s.public)
	s.cancel()
	s.shutdown(s.peers)
	s.lane.close()
	s.wg.Wait()
	s.peerHTTP.CloseIdleConnections()
	err := s.node.Close()
	s.metrics.close()
	s.cfg.close()
	return errors.Join(err, s.blobs.close(), s.archive.close(), s.dir.Close())
}

// shutdown lets requests under way finish, for a while.
func (s *Server) shutdown(h *http.Server) {
	if h == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout/5)
	defer cancel()
	if h.Shutdown(ctx) != nil {
		_ = h.Close() // what is left are streams
	}
}

// now is the leader's clock for silences.
func (s *Server) now() liveness.Time { return liveness.Time(time.Since(s.start)) }

func (s *Server) cluster() gpuai.ClusterID {
	id, _ := s.dir.Identity()
	return id.Cluster
}

// applied is raft's OnApply: it hands the entry's effects on and never waits.
func (s *Server) applied(out *fsm.Output) {
	s.hub.Publish(out.Index, out.Events)
	s.archive.offer(out)
	s.calibration.saw(out)
	s.keeper.observe(out)
	s.changed.happened()
	if out.Trust {
		s.trustChanged()
	}
	if out.Panics > 0 {
		s.log.Error("a command panicked inside the machine and was taken back on every server: report this bug", "index", out.Index, "panic", out.Panic)
	}
	if out.Diverged {
		s.tribunal.accuse(out.DivergedAt, out.Theirs.String())
	}
	r := s.reign.Load()
	if r != nil {
		r.observe(out)
	}
	s.metrics.observe(out, r != nil)
}

// restored is raft's OnRestore: whoever watches starts over.
func (s *Server) restored() {
	s.keeper.changes.Add(1)
	s.changed.happened()
	node := s.opened.Load()
	if node == nil { // the node is still being opened
		s.restoredEarly.Store(true)
		return
	}
	s.trustChanged()
	s.hub.Reset(node.AppliedIndex())
	s.archive.missed(node.RestoredIndex())
}
