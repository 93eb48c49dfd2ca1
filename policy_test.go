package gpuai_test

import (
	"math"
	"math/big"
	"reflect"
	"slices"
	"testing"

	"github.com/gpuai/gpuai"
	"pgregory.net/rapid"
)

func pointers(errs []gpuai.FieldError) (out []string) {
	for _, e := range errs {
		out = append(out, e.Pointer)
	}
	return out
}

func TestDefaultPolicy(t *testing.T) {
	p := gpuai.DefaultPolicy()
	if errs := p.Validate(); errs != nil {
		t.Errorf("the default policy is invalid: %v", errs)
	}
	// The margins that the documents state: TTL 20 s, G 5, K 3, S 1, rate 1 %.
	if d := p.FenceAfter(20 * gpuai.Second); d != 15_600 {
		t.Errorf("a task of TTL 20 s is fenced after %s", d)
	}
	if p.MinTTL() != 15*gpuai.Second {
		t.Errorf("the floor is %s", p.MinTTL())
	}
	for c, want := range map[gpuai.Class][2]int64{
		gpuai.ClassInference: {20_000, 80}, gpuai.ClassTraining: {60_000, 50},
		gpuai.ClassFinetune: {60_000, 50}, gpuai.ClassBatch: {20_000, 20}, gpuai.ClassUnset: {20_000, 20},
	} {
		if int64(p.TTL(c)) != want[0] || int64(p.PriorityOf(c)) != want[1] {
			t.Errorf("%s: TTL %s, priority %d", c, p.TTL(c), p.PriorityOf(c))
		}
	}
}

func TestPolicyMinTTL(t *testing.T) {
	for beat, want := range map[gpuai.Duration]gpuai.Duration{
		10: 15 * gpuai.Second, gpuai.Second: 15 * gpuai.Second, 2 * gpuai.Second: 20 * gpuai.Second, gpuai.Minute: 310 * gpuai.Second,
	} {
		p := gpuai.Policy{Heartbeat: beat}
		if got := p.MinTTL(); got != want {
			t.Errorf("heartbeat %s: floor %s, want %s", beat, got, want)
		}
	}
}

func TestPolicyGrace(t *testing.T) {
	for _, c := range []struct{ grace, ttl, want gpuai.Duration }{
		{5_000, 20_000, 5_000},
		{2_000, 60_000, 2_000},
		{2_000, 60_001, 5_000},
		{2_000, 100_000, 5_000},
		{2_000, 200_000, 10_000},
		{5_000, 3_600_000, 180_000},
		{300_000, 3_600_000, 300_000},
	} {
		p := gpuai.Policy{Grace: c.grace}
		if got := p.GraceFor(c.ttl); got != c.want {
			t.Errorf("G %s, TTL %s: %s, want %s", c.grace, c.ttl, got, c.want)
		}
	}
}

