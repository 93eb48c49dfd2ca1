package plugins

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
)

func TestBreaker(t *testing.T) {
	b := breaker{timing: defaultTiming()}
	now := time.Unix(1_000_000, 0)
	var waits []time.Duration
	for i := range 5 {
		if b.open(now) {
			t.Fatalf("open after %d deaths", i)
		}
		b.death(now)
		waits = append(waits, b.backoff())
		now = now.Add(time.Minute)
	}
	want := []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second}
	if !reflect.DeepEqual(waits, want) {
		t.Errorf("back-off is %v, want %v", waits, want)
	}
	if !b.open(now) {
		t.Error("not open after 5 deaths in 5 minutes")
	}
	first := now.Add(-5 * time.Minute)
	if closes := b.closes(); closes != first.Add(10*time.Minute) {
		t.Errorf("closes at %s, want 10 minutes after the first death", closes)
	}
	if b.open(b.closes()) {
		t.Error("open when it should close")
	}
	for range 20 {
		b.death(now)
	}
	if b.backoff() != 30*time.Second {
		t.Errorf("back-off grew to %s", b.backoff())
	}
}

func TestBreakerForgetsSlowDeaths(t *testing.T) {
	b := breaker{timing: defaultTiming()}
	now := time.Unix(1_000_000, 0)
	for range 50 {
		b.death(now)
		now = now.Add(3 * time.Minute)
		if b.open(now) {
			t.Fatal("open, with one death every 3 minutes")
		}
	}
}

func TestViewDevices(t *testing.T) {
	dev := func(id string) Device { return Device{ID: gpuai.DeviceID(id), Vendor: "v", Model: "m"} }
	ok := func(id string) Health { return Health{Device: gpuai.DeviceID(id), State: HealthOK} }
	both := Inventory{Devices: []Device{dev("b"), dev("a")}}
	for _, c := range []struct {
		name     string
		before   Inventory
		now      Inventory
		health   []Health
		unstable bool
		want     string
	}{
		{"sorted", both, both, []Health{ok("a"), ok("b")}, false, "a healthy, b healthy"},
		{"each state", both, both, []Health{
			{Device: "a", State: HealthDegraded, Code: "hot"}, {Device: "b", State: HealthLost, Code: "xid:79"},
		}, false, "a degraded hot, b lost xid:79"},
		{"unhealthy", both, both, []Health{ok("a"), {Device: "b", State: HealthUnhealthy, Code: "ecc"}}, false, "a healthy, b unhealthy ecc"},
		{"not said", both, both, []Health{ok("a")}, false, "a healthy, b unhealthy driver:health_unknown"},
		{"vanished", both, Inventory{Devices: []Device{dev("a")}}, []Health{ok("a"), ok("b")}, false, "a healthy, b lost driver:vanished"},
		{"driver error", both, Inventory{Err: "no library"}, []Health{ok("a"), ok("b")}, false, "a unhealthy driver:error, b unhealthy driver:error"},
		{"unstable", both, both, []Health{ok("a"), ok("b")}, true, "a unhealthy driver:unstable, b unhealthy driver:unstable"},
	} {
		v := newView()
		v.inventory = c.before
		v.devices(false)
		v.inventory = c.now
		v.setHealth(c.health)
		var got []string
		for _, d := range v.devices(c.unstable) {
			got = append(got, strings.TrimSpace(fmt.Sprint(d.ID, " ", d.Health, " ", d.HealthCode)))
		}
		if s := strings.Join(got, ", "); s != c.want {
			t.Errorf("%s: %s, want %s", c.name, s, c.want)
		}
	}
}

func TestViewBounds(t *testing.T) {
	v := newView()
	for i := range 10_000 {
		v.setHealth([]Health{{Device: gpuai.DeviceID(fmt.Sprint(i))}})
	}
	if len(v.health) > maxHealth {
		t.Errorf("it remembers the health of %d devices", len(v.health))
	}
	for i := range 200 {
		v.inventory.Devices = []Device{{ID: gpuai.DeviceID(fmt.Sprint(i)), Vendor: "v", Model: "m"}}
		if n := len(v.devices(false)); n > gpuai.MaxGPUs {
			t.Fatalf("it offers %d devices", n)
		}
	}
}

