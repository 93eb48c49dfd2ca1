package telemetry

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-metrics"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// serverID stands for raft's named string types.
type serverID string

type configuration struct {
	Servers []serverID
	Note    string
}

func TestHCLogValues(t *testing.T) {
	cases := []struct {
		name string
		args []any
		want string
	}{
		{"plain", []any{"term", uint64(7)}, "term=7"},
		{"named string", []any{"peer", serverID("a")}, "peer=a"},
		{"struct", []any{"conf", configuration{Servers: []serverID{"a", "b"}, Note: "n"}},
			`conf="{Servers:[a b] Note:n}"`},
		{"fmt", []any{"servers", hclog.Fmt("%+v", []serverID{"a"})}, "servers=[a]"},
		{"error", []any{"error", errors.New("no route")}, `error="no route"`},
		{"duration", []any{"after", 1500 * time.Millisecond}, "after=1.5s"},
		{"hex", []any{"x", hclog.Hex(255)}, "x=0xff"},
		{"octal", []any{"x", hclog.Octal(8)}, "x=010"},
		{"binary", []any{"x", hclog.Binary(5)}, "x=0b101"},
		{"quote", []any{"x", hclog.Quote("a b")}, `x="\"a b\""`},
		{"nil", []any{"x", nil}, "x=<nil>"},
		{"key that is no string", []any{3, "v"}, "3=v"},
		{"value without a key", []any{"k", 1, "left"}, "k=1 extra=left"},
		{"nil stringer", []any{"x", (*stringer)(nil)}, "x=<nil>"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			HCLog(NewLogger(&out, FormatText, LevelTrace)).Info("m", c.args...)
			if !strings.Contains(out.String(), "msg=m "+c.want+"\n") {
				t.Errorf("got %q, want it to end in %q", out.String(), c.want)
			}
		})
	}
}

type stringer struct{ s string }

func (s *stringer) String() string { return s.s }

func TestHCLogLevels(t *testing.T) {
	var out bytes.Buffer
	l := HCLog(NewLogger(&out, FormatText, slog.LevelDebug))
	if l.IsTrace() || !l.IsDebug() || !l.IsInfo() || !l.IsWarn() || !l.IsError() {
		t.Error("the guards do not follow slog's level")
	}
	if got := l.GetLevel(); got != hclog.Debug {
		t.Errorf("level %v, want debug", got)
	}
	sub := l.Named("raft")
	l.SetLevel(hclog.Warn)
	sub.Info("hidden")
	sub.Warn("shown")
	sub.Log(hclog.Off, "hidden too")
	if got := out.String(); strings.Contains(got, "hidden") || !strings.Contains(got, "level=WARN msg=shown logger=raft") {
		t.Errorf("got %q", got)
	}
	if got := sub.GetLevel(); got != hclog.Warn {
		t.Errorf("level %v, want warn", got)
	}
	l.SetLevel(hclog.Off)
	if got := sub.GetLevel(); got != hclog.Off {
		t.Errorf("level %v, want off", got)
	}
}

func TestHCLogTraceHasItsName(t *testing.T) {
	var out bytes.Buffer
	HCLog(NewLogger(&out, FormatJSON, LevelTrace)).Trace("m")
	if !strings.Contains(out.String(), `"level":"TRACE"`) {
		t.Errorf("got %q", out.String())
	}
}

func TestHCLogNamesAndArguments(t *testing.T) {
	var out bytes.Buffer
	l := HCLog(NewLogger(&out, FormatText, slog.LevelInfo)).Named("plugin").With("driver", "sim").Named("stdio")
	l.Info("m", "n", 1)
	if want := "msg=m logger=plugin.stdio driver=sim n=1"; !strings.Contains(out.String(), want) {
		t.Errorf("got %q, want %q in it", out.String(), want)
	}
	if l.Name() != "plugin.stdio" || len(l.ImpliedArgs()) != 2 {
		t.Errorf("name %q, arguments %v", l.Name(), l.ImpliedArgs())
	}
	if got := l.ResetNamed("x").Name(); got != "x" {
		t.Errorf("name %q after ResetNamed", got)
	}
}

func TestHCLogStandardWriter(t *testing.T) {
	cases := []struct {
		name, line, want string
		opts             *hclog.StandardLoggerOptions
	}{
		{"plain", "hello", "level=INFO msg=hello", nil},
		{"inferred", "[ERR] broken", "level=ERROR msg=broken", &hclog.StandardLoggerOptions{InferLevels: true}},
		{"behind a timestamp", "2026/01/02 03:04:05 [WARN] old", "level=WARN msg=old",
			&hclog.StandardLoggerOptions{InferLevels: true, InferLevelsWithTimestamp: true}},
		{"forced", "[DEBUG] x", "level=ERROR msg=x", &hclog.StandardLoggerOptions{ForceLevel: hclog.Error}},
		{"no level", "[1] x", `level=INFO msg="[1] x"`, &hclog.StandardLoggerOptions{InferLevels: true}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			HCLog(NewLogger(&out, FormatText, slog.LevelDebug)).StandardLogger(c.opts).Print(c.line)
			if !strings.Contains(out.String(), c.want) {
				t.Errorf("got %q, want %q in it", out.String(), c.want)
			}
		})
	}
}

