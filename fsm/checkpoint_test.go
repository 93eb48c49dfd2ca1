package fsm

import (
	"bytes"
	"slices"
	"testing"

	"github.com/gpuai/gpuai"
)

// publish returns the command by which a lease's agent publishes the n-th
// checkpoint of its task.
func publish(l gpuai.Lease, n uint64) *PublishCheckpoint {
	return &PublishCheckpoint{Node: l.Node, Publish: gpuai.Publish{
		Lease: l.ID, Incarnation: l.Incarnation, Task: l.TaskRef, After: n - 1,
		Digest: gpuai.BlobDigest{byte(n), 7}, Bytes: 100, Step: 10 * n, Keep: 2,
	}}
}

func TestPublishCheckpoint(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 1)
	id := r.submit(jobSpec("x", 1, 1))
	l := r.leases(id)[0]
	r.time = 5_000
	if e := r.apply(publish(l, 1)).Events; len(e) != 1 || e[0].Kind != gpuai.CheckpointPublished || e[0].Checkpoint != 1 || e[0].Job != id {
		t.Fatalf("%+v", e)
	}
	if e := r.apply(publish(l, 1)).Events; len(e) != 0 {
		t.Fatalf("a repeated publish does something: %+v", e)
	}
	want := gpuai.PublishedCheckpoint{
		TaskRef: l.TaskRef, Seq: 1, Digest: gpuai.BlobDigest{1, 7}, Bytes: 100, Step: 10, PublishedAt: 5_000, Lease: l.ID,
		Key: "checkpoints/" + id.String() + "/0-0/" + l.ID.String() + "/manifests/" + gpuai.BlobDigest{1, 7}.Hex(),
	}
	if got := r.leases(id)[0].Checkpoint; got == nil || *got != want {
		t.Fatalf("the lease has %+v, want %+v", got, want)
	}
	r.refuse(publish(l, 1+2), gpuai.PreconditionFailed) // after one that is not the newest
	other := publish(l, 1)
	other.Publish.Digest[5] = 1
	r.refuse(other, gpuai.PreconditionFailed)
	for n := uint64(2); n <= 4; n++ {
		r.do(publish(l, n))
	}
	if got, next := r.m.Checkpoints(id, 0, 10); next != 0 || len(got) != 2 || got[0].Seq != 4 || got[1].Seq != 3 {
		t.Fatalf("of 4 checkpoints the newest 2 are kept: %+v, next %d", got, next)
	}
	if a, _ := r.m.Assignment(l.ID); len(a.Resume) != 2 || a.Resume[0].Seq != 4 {
		t.Fatalf("%+v", a.Resume)
	}
	r.report(l, gpuai.ReportDone, 0)
	r.refuse(publish(l, 5), gpuai.Conflict)
	if got := r.m.Tasks(id, 0, 1)[0].Checkpoint; got == nil || got.Seq != 4 {
		t.Fatalf("the ended task has %+v", got)
	}
	r.do(&RetireJobs{Jobs: []gpuai.JobID{id}})
	if n := r.m.checkpointSlots.Len(); n != 0 {
		t.Fatalf("%d checkpoints outlive their job", n)
	}
}

func TestPublishRefusesWhatIsOutOfBounds(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 1)
	l := r.leases(r.submit(jobSpec("x", 1, 1)))[0]
	for name, spoil := range map[string]func(p *gpuai.Publish){
		"no digest":    func(p *gpuai.Publish) { p.Digest = gpuai.BlobDigest{} },
		"negative":     func(p *gpuai.Publish) { p.Bytes = -1 },
		"too large":    func(p *gpuai.Publish) { p.Bytes = gpuai.MaxCheckpointBytes + 1 },
		"keeps none":   func(p *gpuai.Publish) { p.Keep = 0 },
		"keeps a lot":  func(p *gpuai.Publish) { p.Keep = gpuai.MaxCheckpointKeep + 1 },
		"other's task": func(p *gpuai.Publish) { p.Task.Task++ },
	} {
		c := publish(l, 1)
		spoil(&c.Publish)
		want := gpuai.InvalidSpec
		if name == "other's task" {
			want = gpuai.Conflict
		}
		t.Run(name, func(t *testing.T) { r.refuse(c, want) })
	}
	old := newRegion(t)
	old.node("a", 1)
	old.refuse(publish(old.leases(old.submit(jobSpec("x", 1, 1)))[0], 1), gpuai.PreconditionFailed)
}

