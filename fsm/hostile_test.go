package fsm

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// A rawCommand is a command of a type, whatever the bytes of its body are.
type rawCommand struct {
	typ  uint8
	body []byte
}

func (c rawCommand) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, c.typ, env, func(b []byte) []byte { return append(b, c.body...) })
}

// termsBodies returns good bodies of every type of command about quotas, money and
// contributors' nodes, with all of their fields in use.
func termsBodies() (out []rawCommand) {
	models := []gpuai.ModelQuota{{Model: "H100", GPUs: 2}, {Model: "MI300X", GPUs: 1}}
	limit := gpuai.BudgetLimit{GPUHours: some(uint32(7)), Money: some(gpuai.Micros(9_000_000))}
	for _, c := range []struct {
		typ uint8
		cmd Command
	}{
		{typeSetQuota, &SetQuota{Tenant: "a", Quota: gpuai.Quota{
			GPUs: some(uint32(4)), CPU: some(gpuai.MilliCPU(9_000)), Memory: some(gpuai.Bytes(1 << 40)), RunningJobs: some(uint32(5)), PendingJobs: some(uint32(90)),
			RequestsPerSecond: some(uint32(9)), Models: models, Cohort: "x", BorrowGPUs: some(uint32(2)),
		}}},
		{typeSetBudget, &SetBudget{Tenant: "b", Budget: gpuai.Budget{Day: limit, Month: limit, Total: limit}}},
		{typeSetPrices, &SetPrices{gpuai.Prices{FeeBps: 250, Models: []gpuai.ModelPrice{{Model: "H100", Price: 2_000_000}, {Model: "MI300X", Price: 900_000}}}}},
		{typeSetNodePrice, &SetNodePrice{Node: "a", Price: 1_500_000}},
		{typeSetNodeSchedule, &SetNodeSchedule{Node: "b", Schedule: gpuai.Schedule{UTCOffset: 60, Windows: []gpuai.Window{{From: 60, To: 4_000}, {From: 9_000, To: 10}}}}},
		{typeSetNodeAsk, &SetNodeAsk{Node: "c", Price: 700_000}},
		{typeSetRegionKey, setKey(1, gpuai.KeyOffered, 0)},
	} {
		full := c.cmd.Append(nil, Envelope{Tenant: "default"})
		head, _ := wire.BeginCommand(nil, c.typ, 1, "default", "", "")
		out = append(out, rawCommand{c.typ, full[len(head):]})
	}
	return out
}

// extremes are what a hostile field holds.
var extremes = []uint64{0, 1, 1<<7 - 1, 1 << 7, 1<<15 - 1, 1 << 15, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 56, math.MaxInt64, 1 << 63, math.MaxUint64}

// mutants returns bodies that are like a good one: cut, longer, and with each byte and
// each field at each place another.
func (c rawCommand) mutants(f func(body []byte)) {
	for n := range c.body {
		f(c.body[:n])
		f(append(append([]byte{}, c.body...), c.body[:n]...))
	}
	for i := range c.body {
		for _, x := range []byte{0, 1, 0x7f, 0x80, 0xff} {
			b := append([]byte{}, c.body...)
			b[i] = x
			f(b)
		}
		for _, x := range extremes {
			for _, width := range []int{2, 4, 8} {
				if i+width <= len(c.body) {
					b := append([]byte{}, c.body...)
					copy(b[i:], le.AppendUint64(nil, x)[:width])
					f(b)
				}
			}
		}
	}
}

// Whatever the bytes of a command about quotas, budgets, prices and contributors' nodes
// are, it answers; no balance is below what is held of it, the ledger sums to zero, and
// what tenants have is what a recount says, while jobs run, end and are billed on.
func TestHostileTermsKeepTheLedger(t *testing.T) {
	t.Parallel()
	w := newQuotaWalk(t, 77)
	w.ofOwners()
	for range 40 {
		w.step()
	}
	w.check = false
	refused, taken, n := 0, 0, 0
	for _, good := range termsBodies() {
		if out := w.apply(good); out.Results[0].Code != gpuai.OK {
			t.Fatalf("a good command of type %d is refused: %+v", good.typ, out.Results[0])
		}
		good.mutants(func(body []byte) {
			if n++; brief() && n%8 != 0 {
				return
			}
			if out := w.apply(rawCommand{good.typ, body}); out.Results[0].Code == gpuai.OK {
				taken++
			} else {
				refused++
			}
			if n%32 != 0 {
				return
			}
			w.step()
			w.time = w.time.Add(gpuai.Duration(w.r.IntN(90)) * gpuai.Minute)
			w.apply(&Tick{})
			if err := w.m.checkTables(); err != nil {
				t.Fatalf("type %d, behind body %x: %v", good.typ, body, err)
			}
		})
	}
	if err := w.m.Check(); err != nil {
		t.Fatal(err)
	}
	if taken < 100 || refused < 100 {
		t.Errorf("%d were taken and %d refused: the test shows little", taken, refused)
	}
	if len(w.m.liveLeases()) == 0 || w.m.bills.Len() == 0 {
		t.Error("nothing runs, and nothing was billed")
	}
}

// Random bytes, and pairs of fields at once.
func TestHostileTermsAtRandom(t *testing.T) {
	t.Parallel()
	goods := termsBodies()
	for seed := range few(6, 1) {
		w := newQuotaWalk(t, 900+seed)
		w.ofOwners()
		for range 30 {
			w.step()
		}
		w.check = false
		rnd := rand.New(rand.NewPCG(seed, 6))
		for i := range 400 {
			c := goods[rnd.IntN(len(goods))]
			body := append([]byte{}, c.body...)
			for range 1 + rnd.IntN(3) {
				at := rnd.IntN(len(body))
				copy(body[at:], le.AppendUint64(nil, extremes[rnd.IntN(len(extremes))])[:1+rnd.IntN(8)])
			}
			w.apply(rawCommand{c.typ, body[:len(body)-rnd.IntN(2)*rnd.IntN(len(body))]})
			if i%8 == 0 {
				w.step()
				if err := w.m.checkTables(); err != nil {
					t.Fatalf("seed %d, command %d: %v", seed, i, err)
				}
			}
		}
		if err := w.m.Check(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// Types that no build knows stop the machine before it applies anything.
func TestUnknownTermsStopTheMachine(t *testing.T) {
	r := newTenantRegion(t, 1)
	for _, typ := range []uint8{35, 36, 37, 38, 45} {
		before := r.m.Digest()
		entry := AppendEntry(nil, Header{Time: r.time, Wall: 1, Term: r.term}, rawCommand{typ, []byte("x")}.Append(nil, Envelope{Tenant: "default"}))
		if err := r.m.Apply(r.index+1, r.term, entry, &Output{}); !errors.Is(err, ErrUnknownCommand) || r.m.Digest() != before {
			t.Errorf("type %d: %v", typ, err)
		}
	}
}

// seedTerms adds good and hostile bodies of these commands to a fuzz target whose input
// is a type and a body.
func seedTerms(f *testing.F) {
	for _, c := range termsBodies() {
		typ := c.typ - 1 // see FuzzApply
		f.Add(append([]byte{typ}, c.body...))
		n := 0
		c.mutants(func(body []byte) {
			if n++; n%97 == 0 {
				f.Add(append([]byte{typ}, body...))
			}
		})
	}
	if typ := uint8(typeSetQuota - 1); 1+typ%(numTypes-1) != typeSetQuota {
		f.Fatal(fmt.Sprint("the first byte of an input is not its type: ", typ))
	}
}