// Of devices that exclude one another one is offered, whole ones first.
func TestOfferable(t *testing.T) {
	d := func(id, parent, conflicts string) Device {
		return Device{ID: gpuai.DeviceID(id), Parent: gpuai.DeviceID(parent), Conflicts: toIDs(strings.Fields(conflicts))}
	}
	split := func(id, conflicts string) Device {
		one := d(id, "", conflicts)
		one.Partitioned = true
		return one
	}
	for _, c := range []struct {
		name string
		in   []Device
		want string
	}{
		{"none", nil, ""},
		{"free", []Device{d("b", "", ""), d("a", "", "")}, "a b"},
		{"whole and partitions", []Device{d("a1", "z", "z"), d("a2", "z", "z"), d("z", "", "a1 a2")}, "z"},
		{"partitions alone", []Device{d("a1", "z", ""), d("a2", "z", "")}, "a1 a2"},
		{"partitioned", []Device{d("a1", "z", "z"), d("a2", "z", "z"), split("z", "a1 a2")}, "a1 a2"},
		{"partitioned, without partitions", []Device{split("z", ""), d("a", "", "")}, "a"},
		{"overlapping partitions", []Device{d("a1", "z", "a2"), d("a2", "z", "a1 a3"), d("a3", "z", "a2")}, "a1 a3"},
	} {
		var got []string
		for _, one := range offerable(c.in) {
			got = append(got, string(one.ID))
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s: %s, want %s", c.name, s, c.want)
		}
	}
}

// A whole device that was offered and is partitioned now is not lost.
func TestViewOfPartitioned(t *testing.T) {
	v := newView()
	v.inventory.Devices = []Device{{ID: "z", Vendor: "v", Model: "m"}}
	v.setHealth([]Health{{Device: "z", State: HealthOK}, {Device: "z1", State: HealthOK}})
	v.devices(false)
	v.inventory.Devices = []Device{
		{ID: "z", Vendor: "v", Model: "m", Partitioned: true, Conflicts: []gpuai.DeviceID{"z1"}},
		{ID: "z1", Vendor: "v", Model: "m1", Parent: "z", Conflicts: []gpuai.DeviceID{"z"}},
	}
	if got := v.devices(false); len(got) != 1 || got[0].ID != "z1" {
		t.Errorf("offered are %+v", got)
	}
}

