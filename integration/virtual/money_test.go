package virtual

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/server/offline"
	"github.com/gpuai/gpuai/store"
)

// Prices are by the second: 1 USD on the nodes of ann, 2 on that of bob, and a fee.
const (
	annAsks = 3_600 * usd
	bobAsks = 2 * annAsks
	feeBps  = 500
	usd     = gpuai.Micros(1_000_000)
	budget  = 220 * usd
)

// A book is what a region says of its money at an index.
type book struct {
	usage  gpuai.TenantUsage
	earned map[gpuai.ContributorID]gpuai.Micros
	billed gpuai.Micros // by the records of all jobs
}

// A treasury is a region with prices, owners and a budget, and a naive account of
// it: what each lease costs is computed from the events of its grant and its end.
type treasury struct {
	*region
	fleet *fleet
	jobs  []gpuai.JobID
	// settled and paid are what leases that ended before the backup came to; a region
	// that was restored knows of them no more than their sums.
	settled gpuai.Micros
	paid    map[gpuai.ContributorID]gpuai.Micros
	from    uint64 // the first index whose events are counted anew
}

func (y *treasury) ask() *client.Client { return y.client(5*time.Second, y.others()...) }

// must has something done once the region can.
func (y *treasury) must(what string, do func(ctx context.Context, c *client.Client) error) {
	y.t.Helper()
	var err error
	for end := time.Now().Add(convergeWithin); ; {
		if err = do(context.Background(), y.ask()); err == nil {
			return
		}
		if time.Now().After(end) {
			y.t.Fatalf("%s: %v; %s", what, err, y.describe())
		}
		<-time.After(100 * time.Millisecond)
	}
}

// openTreasury gives each of three nodes an owner and a price, and the tenant a
// budget.
func openTreasury(r *region) *treasury {
	y := &treasury{region: r, paid: map[gpuai.ContributorID]gpuai.Micros{}, from: 1}
	y.fleet = r.startFleet(3, func(int) time.Duration { return 0 })
	y.must("set a budget", func(ctx context.Context, c *client.Client) error {
		most := budget
		_, err := c.SetBudget(ctx, gpuai.DefaultTenant, gpuai.Budget{Total: gpuai.BudgetLimit{Money: &most}, Day: gpuai.BudgetLimit{Money: &most}})
		return err
	})
	y.must("set the fee", func(ctx context.Context, c *client.Client) error {
		return c.SetPrices(ctx, gpuai.Prices{FeeBps: feeBps})
	})
	for i, a := range y.fleet.agents {
		owner, ask := gpuai.ContributorID("ann"), annAsks
		if i == 2 {
			owner, ask = "bob", bobAsks
		}
		y.must("give a node to its owner", func(ctx context.Context, c *client.Client) error {
			_, err := c.SetNodeOwner(ctx, a.id, owner)
			return err
		})
		y.must("ask a price", func(ctx context.Context, c *client.Client) error {
			_, err := c.SetNodeAsk(ctx, a.id, ask)
			return err
		})
	}
	return y
}

// submit submits a job that may run for so long on one node, and again if its node
// is lost.
func (y *treasury) submit(key string, node int, limit gpuai.Duration) gpuai.JobID {
	y.t.Helper()
	spec := jobSpec(key)
	spec.Limits.RunTime = limit
	spec.Groups[0].Restart = gpuai.Restart{Attempts: 5, Backoff: 100, On: []gpuai.RestartCause{gpuai.CauseNodeLost}}
	spec.Groups[0].Constraints = []gpuai.Constraint{{Attribute: "label.name", Op: gpuai.In, Values: []string{string(y.fleet.agents[node].id)}}}
	var out gpuai.Submitted
	y.must("submit "+key, func(ctx context.Context, c *client.Client) (err error) {
		out, err = c.Submit(ctx, client.SubmitRequest{Spec: spec, Key: key})
		return err
	})
	y.jobs = append(y.jobs, out.Job.ID)
	return out.Job.ID
}

// leases returns the live leases.
func (y *treasury) leases() (out []gpuai.Lease) {
	y.t.Helper()
	y.must("list the leases", func(ctx context.Context, c *client.Client) (err error) {
		out, _, err = c.Leases(ctx, client.LeaseQuery{Page: client.Page{Limit: 100}})
		return err
	})
	return slices.DeleteFunc(out, func(l gpuai.Lease) bool { return l.State == gpuai.LeaseEnded })
}

// runs waits until a job has a lease that runs.
func (y *treasury) runs(job gpuai.JobID) gpuai.Lease {
	y.t.Helper()
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); y.idle(200 * time.Millisecond) {
		for _, l := range y.leases() {
			if l.Job == job && l.State == gpuai.LeaseRunning {
				return l
			}
		}
	}
	y.t.Fatalf("job %s does not run; %s", job, y.describe())
	return gpuai.Lease{}
}

