package liveness

import (
	"fmt"
	"slices"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

func TestSilence(t *testing.T) {
	tests := []struct {
		name    string
		ttl     gpuai.Duration // 0: no lease
		beatAt  Time
		at      Time
		suspect bool
		expire  gpuai.Duration // 0: not
	}{
		{"just beaten", 20_000, 0, 4 * second, false, 0},
		{"almost suspect", 20_000, 0, 12*second - 1, false, 0},
		{"suspect", 20_000, 0, 12 * second, true, 0},
		{"almost due", 20_000, 0, 25*second - 1, true, 0},
		{"due", 20_000, 0, 25 * second, true, 25_000},
		{"overdue, rounded down", 20_000, 0, 26*second + 999_999, true, 26_000},
		{"a beat is dated late", 20_000, millisecond / 2, 25*second + millisecond - 1, true, 0},
		{"and the expiry follows it", 20_000, millisecond / 2, 25*second + millisecond, true, 25_000},
		{"a longer lease", 60_000, 0, 30 * second, true, 0},
		{"a longer lease is due", 60_000, 0, 65 * second, true, 65_000},
		{"no lease", 0, 0, 600 * second, true, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			ref := w.register("n", "a")
			if tt.ttl > 0 {
				w.lease(tt.ttl)
			}
			w.decide()
			w.now = tt.beatAt
			if !w.beat(ref)[0] {
				t.Fatal("the beat did not count")
			}
			for w.now < tt.at { // listening all the time, applying nothing
				w.now = min(w.now+second/2, tt.at)
				if d := w.decide(); w.now < tt.at && len(d.Expire) > 0 && tt.expire == 0 {
					t.Fatalf("expired at %d", w.now)
				}
			}
			w.tr.silent = map[uint32]*silence{} // look anew
			d := w.decide()
			if got := len(d.Suspect) == 1; got != tt.suspect {
				t.Errorf("suspects: %v", d.Suspect)
			}
			var want []fsm.ExpireLeases
			if tt.expire > 0 {
				want = append(want, fsm.ExpireLeases{Node: "n", Incarnation: ref.Incarnation, SilentFor: tt.expire, Term: w.term})
			}
			if !slices.Equal(d.Expire, want) {
				t.Errorf("expiries %v, want %v", d.Expire, want)
			}
		})
	}
}

func TestWhichBeatsCount(t *testing.T) {
	w := newWorld(t)
	old := w.register("n", "a")
	cur := w.register("n", "b")
	got := w.beat(old, cur, fsm.NodeRef{Node: "n", Incarnation: cur.Incarnation + 1}, fsm.NodeRef{Node: "x", Incarnation: 1})
	if want := []bool{false, true, false, false}; !slices.Equal(got, want) {
		t.Errorf("beats of an old, the current, a coming life and of nobody: %v", got)
	}
}

func TestABeatOfAnOldLifeTouchesNothing(t *testing.T) {
	w := newWorld(t)
	w.register("n", "a")
	w.lease(20_000)
	old, _ := w.m.Node("n")
	cur := w.register("n", "b") // adopts nothing
	for i := Time(0); i < 30; i++ {
		w.now = i * second
		w.beat(fsm.NodeRef{Node: "n", Incarnation: old.Incarnation}, cur)
		w.window()
	}
	if w.live() != 0 {
		t.Error("the beats of a superseded life kept its lease")
	}
}

func TestReadyAgain(t *testing.T) {
	w := newWorld(t)
	ref := w.register("n", "a")
	state := func() gpuai.NodeState { _, s, _ := w.m.NodeLive("n"); return s }
	if w.runTo(13 * second); state() != gpuai.NodeSuspect {
		t.Fatalf("after 13 s the node is %s", state())
	}
	w.beat(ref)
	if d := w.window(); len(d.Ready) != 1 || state() != gpuai.NodeReady {
		t.Errorf("a suspect that beats is %s; ready: %v", state(), d.Ready)
	}
	w.lease(20_000)
	if w.runTo(40 * second); state() != gpuai.NodeSilent || w.live() != 0 {
		t.Fatalf("after 27 s the node is %s with %d leases", state(), w.live())
	}
	w.beat(ref)
	if w.window(); state() != gpuai.NodeReady {
		t.Errorf("a silent node that beats is %s", state())
	}
	// A beat between the suspicion and its entry: the next beat mends it.
	w.now += 13 * second / 2
	w.tr.listen(w.now)
	w.runTo(w.now + 6*second)
	d := w.decide()
	w.beat(ref)
	for _, cmd := range d.Commands(false) {
		w.apply(cmd)
	}
	w.beat(ref)
	if w.window(); state() != gpuai.NodeReady {
		t.Errorf("a node that beat while it was being suspected stays %s", state())
	}
}