func TestCheckFormat(t *testing.T) {
	for format, ok := range map[string]bool{"text": true, "json": true, "": false, "xml": false} {
		if err := CheckFormat(format); (err == nil) != ok {
			t.Errorf("CheckFormat(%q) = %v", format, err)
		}
	}
}

func TestBridgeNamesPassTheLinter(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	if err := BridgeRaftMetrics(reg); err != nil {
		t.Fatal(err)
	}
	peer := []metrics.Label{{Name: "peer_id", Value: "b"}}
	metrics.IncrCounter([]string{"raft", "apply"}, 1)
	metrics.IncrCounter([]string{"raft", "apply"}, 2)
	metrics.SetGauge([]string{"raft", "commitNumLogs"}, 4)
	metrics.SetGauge([]string{"raft", "oldestLogAge"}, 1500)
	metrics.AddSample([]string{"raft", "leader", "lastContact"}, 20)
	metrics.AddSample([]string{"raft", "fsm", "applyBatchNum"}, 20)
	metrics.MeasureSince([]string{"raft", "rpc", "appendEntries"}, time.Now())
	metrics.MeasureSince([]string{"raft", "net", "getRPCType"}, time.Now())
	metrics.MeasureSinceWithLabels([]string{"raft", "replication", "heartbeat"}, time.Now(), peer)
	metrics.IncrCounterWithLabels([]string{"raft", "replication", "appendEntries", "logs"}, 3, peer)

	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	want := map[string]bool{
		"gpuai_raft_apply_total": true, "gpuai_raft_commit_num_logs": true, "gpuai_raft_oldest_log_age_seconds": true,
		"gpuai_raft_leader_last_contact_seconds": true, "gpuai_raft_fsm_apply_batch_num": true,
		"gpuai_raft_rpc_append_entries_seconds": true, "gpuai_raft_replication_heartbeat_seconds": true,
		"gpuai_raft_replication_append_entries_logs_total": true,
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if !want[f.GetName()] {
			t.Errorf("unexpected metric %s", f.GetName())
		}
		delete(want, f.GetName())
	}
	for name := range want {
		t.Errorf("metric %s is missing", name)
	}
	const text = `
# HELP gpuai_raft_apply_total Reported by hashicorp/raft as raft_apply_total.
# TYPE gpuai_raft_apply_total counter
gpuai_raft_apply_total 3
# HELP gpuai_raft_oldest_log_age_seconds Reported by hashicorp/raft as raft_oldest_log_age_seconds.
# TYPE gpuai_raft_oldest_log_age_seconds gauge
gpuai_raft_oldest_log_age_seconds 1.5
`
	err = testutil.GatherAndCompare(reg, strings.NewReader(text), "gpuai_raft_apply_total", "gpuai_raft_oldest_log_age_seconds")
	if err != nil {
		t.Error(err)
	}
}

func TestBridgeTwiceOnOneRegistry(t *testing.T) {
	reg := prometheus.NewRegistry()
	for range 2 {
		if err := BridgeRaftMetrics(reg); err != nil {
			t.Fatal(err)
		}
		metrics.IncrCounter([]string{"raft", "barrier"}, 1)
	}
	n, err := testutil.GatherAndCount(reg, "gpuai_raft_barrier_total")
	if err != nil || n != 1 {
		t.Fatalf("%d series, %v", n, err)
	}
}

func TestBridgeDropsANameThatIsTaken(t *testing.T) {
	reg := prometheus.NewRegistry()
	taken := prometheus.NewGauge(prometheus.GaugeOpts{Name: "gpuai_raft_peers", Help: "Other."})
	reg.MustRegister(taken)
	if err := BridgeRaftMetrics(reg); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		metrics.SetGauge([]string{"raft", "peers"}, 3)
	}
	if got := testutil.ToFloat64(taken); got != 0 {
		t.Errorf("the other metric became %v", got)
	}
}

func TestHandlerServesTheRegistry(t *testing.T) {
	w := httptest.NewRecorder()
	Handler(NewRegistry()).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	body, _ := io.ReadAll(w.Result().Body)
	for _, want := range []string{"gpuai_build_info{version=", "go_goroutines", "process_"} {
		if !bytes.Contains(body, []byte(want)) {
			t.Errorf("%s is not among the metrics", want)
		}
	}
}

func TestRegistryPassesTheLinter(t *testing.T) {
	problems, err := testutil.GatherAndLint(NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "gpuai_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}
