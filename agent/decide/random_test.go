package decide

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gpuai/gpuai"
)

// A world is a region, a network and a host around one core: leases come and
// go, messages are lost, late and repeated, the host is suspended. The checks
// are made outside the core, from what the region confirmed and what the host
// ran.
type world struct {
	*rig
	rnd    *rand.Rand
	index  uint64
	leases map[gpuai.Token]gpuai.Assignment
	gone   map[gpuai.Token]bool  // the region has ended it
	counts map[gpuai.Token]int64 // t_send of the newest beat that counts for it
	acked  []ackedBeat
	beats  []gpuai.Beat
	late   []Event               // in the network
	runs   map[gpuai.Token]int64 // running, with the deadline that was given
	starts map[gpuai.Token]int
	asks   map[gpuai.Token]bool  // starts that wait for their image's digest
	held   map[gpuai.Token]bool  // ready, with nothing that runs
	until  map[gpuai.Token]int64 // deadline of what is held
	back   []Event               // answers to the actions of this step
}

type ackedBeat struct {
	sent  int64
	index uint64
}

// TestRandomWalks drives the core through seeded walks and checks that no task
// runs past the fence that the protocol allows, that none starts twice, and
// that the region and the host agree in the end.
func TestRandomWalks(t *testing.T) {
	seeds := 400
	if testing.Short() {
		seeds = 50
	}
	for seed := range uint64(seeds) {
		w := &world{
			rig: newRig(t), rnd: rand.New(rand.NewPCG(seed, 1)), index: 100,
			leases: map[gpuai.Token]gpuai.Assignment{}, gone: map[gpuai.Token]bool{}, counts: map[gpuai.Token]int64{},
			runs: map[gpuai.Token]int64{}, starts: map[gpuai.Token]int{}, asks: map[gpuai.Token]bool{},
			held: map[gpuai.Token]bool{}, until: map[gpuai.Token]int64{},
		}
		for range 600 {
			w.walk()
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
		w.heal(seed)
	}
}

// give hands an event to the core, and then what comes of carrying it out.
func (w *world) give(e Event) {
	for queue := []Event{e}; len(queue) > 0; queue = queue[1:] {
		w.back = nil
		w.step(queue[0])
		w.check(queue[0])
		queue = append(queue, w.back...)
	}
}

func (w *world) walk() {
	w.now += w.rnd.Int64N(second / 6)
	switch n := w.rnd.IntN(100); {
	case n < 40:
		w.give(Tick{})
	case n < 50:
		w.grant()
	case n < 58:
		w.endOne()
	case n < 59:
		w.liftOne()
	case n < 60, !w.core.Connected() && n < 80:
		w.reconnect()
	case n < 61:
		w.now += w.rnd.Int64N(30) * second // suspended
	case n < 80:
		w.confirm()
	default:
		w.deliver()
	}
}

func (w *world) grant() {
	w.index++
	a := assign(w.index)
	switch w.rnd.IntN(4) {
	case 0:
		a.Gang = &gpuai.GangInfo{Rank: 1, Size: 2, Hold: true}
	case 1:
		a.Hold = true
	}
	w.leases[a.Lease.ID] = a
	w.send(LeasesReceived{w.sess, &gpuai.LeaseSet{Incarnation: inc, Index: w.index, Leases: []gpuai.Assignment{a}}})
}

// lift has the region let a gang start.
func (w *world) lift(t gpuai.Token) {
	a := w.leases[t]
	if !a.Held() || a.Lease.State == gpuai.LeaseRevoking {
		return
	}
	w.index++
	if a.Hold = false; a.Gang != nil {
		a.Gang = &gpuai.GangInfo{Rank: 1, Size: 2}
	}
	w.leases[t] = a
	w.send(LeasesReceived{w.sess, &gpuai.LeaseSet{Incarnation: inc, Index: w.index, Leases: []gpuai.Assignment{a}}})
}

func (w *world) liftOne() {
	if all := w.named(); len(all) > 0 {
		w.lift(all[w.rnd.IntN(len(all))])
	}
}

// endOne has the region stop or end a lease, mostly one that is new.
func (w *world) endOne() {
	all := w.named()
	if len(all) == 0 {
		return
	}
	t := all[len(all)-1-w.rnd.IntN(min(2, len(all)))]
	w.index++
	a := w.leases[t]
	if w.rnd.IntN(2) == 0 {
		w.end(t)
		return
	}
	a.Lease.State = gpuai.LeaseRevoking
	w.leases[t] = a
	w.send(LeasesReceived{w.sess, &gpuai.LeaseSet{Incarnation: inc, Index: w.index, Leases: []gpuai.Assignment{a}}})
}

func (w *world) end(t gpuai.Token) {
	delete(w.leases, t)
	w.gone[t] = true
	w.send(LeasesReceived{w.sess, &gpuai.LeaseSet{Incarnation: inc, Index: w.index, Ended: []gpuai.Token{t}}})
}

// waiting are the tokens of leases whose gangs are not ready.
func (w *world) waiting() []gpuai.Token {
	return slices.DeleteFunc(w.named(), func(t gpuai.Token) bool {
		a := w.leases[t]
		return !a.Held() || a.Lease.State == gpuai.LeaseRevoking
	})
}

func (w *world) named() []gpuai.Token {
	var out []gpuai.Token
	for t := range w.leases {
		out = append(out, t)
	}
	slices.Sort(out)
	return out
}

// reconnect opens a session; its hello is a confirmed beat.
func (w *world) reconnect() {
	w.sess++
	w.beats = nil
	sent := w.now
	w.give(HelloSent{Session: w.sess, Sent: sent})
	w.index++
	w.now += w.rnd.Int64N(second)
	w.count(sent)
	w.give(Welcomed{w.sess, &gpuai.Welcome{
		Incarnation: inc, RestoreID: "r", Index: w.index, Policy: gpuai.DefaultPolicy(),
		Ack: gpuai.Ack{Sent: sent, Incarnation: inc, Index: w.index, Tokens: w.named(), Held: w.waiting()},
	}})
	w.full()
}

func (w *world) full() {
	set := &gpuai.LeaseSet{Full: true, Incarnation: inc, Index: w.index}
	for _, t := range w.named() {
		set.Leases = append(set.Leases, w.leases[t])
	}
	w.give(LeasesReceived{w.sess, set})
}

// count notes that the region confirmed a beat at the current index.
func (w *world) count(sent int64) {
	w.acked = append(w.acked, ackedBeat{sent, w.index})
	for t := range w.leases {
		w.counts[t] = max(w.counts[t], sent)
	}
}

// confirm answers a beat that was sent.
func (w *world) confirm() {
	if len(w.beats) == 0 {
		return
	}
	b := w.beats[len(w.beats)-1-w.rnd.IntN(min(2, len(w.beats)))]
	w.index++
	w.count(b.Sent)
	w.send(AckReceived{w.sess, &gpuai.Ack{Seq: b.Seq, Sent: w.rnd.Int64(), Incarnation: inc, Index: w.index, Tokens: w.named(), Held: w.waiting()}})
}

// send gives a message to the network, which may keep, lose or repeat it.
func (w *world) send(e Event) {
	switch w.rnd.IntN(4) {
	case 0: // lost
	case 1:
		w.late = append(w.late, e, e)
	default:
		w.late = append(w.late, e)
	}
}

func (w *world) deliver() {
	if len(w.late) > 0 {
		i := len(w.late) - 1 - w.rnd.IntN(min(5, len(w.late))) // rarely much too late
		e := w.late[i]
		w.late = slices.Delete(w.late, i, i+1)
		w.give(e)
	}
}

// allowed is the latest time until which a task may run: by a beat that the
// region confirmed for it, or by one confirmed before it was granted.
func (w *world) allowed(t gpuai.Token) int64 {
	sent := w.counts[t]
	for _, a := range w.acked {
		if a.index < t.Index() {
			sent = max(sent, a.sent)
		}
	}
	return sent + fence
}

// check judges what was decided, and is the host that carries it out.
func (w *world) check(e Event) {
	for _, act := range w.acts {
		w.carryOut(act)
	}
	// The host has no watchdog here: what is due must be ended by the first
	// decision after its time, however late that comes.
	for t, until := range w.until {
		if w.held[t] && w.now >= until {
			w.t.Errorf("after %T task %s is held %d ms past its fence", e, t, (w.now-until)/1e6)
		}
	}
	for t, until := range w.runs {
		if w.now >= until {
			w.t.Errorf("after %T task %s runs %d ms past its fence", e, t, (w.now-until)/1e6)
		}
	}
}

func (w *world) carryOut(act Action) {
	switch act := act.(type) {
	case Start:
		t := act.Assignment.Lease.ID
		if w.starts[t]++; w.starts[t] > 1 {
			w.t.Errorf("task %s started twice", t)
		}
		if act.Hold != act.Assignment.Held() {
			w.t.Errorf("task %s is held: %v, of %+v", t, act.Hold, act.Assignment)
		}
		w.bound(t, act.Deadline)
		if act.Hold {
			w.held[t], w.until[t] = true, act.Deadline
			delete(w.runs, t)
			w.back = append(w.back, TaskPrepared{Lease: t})
			return
		}
		if w.rnd.IntN(3) == 0 { // in an image, whose digest is told first
			w.asks[t] = true
			w.back = append(w.back, ImageResolved{t, "sha256:mine"})
			break
		}
		w.back = append(w.back, TaskStarted{t})
	case UseImage:
		if !w.asks[act.Lease] || act.Digest != "sha256:theirs" {
			w.t.Errorf("task %s is told to use image %q", act.Lease, act.Digest)
		}
		delete(w.asks, act.Lease)
		w.back = append(w.back, TaskStarted{act.Lease})
	case Launch:
		if !w.held[act.Lease] || w.starts[act.Lease] != 1 {
			w.t.Errorf("task %s is launched, and is not held", act.Lease)
		}
		if a, live := w.leases[act.Lease]; live && a.Held() {
			w.t.Errorf("task %s is launched before its gang is ready", act.Lease)
		}
		delete(w.held, act.Lease)
		w.runs[act.Lease] = w.until[act.Lease]
		w.back = append(w.back, TaskStarted{act.Lease})
	case Extend:
		w.bound(act.Lease, act.Deadline)
		if w.held[act.Lease] {
			w.until[act.Lease] = act.Deadline
			delete(w.runs, act.Lease)
		}
	case Kill:
		w.over(act.Lease, ByKill)
	case Stop:
		w.over(act.Lease, ByStop)
	case Release:
		w.back = append(w.back, Released{Lease: act.Lease})
	case SendBeat:
		w.beats = append(w.beats, act.Beat)
	case SendReport:
		w.reported(act.Report)
	}
}

func (w *world) bound(t gpuai.Token, deadline int64) {
	if deadline > w.allowed(t) {
		w.t.Errorf("task %s may run %d ms longer than its lease", t, (deadline-w.allowed(t))/1e6)
	}
	w.runs[t] = deadline
}

func (w *world) over(t gpuai.Token, by EndedBy) {
	delete(w.runs, t)
	if w.held[t] {
		delete(w.held, t)
		w.back = append(w.back, TaskNotStarted{Lease: t, State: gpuai.ReportStopped})
		return
	}
	w.back = append(w.back, TaskEnded{Lease: t, By: by, Code: 137})
}

func (w *world) reported(r gpuai.Report) {
	code := gpuai.OK
	if w.gone[r.Lease] {
		code = gpuai.Conflict
	}
	w.index++
	if _, live := w.leases[r.Lease]; live && r.State.Ends() {
		if w.runs[r.Lease] != 0 || w.held[r.Lease] {
			w.t.Errorf("task %s is reported %s and runs", r.Lease, r.State)
		}
		w.end(r.Lease)
	}
	answer := gpuai.Reported{Lease: r.Lease, Seq: r.Seq, Code: code}
	if r.State == gpuai.ReportResolved && code == gpuai.OK {
		answer.Image = "sha256:theirs"
	}
	w.send(ReportAnswered{w.sess, answer})
}

// heal lets every message through for a while: the host must come to run what
// is leased, and nothing else.
func (w *world) heal(seed uint64) {
	w.late = nil
	for _, t := range w.named() {
		w.lift(t)
	}
	for range 30 {
		if !w.core.Connected() {
			w.reconnect()
		}
		w.now += second
		w.give(Tick{})
		for _, b := range w.beats {
			w.index++
			w.count(b.Sent)
			w.give(AckReceived{w.sess, &gpuai.Ack{Seq: b.Seq, Incarnation: inc, Index: w.index, Tokens: w.named(), Held: w.waiting()}})
		}
		w.beats = nil
		for len(w.late) > 0 {
			w.deliver()
		}
	}
	for _, t := range w.named() {
		if a := w.leases[t]; w.runs[t] == 0 && a.Lease.State != gpuai.LeaseRevoking {
			w.t.Fatalf("seed %d: lease %s never runs: %+v", seed, t, w.core.Views())
		}
	}
	for t := range w.asks {
		if w.runs[t] != 0 {
			w.t.Fatalf("seed %d: the start of task %s waits for its image for ever", seed, t)
		}
	}
	for t := range w.held {
		w.t.Fatalf("seed %d: task %s waits for a gang that is ready, or gone", seed, t)
	}
	for t := range w.runs {
		if w.gone[t] {
			w.t.Fatalf("seed %d: task %s runs without a lease", seed, t)
		}
	}
}