func TestASupersededLifeCountsApart(t *testing.T) {
	w := newWorld(t)
	old := w.register("n", "a")
	w.lease(20_000)
	w.now = 10 * second
	w.beat(old)
	w.window()
	w.now = 11 * second
	cur := w.register("n", "b") // adopts nothing
	w.now = 13 * second
	w.tr.Observe(w.m, w.now, []gpuai.NodeID{"n", "unknown"})
	for w.now < 38*second-second/4 {
		w.now += second / 4
		w.beat(cur)
		if d := w.window(); len(d.Expire) > 0 {
			t.Fatalf("%v at %d ms: the leader saw it superseded at 13 s", d.Expire, w.now/millisecond)
		}
	}
	w.now = 38 * second
	w.beat(cur)
	d := w.window()
	want := fsm.ExpireLeases{Node: "n", Incarnation: old.Incarnation, SilentFor: 25_000, Term: w.term}
	if len(d.Expire) != 1 || d.Expire[0] != want || w.live() != 0 {
		t.Errorf("expiries %v, want %v; %d leases", d.Expire, want, w.live())
	}
	if w.runTo(50*second - 1); len(w.tr.old.all) != 0 || len(w.tr.old.at) != 0 {
		t.Error("a life without leases is still remembered")
	}
}

func TestASupersededLifeIsFoundWithoutItsEvent(t *testing.T) {
	w := newWorld(t)
	w.register("n", "a")
	w.lease(20_000)
	w.window()
	cur := w.register("n", "b")
	w.now = 5 * second
	w.beat(cur) // the first that the leader hears of it
	for w.now < 31*second {
		w.now += second
		w.beat(cur)
		w.window()
		if want := w.now < 30*second; (w.live() == 1) != want {
			t.Fatalf("at %d s there are %d leases", w.now/second, w.live())
		}
	}
}

func TestAdoptedLeasesCountFromTheNewLife(t *testing.T) {
	w := newWorld(t)
	w.register("n", "a")
	w.lease(20_000)
	w.runTo(24 * second)
	token := w.m.LeasesOfNode("n", 1)[0].ID
	w.register("n", "b", gpuai.HeldLease{Lease: token, BootID: "boot"})
	d := w.runTo(40 * second) // no event, no beat: the scan itself sees it
	if len(d.Expire) != 0 {
		t.Errorf("%v: the registration at 24 s is a beat", d.Expire)
	}
	if d = w.runTo(51 * second); len(d.Expire) != 1 {
		t.Errorf("expiries %v: the new life never beat", d.Expire)
	}
}

func TestANewLeaderCountsFromItsElection(t *testing.T) {
	w := newWorld(t)
	w.register("n", "a")
	w.lease(20_000)
	w.now = 24 * second
	w.elect()
	if d := w.runTo(49*second - 1); len(d.Expire) != 0 {
		t.Errorf("%v: elected at 24 s", d.Expire)
	}
	d := w.runTo(49 * second)
	if len(d.Expire) != 1 || d.Expire[0].Term != w.term {
		t.Errorf("expiries %v in term %d", d.Expire, w.term)
	}
}

func TestABeatBeforeTheDecisionIsHeeded(t *testing.T) {
	w := newWorld(t)
	ref := w.register("n", "a")
	w.lease(20_000)
	w.runTo(24 * second)
	w.now = 25 * second
	p := w.policy()
	for w.tr.Scan(w.m, p, w.now) {
	}
	w.beat(ref)
	if d := w.tr.Decide(p, w.now); len(d.Expire) != 0 || len(d.Suspect) != 0 {
		t.Errorf("a node that beat after the scan: %+v", d)
	}
}