// A runner whose lease has ended publishes nothing any more, whether or not its
// task runs elsewhere, and the region tells of it.
func TestStaleRunnerNeverForksACheckpoint(t *testing.T) {
	r := newest(t, nil)
	inc := r.node("a", 1)
	r.node("b", 1)
	id := r.submit(jobSpec("x", 1, 1))
	old := r.leases(id)[0]
	r.do(publish(old, 1))
	r.do(&SetNodeEligibility{Node: old.Node, Drained: true})
	r.expire(string(old.Node), inc)
	r.wait(2 * gpuai.Second) // its back-off
	now := r.leases(id)[0]
	if now.ID == old.ID || now.Checkpoint == nil || now.Checkpoint.Seq != 1 {
		t.Fatalf("the next attempt does not have the checkpoint: %+v", now)
	}
	out := r.apply(publish(old, 2))
	if out.Results[0].Code != gpuai.Conflict || len(out.Events) != 1 || out.Events[0].Kind != gpuai.CheckpointRefused || out.Events[0].Lease != old.ID {
		t.Fatalf("%+v", out)
	}
	r.do(publish(now, 2))
	r.refuse(publish(old, 3), gpuai.Conflict)
	if got := r.leases(id)[0].Checkpoint; got.Seq != 2 || got.Lease != now.ID {
		t.Fatalf("%+v", got)
	}
	other := publish(now, 3)
	other.Publish.Incarnation++
	r.refuse(other, gpuai.Conflict)
}

// After a restore from a backup the checkpoints are there, and the tokens of the
// older epoch publish nothing.
func TestPublishOfAnOlderEpochIsRefused(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 1)
	id := r.submit(jobSpec("x", 1, 1))
	l := r.leases(id)[0]
	r.do(publish(l, 1))
	if _, err := r.m.BeginEpoch(NewEpoch{Epoch: 1, RestoreID: [16]byte{1}, MaxTTL: gpuai.MinLeaseTTL}); err != nil {
		t.Fatal(err)
	}
	r.index = r.m.Index()
	r.refuse(publish(l, 2), gpuai.Conflict)
	if got := r.leases(id)[0].Checkpoint; got == nil || got.Seq != 1 {
		t.Fatalf("%+v", got)
	}
}

// Of two jobs that may go, that goes which loses less: the work since its last
// checkpoint counts, not since its start.
func TestPreemptionCountsLostProgress(t *testing.T) {
	for _, gang := range []bool{false, true} {
		r := newest(t, nil)
		r.node("a", 4)
		var ids [2]gpuai.JobID
		for i := range ids {
			s := jobSpec("low", 2, 1)
			s.Groups[0].Gang = gang
			ids[i] = r.submit(s)
		}
		r.wait(10 * gpuai.Minute)
		first := r.leases(ids[0]) // the older job: it would be spared
		for _, l := range first {
			r.do(publish(l, 1))
		}
		r.wait(gpuai.Minute)
		r.submit(at(jobSpec("high", 1, 2), 50))
		if gone, spared := len(r.revoking(ids[0])), len(r.revoking(ids[1])); gone != 2 || spared != 0 {
			t.Errorf("gang %t: %d tasks that lose a minute go, %d that lose eleven", gang, gone, spared)
		}
	}
}

// A member of a gang that has published nothing goes on from what rank 0 has.
func TestGangGoesOnFromRankZero(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 2)
	id := r.submit(gangOf(jobSpec("x", 2, 1)))
	ls := r.leases(id)
	r.do(publish(ls[0], 1))
	for _, l := range ls {
		if a, _ := r.m.Assignment(l.ID); len(a.Resume) != 1 || a.Resume[0].Task != 0 {
			t.Errorf("task %d goes on from %+v", l.Task, a.Resume)
		}
	}
	r.do(publish(ls[1], 1))
	if a, _ := r.m.Assignment(ls[1].ID); len(a.Resume) != 1 || a.Resume[0].Task != 1 {
		t.Errorf("%+v", a.Resume)
	}
}