// finish has a lease's agent report that its task has ended well.
func (y *treasury) finish(l gpuai.Lease) {
	y.t.Helper()
	gone := func() bool {
		return !slices.ContainsFunc(y.leases(), func(live gpuai.Lease) bool { return live.ID == l.ID })
	}
	for end := time.Now().Add(convergeWithin); !gone(); y.idle(200 * time.Millisecond) {
		if time.Now().After(end) {
			y.t.Fatalf("lease %s does not end; %s", l.ID, y.describe())
		}
		for _, a := range y.fleet.agents {
			if a.id == l.Node {
				a.tell(&gpuai.Report{Lease: l.ID, Seq: 2, Incarnation: l.Incarnation, State: gpuai.ReportDone})
			}
		}
	}
}

func ownerOf(node gpuai.NodeID) (owner gpuai.ContributorID, price gpuai.Micros) {
	if node == "node-002" {
		return "bob", bobAsks
	}
	return "ann", annAsks
}

// costOf is what a device costs for a time, without the fee, and with it.
func costOf(price gpuai.Micros, d gpuai.Duration) (amount, all gpuai.Micros) {
	amount = price * gpuai.Micros(d) / gpuai.Micros(gpuai.Hour)
	return amount, amount + amount*feeBps/10_000
}

// events returns what leases did from y.from on: all that comes within some seconds.
func (y *treasury) events() (out []gpuai.Event) {
	y.t.Helper()
	y.must("read the events", func(ctx context.Context, c *client.Client) error {
		out = nil
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		err := c.Events(ctx, client.EventQuery{From: y.from}, func(events []gpuai.Event, _ uint64) error {
			out = append(out, events...)
			return nil
		})
		if ctx.Err() != nil {
			return nil
		}
		return err
	})
	return out
}

// read reads the region's books.
func (y *treasury) read() (b book) {
	y.t.Helper()
	b.earned = map[gpuai.ContributorID]gpuai.Micros{}
	y.must("read the books", func(ctx context.Context, c *client.Client) (err error) {
		if b.usage, err = c.Usage(ctx, gpuai.DefaultTenant); err != nil {
			return err
		}
		all, _, err := c.Contributors(ctx, client.Page{Limit: 100})
		if err != nil {
			return err
		}
		for _, e := range all {
			b.earned[e.Contributor] = e.Total
		}
		b.billed = 0
		for _, id := range y.jobs {
			j, err := c.Job(ctx, id.String())
			if err != nil {
				return err
			}
			b.billed += j.Cost.Billed
		}
		return nil
	})
	return b
}

// audit compares the region's books with the naive account, and its snapshot with
// the machine's own rules: the ledger sums to zero, purses hold what bills do.
func (y *treasury) audit(when string) book {
	y.t.Helper()
	var image bytes.Buffer
	y.must("save a snapshot", func(ctx context.Context, c *client.Client) error {
		image.Reset()
		return c.Snapshot(ctx, &image)
	})
	m, err := fsm.Restore(&image, fsm.Options{Region: gpuai.DefaultRegion})
	if err != nil {
		y.t.Fatalf("%s: %v", when, err)
	}
	if err := m.Check(); err != nil {
		y.t.Errorf("%s: %v", when, err)
	}
	spent, earned := y.settled, map[gpuai.ContributorID]gpuai.Micros{"ann": y.paid["ann"], "bob": y.paid["bob"]}
	granted := map[gpuai.Token]gpuai.Instant{}
	for _, e := range y.events() {
		switch e.Kind {
		case gpuai.LeaseGrantedEvent:
			granted[e.Lease] = e.At
		case gpuai.LeaseEndedEvent:
			at, ok := granted[e.Lease]
			if !ok || e.Cause == gpuai.CauseRestored {
				continue // of the region of before: it is billed up to its checkpoint, of which it has none
			}
			owner, price := ownerOf(e.Node)
			amount, all := costOf(price, gpuai.Duration(e.At-at))
			spent += all
			earned[owner] += amount
		}
	}
	held := gpuai.Micros(0)
	for _, l := range y.leases() {
		_, price := ownerOf(l.Node)
		_, all := costOf(price, runLimit)
		if held += all; l.Held != all || l.Billed != 0 || l.Price != price {
			y.t.Errorf("%s: lease %s on %s holds %s at %s and was billed %s, want %s, %s and nothing", when, l.ID, l.Node, l.Held, l.Price, l.Billed, all, price)
		}
	}
	b := y.read()
	if u := b.usage; u.HeldMoney != held || u.Billed.Total.Money != spent || u.Billed.Day.Money != spent || b.billed != spent {
		y.t.Errorf("%s: held %s, billed %s in all, %s today, %s by the jobs; want %s and %s", when, u.HeldMoney, u.Billed.Total.Money, u.Billed.Day.Money, b.billed, held, spent)
	}
	if u := b.usage; u.Budget.Total.Money == nil || *u.Budget.Total.Money != budget || u.Billed.Total.Money+u.HeldMoney > budget {
		y.t.Errorf("%s: the budget is %+v, billed %s and held %s", when, u.Budget.Total, u.Billed.Total.Money, u.HeldMoney)
	}
	for who, want := range earned {
		if b.earned[who] != want {
			y.t.Errorf("%s: %s has earned %s, want %s", when, who, b.earned[who], want)
		}
	}
	return b
}