func TestTimeWithoutACallIsNoSilence(t *testing.T) {
	w := newWorld(t)
	w.register("n", "a")
	w.lease(20_000)
	w.runTo(2 * second)
	w.now += 3_600 * second // the process was stopped
	if d := w.window(); len(d.Expire)+len(d.Suspect) != 0 {
		t.Errorf("an hour that the leader slept counts as silence: %+v", d)
	}
	if d := w.runTo(w.now + 23*second); len(d.Expire) != 1 {
		t.Errorf("expiries %v after 25 s of listening", d.Expire)
	}
}

func TestAnExpiryIsMadeAnewAndNeverKept(t *testing.T) {
	w := newWorld(t)
	ref := w.register("n", "a")
	w.lease(20_000)
	w.runTo(24 * second)
	w.now = 25 * second
	first := w.decide() // and is lost on its way
	w.now = 26 * second
	second := w.decide()
	if len(first.Expire) != 1 || len(second.Expire) != 1 || second.Expire[0].SilentFor != 26_000 {
		t.Errorf("first %v, then %v", first.Expire, second.Expire)
	}
	w.beat(ref)
	if d := w.decide(); len(d.Expire) != 0 {
		t.Errorf("after a beat: %v", d.Expire)
	}
}

func TestLeasesOfOneNodeExpireOneByOne(t *testing.T) {
	w := newWorld(t)
	w.do(&fsm.RegisterNode{
		Spec: gpuai.NodeSpec{ID: "n", Address: "a", CPU: 64_000, Memory: 1 << 40, Devices: []gpuai.Device{
			{ID: "d1", Vendor: "sim", Model: "X", Memory: 1 << 30}, {ID: "d2", Vendor: "sim", Model: "X", Memory: 1 << 30},
		}},
		BootID: "b", Nonce: "n",
	})
	w.lease(20_000)
	w.lease(40_000)
	for _, at := range []struct {
		time Time
		want int
	}{{24, 2}, {26, 1}, {44, 1}, {46, 0}} {
		if w.runTo(at.time * second); w.live() != at.want {
			t.Errorf("at %d s: %d leases, want %d", at.time, w.live(), at.want)
		}
	}
}

func TestCommandsKeepTheirOrderAndSize(t *testing.T) {
	refs := func(n int) (out []fsm.NodeRef) {
		for i := range n {
			out = append(out, fsm.NodeRef{Node: nodeID(i), Incarnation: 1})
		}
		return out
	}
	tests := []struct {
		expire, suspect, ready int
		beats                  bool
		want                   int
	}{
		{0, 0, 0, false, 0}, {0, 0, 0, true, 1}, {3, 0, 0, false, 3}, {3, 0, 0, true, 4},
		{0, 1, 0, false, 1}, {0, 500, 500, true, 1}, {0, 501, 3, true, 2}, {1, 0, 1_300, false, 4},
	}
	for _, tt := range tests {
		d := Decision{Term: 7, Expire: make([]fsm.ExpireLeases, tt.expire), Suspect: refs(tt.suspect), Ready: refs(tt.ready)}
		cmds := d.Commands(tt.beats)
		if len(cmds) != tt.want {
			t.Errorf("%+v: %d commands", tt, len(cmds))
		}
		expiry := d.Expire
		for i, c := range cmds {
			if len(c) > fsm.MaxCommandBytes {
				t.Errorf("%+v: a command of %d bytes", tt, len(c))
			}
			if i < len(expiry) && fmt.Sprint(c) != fmt.Sprint(expiry[i].Append(nil, fsm.Envelope{})) {
				t.Errorf("%+v: command %d is not the expiry", tt, i)
			}
		}
	}
}

func TestScansAreBounded(t *testing.T) {
	const nodes = 2*MaxRows + 10
	w := newWorld(t)
	for i := range nodes {
		w.register(nodeID(i), "a")
	}
	scans := func() (n int) {
		p := w.policy()
		for w.tr.Scan(w.m, p, w.now) {
			n++
		}
		return n
	}
	if got := scans(); got != 2 {
		t.Errorf("%d nodes took %d full holds of the lock", nodes, got)
	}
	w.tr.Decide(w.policy(), w.now)
	if got := scans(); got != 0 {
		t.Errorf("with nothing new %d full holds", got)
	}
	w.tr.Decide(w.policy(), w.now)
	w.now = 13 * second
	for at := Time(0); at <= w.now; at += second { // it listened meanwhile
		w.tr.listen(at)
	}
	if got := scans(); got != 2 {
		t.Errorf("%d silent nodes took %d full holds", nodes, got)
	}
}