func TestPolicyValidate(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*gpuai.Policy)
		want   []string
	}{
		{"untouched", func(*gpuai.Policy) {}, nil},
		{"the demo's", func(p *gpuai.Policy) {
			p.TTLInference, p.TTLTraining, p.TTLFinetune, p.TTLBatch = 15_000, 15_000, 15_000, 15_000
		}, nil},
		{"short ttl", func(p *gpuai.Policy) { p.TTLBatch = 14_999 }, []string{"/lease_ttl_batch_ms"}},
		{"long ttl", func(p *gpuai.Policy) { p.TTLTraining = gpuai.Hour + 1 }, []string{"/lease_ttl_training_ms"}},
		{"ttl below the floor of slow heartbeats", func(p *gpuai.Policy) { p.Heartbeat = 5 * gpuai.Second },
			[]string{"/lease_ttl_inference_ms", "/lease_ttl_batch_ms"}},
		{"grace", func(p *gpuai.Policy) { p.Grace = 1_999 }, []string{"/lease_grace_ms"}},
		{"beat", func(p *gpuai.Policy) { p.BeatEvery, p.SuspectAfter = 5_001, gpuai.Minute }, []string{"/beat_every_ms"}},
		{"suspect before the second beat", func(p *gpuai.Policy) { p.SuspectAfter = 7_999 }, []string{"/suspect_after_ms"}},
		{"kill budget", func(p *gpuai.Policy) { p.KillBudget = 5_001 }, []string{"/kill_budget_ms"}},
		{"slack", func(p *gpuai.Policy) { p.Slack = 0 }, []string{"/slack_ms"}},
		{"rate bound", func(p *gpuai.Policy) { p.RateBoundPPM = 100_001 }, []string{"/clock_rate_bound_ppm"}},
		{"no rate bound", func(p *gpuai.Policy) { p.RateBoundPPM = 0 }, []string{"/clock_rate_bound_ppm"}},
		{"results", func(p *gpuai.Policy) { p.ResultTTL = 0 }, []string{"/result_ttl_ms"}},
		{"breaker", func(p *gpuai.Policy) { p.BreakerPPM, p.BreakerRatePPM, p.BreakerWindow = 1_000_001, 1_000_001, 0 },
			[]string{"/breaker_window_ms", "/breaker_ppm", "/breaker_rate_ppm"}},
		{"flaps", func(p *gpuai.Policy) { p.FlapLimit, p.FlapWindow, p.FlapBackoff = 0, 0, 0 },
			[]string{"/flap_window_ms", "/flap_backoff_ms", "/flap_limit"}},
		{"priorities", func(p *gpuai.Policy) { p.PriorityTraining, p.PriorityBatch = 0, 101 }, []string{"/priority_training", "/priority_batch"}},
	} {
		p := gpuai.DefaultPolicy()
		c.change(&p)
		if got := pointers(p.Validate()); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// TestPolicyValidateExtremes puts the ends of its type into each field: no sum
// or product may overflow into range.
func TestPolicyValidateExtremes(t *testing.T) {
	d := gpuai.DefaultPolicy()
	for i := range reflect.TypeFor[gpuai.Policy]().NumField() {
		for _, extreme := range []int64{math.MinInt64, math.MaxInt64, math.MaxInt64 / 2, math.MaxInt64/5 + 1} {
			p := d
			f := reflect.ValueOf(&p).Elem().Field(i)
			switch {
			case f.Kind() == reflect.Bool:
				continue // both are valid
			case f.CanInt():
				f.SetInt(extreme)
			default:
				f.SetUint(math.MaxUint8)
			}
			name := reflect.TypeFor[gpuai.Policy]().Field(i).Name
			if f.Kind() != reflect.Uint32 && p.Validate() == nil {
				t.Errorf("%s = %v is valid", name, f)
			}
		}
	}
}

func drawPolicy(t *rapid.T) gpuai.Policy {
	span := func(lo, hi gpuai.Duration) gpuai.Duration {
		return gpuai.Duration(rapid.Int64Range(int64(lo), int64(hi)).Draw(t, "span"))
	}
	p := gpuai.DefaultPolicy()
	p.Heartbeat = span(10, gpuai.Minute)
	floor := p.MinTTL()
	p.TTLInference, p.TTLTraining = span(floor, gpuai.MaxLeaseTTL), span(floor, gpuai.MaxLeaseTTL)
	p.TTLFinetune, p.TTLBatch = span(floor, gpuai.MaxLeaseTTL), span(floor, gpuai.MaxLeaseTTL)
	p.Grace, p.KillBudget, p.Slack = span(2_000, gpuai.Hour), span(100, floor/3), span(100, floor/3)
	p.RateBoundPPM = rapid.Uint32Range(100, 100_000).Draw(t, "ppm")
	return p
}

// TestFenceComesBeforeGrace is the claim that a lease stands on: counted from
// one renewal, on clocks that are off by the rate bound in opposite directions, a
// task is dead before its place is given away, whatever valid policy is set.
func TestFenceComesBeforeGrace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPolicy(t)
		if errs := p.Validate(); errs != nil {
			t.Fatalf("the generator made an invalid policy: %v", errs)
		}
		ttl := gpuai.Duration(rapid.Int64Range(int64(p.MinTTL()), int64(gpuai.MaxLeaseTTL)).Draw(t, "ttl"))
		fence, rate := p.FenceAfter(ttl), int64(p.RateBoundPPM)
		if fence <= 0 {
			t.Fatalf("TTL %s leaves no time to run", ttl)
		}
		exact := new(big.Rat).Sub(big.NewRat(1, 1), big.NewRat(2*rate, 1_000_000))
		exact.Mul(exact, big.NewRat(int64(ttl), 1)).Sub(exact, big.NewRat(int64(p.KillBudget+p.Slack), 1))
		if off := exact.Sub(exact, big.NewRat(int64(fence), 1)); off.Sign() < 0 || off.Cmp(big.NewRat(1, 1)) >= 0 {
			t.Fatalf("FenceAfter(%s) = %s is off by %s ms", ttl, fence, off.FloatString(3))
		}
		// The agent's clock is slow: its dead-by comes late. The server's is
		// fast: its TTL + G comes early.
		dead := big.NewRat(int64(fence+p.KillBudget+p.Slack)*1_000_000, 1_000_000-rate)
		given := big.NewRat(int64(ttl+p.GraceFor(ttl))*1_000_000, 1_000_000+rate)
		if dead.Cmp(given) >= 0 {
			t.Fatalf("TTL %s: dead after %s, given away after %s", ttl, dead.FloatString(0), given.FloatString(0))
		}
	})
}

func TestFenceAfterIsNeverNegative(t *testing.T) {
	p := gpuai.DefaultPolicy()
	for _, ttl := range []gpuai.Duration{0, 1, 4_000, 4_081} {
		if d := p.FenceAfter(ttl); d != 0 {
			t.Errorf("FenceAfter(%s) = %s", ttl, d)
		}
	}
}