// A gang whose members save shards of their own goes on, after a loss, from the
// newest step that all of them have of one attempt.
func TestGangGoesOnFromOneStep(t *testing.T) {
	r := newest(t, nil)
	inc := r.node("a", 2)
	spec := gangOf(jobSpec("x", 2, 1))
	spec.Groups[0].Task.Checkpoint.Keep, spec.Groups[0].Restart.Attempts = 3, 9
	id := r.submit(spec)
	from := func(want ...uint64) []gpuai.Lease {
		t.Helper()
		ls := r.leases(id)
		for i, l := range ls {
			a, _ := r.m.Assignment(l.ID)
			at := slices.IndexFunc(a.Resume, func(c gpuai.PublishedCheckpoint) bool { return a.ResumeSeq == 0 || c.Seq == a.ResumeSeq })
			if at < 0 || a.Resume[at].Step != want[i] {
				t.Fatalf("task %d goes on from %d of %+v, want step %d", i, a.ResumeSeq, a.Resume, want[i])
			}
		}
		return ls
	}
	save := func(l gpuai.Lease, n, step uint64) {
		t.Helper()
		c := publish(l, n)
		c.Publish.Step, c.Publish.Keep = step, 3
		r.do(c)
	}
	again := func() {
		t.Helper()
		r.expire("a", inc)
		r.wait(10 * gpuai.Minute)
		inc = r.node("a", 2)
		r.wait(10 * gpuai.Minute)
		if len(r.leases(id)) != 2 {
			t.Fatalf("the gang does not run: %+v", r.leases(id))
		}
	}
	ls := r.leases(id)
	save(ls[0], 1, 10)
	from(10, 10) // rank 1 has none: it goes on from rank 0's
	save(ls[1], 1, 10)
	save(ls[1], 2, 20) // and the host is lost before rank 0 has step 20
	again()
	ls = from(10, 10)
	save(ls[0], 2, 20) // anew, and rank 1's is of the line that was left
	again()
	ls = from(10, 10)
	save(ls[0], 3, 20)
	save(ls[1], 3, 20)
	again()
	ls = from(20, 20)
	for n := uint64(4); n < 8; n++ { // nothing that both have is kept
		save(ls[1], n, 10*n)
	}
	again()
	from(20, 70)
}

// publishCommand draws a publish, mostly of a live lease after its newest.
func (w *walk) publishCommand() Command {
	ls, _ := w.m.Leases(w.r.Uint32N(20), 20, w.r.IntN(6) > 0)
	if len(ls) == 0 {
		return &Tick{}
	}
	l := ls[w.r.IntN(len(ls))]
	n := uint64(w.r.IntN(3))
	if l.Checkpoint != nil && w.r.IntN(8) > 0 {
		n = l.Checkpoint.Seq
	}
	c := publish(l, n+1)
	c.Publish.Keep = 1 + w.r.Uint32N(3)
	if w.r.IntN(10) == 0 {
		c.Node = "e"
	}
	return c
}

// Machines that apply one log with checkpoints, restored and forked at random
// points, are equal in digest.
func TestRandomCheckpointLogs(t *testing.T) {
	t.Parallel()
	seeds := uint64(8)
	if brief() {
		seeds = 3
	}
	kept := uint32(0)
	for seed := range seeds {
		w := newPreemptWalk(t, 700+seed)
		w.publishes = true
		other := New(w.m.opts)
		for i, entry := range w.log {
			if err := other.Apply(uint64(i+1), w.term, entry, &Output{}); err != nil {
				t.Fatal(err)
			}
		}
		w.beside(seed, other, 120)
		kept += w.m.checkpointSlots.Len()
	}
	if kept < uint32(seeds) {
		t.Errorf("%d checkpoints are kept: the walks are no test of them", kept)
	}
}

func TestCheckpointsArePaged(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 8)
	s := jobSpec("x", 4, 1)
	second := s.Groups[0]
	second.Name = "second"
	s.Groups = append(s.Groups, second)
	id := r.submit(s)
	for _, l := range r.leases(id) {
		r.do(publish(l, 1))
		r.do(publish(l, 2))
	}
	all, _ := r.m.Checkpoints(id, 0, 100)
	var paged []gpuai.PublishedCheckpoint
	for next, more := uint32(0), true; more; more = next != 0 {
		var page []gpuai.PublishedCheckpoint
		page, next = r.m.Checkpoints(id, next, 3)
		paged = append(paged, page...)
	}
	if len(all) != 16 || len(paged) != 16 || all[15] != paged[15] || all[7] != paged[7] {
		t.Errorf("%d at once, %d in pages", len(all), len(paged))
	}
}