func TestCheckHandshake(t *testing.T) {
	cert := strings.Repeat("A", 100)
	for line, want := range map[string]string{
		"":                                    "",
		"1|1|unix|./s|grpc|" + cert:           "",
		"1|1|unix|./s|grpc|" + cert + "|true": "",
		"hello":                               "instead of the plugin handshake",
		"2|1|unix|./s|grpc|" + cert:           "instead of the plugin handshake",
		"1|2|unix|./s|grpc|" + cert:           `speaks version "2"`,
		"1|x|unix|./s|grpc|" + cert:           `speaks version "x"`,
		"1|1|unix|./s|netrpc|" + cert:         `serves "netrpc" and not grpc`,
		"1|1|unix|./s|grpc|":                  "without TLS",
	} {
		if got := checkHandshake(line); (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

func TestLines(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
	for _, c := range []struct{ in, want string }{
		{"plain words\n", `level=INFO msg="plain words" stream=stderr`},
		{"no newline", `level=INFO msg="no newline" stream=stderr`},
		{`{"time":"T","level":"WARN","msg":"hot"}`, `level=WARN msg=hot driver_time=T stream=stderr`},
		{`{"@level":"error","@message":"cold","@timestamp":"T"}`, `level=ERROR msg=cold driver_time=T stream=stderr`},
		{`{"@level":"trace","@message":"deep"}`, `level=DEBUG msg=deep stream=stderr`},
		{`{"msg":"half`, `level=INFO msg="{\"msg\":\"half" stream=stderr`},
		{`{"other":1}`, `level=INFO msg="{\"other\":1}" stream=stderr`},
		{"panic: oh\n", `level=ERROR msg="panic: oh" stream=stderr`},
		{"bad \xff byte\n", "level=INFO msg=\"bad \uFFFD byte\" stream=stderr"},
		{"\n\n  \n", ""},
	} {
		out.Reset()
		newLines(log).copy(strings.NewReader(c.in), "stderr")
		if got := strings.TrimSpace(out.String()); got != c.want {
			t.Errorf("%q is logged as\n%s\nwant\n%s", c.in, got, c.want)
		}
	}
}

func TestLinesBound(t *testing.T) {
	var out bytes.Buffer
	l := newLines(slog.New(slog.NewTextHandler(&out, nil)))
	l.copy(strings.NewReader(strings.Repeat("x", 10<<20)), "stderr")
	if out.Len() > 2*maxLine {
		t.Errorf("a line of 10 MiB became %d bytes", out.Len())
	}
	l.copy(strings.NewReader(strings.Repeat("y\n", 1<<20)), "stderr")
	if n := bytes.Count(out.Bytes(), []byte("\n")); n > 10*lineBurst {
		t.Errorf("a million lines became %d", n)
	}
	if words := l.words(); len(words) > 2000 {
		t.Errorf("its last words have %d bytes", len(words))
	}
}

func TestLastWords(t *testing.T) {
	l := newLines(slog.New(slog.DiscardHandler))
	if l.words() != "" {
		t.Error("words of a driver that said nothing")
	}
	l.copy(strings.NewReader("one\ntwo\nthree\nfour\nfive\n"), "stderr")
	if got := l.words(); got != `; its last words: "two / three / four / five"` {
		t.Error(got)
	}
	l.add([]byte(strings.Repeat("long ", 30)), "stderr")
	l.add([]byte(`{"level":"ERROR","msg":"gave up","err":"no library"}`), "stderr")
	l.add([]byte(`{"level":"DEBUG","msg":"tidying"}`), "stderr")
	if got := l.words(); got != `; its last words: "gave up: no library"` {
		t.Errorf("after a long line and JSON: %s", got)
	}
	l.copy(strings.NewReader("panic: cause\n\ngoroutine 1\na\nb\nc\nd\ne\n"), "stderr")
	if got := l.words(); got != `; its last words: "panic: cause"` {
		t.Error(got)
	}
	l.copy(strings.NewReader("SIGSEGV: segmentation violation\nPC=0x1 m=3\na\nb\nc\nd\n"), "stderr")
	if got := l.words(); got != `; its last words: "SIGSEGV: segmentation violation"` {
		t.Error(got)
	}
}

func TestDecodeConfig(t *testing.T) {
	type conf struct {
		A int `json:"a"`
	}
	for src, good := range map[string]bool{
		`{"a":1}`: true, `{}`: true, `{"a":1,"a":1}`: false, `{"b":1}`: false,
		`{"a":1} {}`: false, `{"A":1}`: false, `[]`: false, ``: false, "{\"\xff\":1}": false,
	} {
		var c conf
		err := DecodeConfig([]byte(src), &c)
		if (err == nil) != good || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", src, err)
		}
	}
}

func TestByHand(t *testing.T) {
	i := Info{Name: "sim", Version: "1.2.3", Simulated: true, ConfigSchema: `{"type":"object"}`}
	for _, c := range []struct {
		args           string
		status         int
		stdout, stderr string
	}{
		{"--version", 0, "gpuai driver sim 1.2.3 (contract version 1), SIMULATED", ""},
		{"--help", 0, "The agent starts it", ""},
		{"-h", 0, "The agent starts it", ""},
		{"--schema", 0, `{"type":"object"}`, ""},
		{"", 2, "", "This program is a driver of GPUAI"},
		{"--fast", 2, "", `unknown argument "--fast"`},
	} {
		var stdout, stderr bytes.Buffer
		status := explainByHand(i, strings.Fields(c.args), &stdout, &stderr)
		if status != c.status || !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.stderr) {
			t.Errorf("%q: status %d, stdout %q, stderr %q", c.args, status, &stdout, &stderr)
		}
		if (stdout.Len() == 0) != (c.stdout == "") || (stderr.Len() == 0) != (c.stderr == "") {
			t.Errorf("%q: stdout %q, stderr %q", c.args, &stdout, &stderr)
		}
	}
}