// runLimit is how long a task may run: what a lease holds is for that.
const runLimit = 60 * gpuai.Second

// restore loses the region without a warning, and restores a backup into empty
// directories of all its servers.
func (y *treasury) restore(backup string) offline.Restored {
	y.t.Helper()
	y.crash(y.others()...)
	c := offline.RestoreConfig{File: backup, MaxTTL: 20 * gpuai.Second}
	for _, m := range y.servers {
		m.dir = filepath.Join(y.base, string(m.id)+"-restored")
		c.Targets = append(c.Targets, offline.Target{Server: m.id, Dir: m.dir})
		c.Members = append(c.Members, store.Member{Server: m.id, Addr: string(m.id) + ":" + portRaft})
	}
	out, err := offline.Restore(&c)
	if err != nil {
		y.t.Fatal(err)
	}
	for _, m := range y.servers {
		y.start(m)
	}
	y.leader()
	return out
}

// TestCase38BillsOutliveARestore backs up a region in which leases run under a budget
// of which half is used, and whose contributors were paid nothing yet. It goes on, is
// lost without a warning, and restored. Nothing is billed twice, nobody's earnings are
// lost or doubled, holds are those of the leases, and the budget goes on from where it
// was; also after all servers were killed once more.
func TestCase38BillsOutliveARestore(t *testing.T) {
	each(t, 1, func(t *testing.T, seed uint64) {
		bubble(t, 3, seed, func(r *region) {
			y := openTreasury(r)
			first, second := y.runs(y.submit("first", 0, runLimit)), y.runs(y.submit("second", 2, runLimit))
			r.idle(30 * time.Second)
			y.finish(first)
			r.idle(10 * time.Second)
			y.finish(second)
			open := y.submit("open", 1, runLimit)
			y.runs(open)
			before := y.audit("before the backup")
			if u := before.usage.Billed.Total.Money; u < budget*45/100 || u > budget*65/100 || before.usage.HeldMoney == 0 {
				t.Fatalf("half of the budget is to be used, and some held: %+v", before.usage)
			}
			dear := y.submit("dear", 2, runLimit) // 126 USD, which are not left
			y.refused(dear)

			backup := filepath.Join(r.base, "backup")
			f, err := os.Create(backup)
			if err == nil {
				err = errors.Join(y.ask().Snapshot(context.Background(), f), f.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
			y.settled, y.paid = before.billed, before.earned

			// What comes behind the backup is lost with the region.
			r.idle(5 * time.Second)
			for _, l := range y.leases() {
				y.finish(l)
			}
			r.idle(time.Second)
			if after := y.read(); after.billed <= before.billed {
				t.Fatalf("nothing was billed behind the backup: %s", after.billed)
			}
			out := y.restore(backup)
			y.from = out.Index + 1
			restored := y.audit("after the restore")
			if restored.usage.HeldMoney != 0 || restored.billed != before.billed {
				t.Errorf("after the restore %s are held, and %s billed; it was %s", restored.usage.HeldMoney, restored.billed, before.billed)
			}

			again := y.runs(open) // once it is quiet no more
			y.audit("with leases of the new epoch")
			y.refused(dear)
			r.crash(r.others()...)
			for _, m := range r.servers {
				r.start(m)
			}
			r.leader()
			y.audit("after all were killed")
			r.idle(5 * time.Second)
			y.finish(again)
			if end := y.audit("in the end"); end.billed <= before.billed || end.usage.HeldMoney != 0 && len(y.leases()) == 0 {
				t.Errorf("in the end %s are billed, %s before: %+v", end.billed, before.billed, end.usage)
			}
			r.converge()
		})
	})
}

// refused requires that a job waits for the budget alone.
func (y *treasury) refused(job gpuai.JobID) {
	y.t.Helper()
	y.must("hear that the budget does not suffice", func(ctx context.Context, c *client.Client) error {
		e, err := c.Explain(ctx, job.String(), 0)
		if err != nil {
			return err
		}
		for _, why := range e.Reasons {
			if why.Code == gpuai.BudgetExhausted {
				return nil
			}
		}
		return errors.New("the job waits for something else")
	})
}