// A node that names a lease that is not its own, or not the task's, is refused,
// and writes nothing into the events of a job.
func TestRefusedPublishOfAStrangerTellsNothing(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 1)
	r.node("b", 1)
	first, second := r.submit(jobSpec("x", 1, 1)), r.submit(jobSpec("y", 1, 1))
	mine, theirs := r.leases(first)[0], r.leases(second)[0]
	r.do(publish(theirs, 1))
	for name, spoil := range map[string]func(c *PublishCheckpoint){
		"another's job":     func(c *PublishCheckpoint) { c.Publish.Task = theirs.TaskRef },
		"another's lease":   func(c *PublishCheckpoint) { c.Publish.Lease, c.Publish.Task = theirs.ID, theirs.TaskRef },
		"no such lease":     func(c *PublishCheckpoint) { c.Publish.Lease = gpuai.MakeToken(0, 9_999, 1) },
		"no such task":      func(c *PublishCheckpoint) { c.Publish.Task.Task = 7 },
		"no such group":     func(c *PublishCheckpoint) { c.Publish.Task.Group = 7 },
		"an invented token": func(c *PublishCheckpoint) { c.Publish.Lease, c.Publish.Task = 1, theirs.TaskRef },
	} {
		c := publish(mine, 2)
		spoil(c)
		if out := r.apply(c); out.Results[0].Code != gpuai.Conflict || len(out.Events) != 0 {
			t.Errorf("%s: %+v", name, out)
		}
	}
	r.report(mine, gpuai.ReportDone, 0)
	if out := r.apply(publish(mine, 1)); out.Results[0].Code != gpuai.Conflict || len(out.Events) != 1 {
		t.Errorf("its own, which has ended: %+v", out)
	}
}

// Where there is no room for one more a task still replaces what it has, and no
// tenant takes all there is. A job has no more kept than it says.
func TestFullTableOfCheckpointsTakesReplacements(t *testing.T) {
	t.Parallel()
	r := newest(t, nil)
	r.node("a", 2)
	id := r.submit(jobSpec("x", 2, 1))
	ls := r.leases(id)
	greedy := func(n uint64) *PublishCheckpoint {
		c := publish(ls[0], n)
		c.Publish.Keep = gpuai.MaxCheckpointKeep
		return c
	}
	for n := range uint64(3) {
		r.do(greedy(n + 1))
	}
	if got, _ := r.m.Checkpoints(id, 0, 10); len(got) != gpuai.DefaultCheckpointKeep {
		t.Fatalf("%d are kept", len(got))
	}
	tenant := r.m.jobs.Get(0).tenant
	*r.m.checkpointsOfTenant.Mut(tenant) += MaxTenantCheckpoints - 2
	r.m.sp.Commit()
	r.check = false
	if res := r.apply(publish(ls[1], 1)).Results[0]; res.Code != gpuai.RateLimited {
		t.Errorf("a tenant has more than its share: %+v", res)
	}
	r.do(greedy(4))
	*r.m.checkpointsOfTenant.Mut(tenant) -= MaxTenantCheckpoints - 2
	for r.m.checkpointSlots.Len() < MaxCheckpoints {
		r.m.checkpointSlots.Alloc()
	}
	r.m.sp.Commit()
	if res := r.apply(publish(ls[1], 1)).Results[0]; res.Code != gpuai.RateLimited {
		t.Errorf("the table grows: %+v", res)
	}
	r.do(greedy(5))
	if n := r.m.checkpointSlots.Len(); n != MaxCheckpoints || r.leases(id)[0].Checkpoint.Seq != 5 {
		t.Errorf("%d are kept", n)
	}
	one := greedy(6)
	one.Publish.Keep = 1
	r.do(one)
	if got, _ := r.m.Checkpoints(id, 0, 10); len(got) != 1 || got[0].Seq != 6 || got[0].Digest != one.Publish.Digest {
		t.Errorf("%+v", got)
	}
}

// A bundle has a checkpoint's digest neither in its state nor in its entries, and
// those that are equal stay so: a repeated publish is one.
func TestCheckpointsAreRedacted(t *testing.T) {
	r := newest(t, nil)
	r.node("a", 1)
	id := r.submit(jobSpec("x", 1, 1))
	l := r.leases(id)[0]
	r.do(publish(l, 1))
	m := restored(t, r.m)
	x := Redaction{Salt: 7}
	x.RedactState(m)
	digest := m.LeasesOfJob(id, 0, 1)[0].Checkpoint.Digest
	if digest == (gpuai.BlobDigest{1, 7}) || digest.IsZero() || digest != x.blob(gpuai.BlobDigest{1, 7}) {
		t.Errorf("the state has %x", digest)
	}
	for i, n := range []uint64{1, 2} { // the first again, and the next
		c := publish(l, n)
		e, err := x.RedactEntry(AppendEntry(nil, Header{Term: 1}, c.Append(nil, Envelope{})), m)
		if err != nil || bytes.Contains(e, c.Publish.Digest[:]) {
			t.Fatalf("%v, %x", err, e)
		}
		out := &Output{}
		if err := m.Apply(m.Index()+1, 1, e, out); err != nil || out.Results[0].Code != gpuai.OK || len(out.Events) != i {
			t.Errorf("%v, %+v", err, out)
		}
	}
	if err := m.Check(); err != nil {
		t.Error(err)
	}
}
