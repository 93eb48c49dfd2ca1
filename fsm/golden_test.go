package fsm

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

var rewrite = flag.Bool("rewrite", false, "write the digests and snapshots of the golden logs anew, and logs that are missing")

// Golden logs: a recorded log must give the digests that it gave when it was
// recorded. A changed digest needs a new feature level (DESIGN.md, law 8). A
// log is lines, of which each is one of
//
//	<hexadecimal>        an entry
//	digest <digest>      that the machine must have now
//	snapshot <file>      what it must write now, to the byte; the log goes on
//	                     with a machine that was restored from the file
//	epoch <n> <id> <ttl> a restore from a backup, see BeginEpoch
//
// Those of old levels are kept for as long as a region may hold such a log.
func TestGoldenLogs(t *testing.T) {
	if *rewrite {
		recordMissing(t)
	}
	logs, _ := filepath.Glob("testdata/*.log")
	levels := map[uint32]bool{}
	for _, path := range logs {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		g := golden{t: t, path: path, m: New(Options{Region: "test"}), levels: levels}
		for i, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
			g.line = i + 1
			g.step(line)
		}
		if *rewrite {
			if err := os.WriteFile(path, []byte(strings.Join(g.out, "\n")+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for level := MinLevel; level <= MaxLevel; level++ {
		if !levels[level] {
			t.Errorf("no golden log holds a snapshot of level %d", level)
		}
	}
}

// A golden replays one log.
type golden struct {
	t      *testing.T
	path   string
	line   int
	m      *Machine
	levels map[uint32]bool // of which there was a snapshot
	out    []string        // the log as it would be recorded now
}

func (g *golden) fatal(format string, args ...any) {
	g.t.Helper()
	g.t.Fatalf("%s:%d: %s", g.path, g.line, fmt.Sprintf(format, args...))
}

func (g *golden) step(line string) {
	g.t.Helper()
	var err error
	switch f := strings.Fields(line); {
	case len(f) == 2 && f[0] == "digest":
		now := "digest " + g.m.Digest().String()
		if now != line && !*rewrite {
			g.t.Errorf("%s:%d: %s, want %s", g.path, g.line, now, line)
		}
		line = now
	case len(f) == 2 && f[0] == "snapshot":
		g.snapshot(filepath.Join(filepath.Dir(g.path), f[1]))
	case len(f) == 4 && f[0] == "epoch":
		e := NewEpoch{}
		if _, err = fmt.Sscan(f[1]+" "+f[3], &e.Epoch, (*int64)(&e.MaxTTL)); err == nil {
			_, err = hex.Decode(e.RestoreID[:], []byte(f[2]))
		}
		if err == nil {
			_, err = g.m.BeginEpoch(e)
		}
	default:
		var entry []byte
		if entry, err = hex.DecodeString(line); err != nil {
			break
		}
		e, _ := wire.OpenEntry(entry)
		err = g.m.Apply(g.m.Index()+1, e.Header.Term, entry, &Output{})
	}
	if err != nil {
		g.fatal("%v", err)
	}
	g.out = append(g.out, line)
}

func (g *golden) snapshot(file string) {
	if p := g.m.sched.Packing(); strings.HasSuffix(file, "-efw.snap") != (p == gpuai.PackingEFW) {
		g.fatal("the policy that places at %s is %v: a command of the log was refused", file, p)
	}
	var b bytes.Buffer
	if err := g.m.Fork().WriteSnapshot(&b); err != nil {
		g.fatal("%v", err)
	}
	if *rewrite {
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			g.fatal("%v", err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		g.fatal("%v", err)
	}
	if !bytes.Equal(b.Bytes(), want) {
		g.t.Errorf("%s:%d: the machine writes another snapshot than %s: a region of mixed versions would not agree", g.path, g.line, file)
	}
	info, err := InspectSnapshot(bytes.NewReader(want))
	if err != nil || info.Level != g.m.Level() || info.Digest != g.m.Digest().String() {
		g.fatal("%s is inspected as %+v, %v; the machine has level %d", file, info, err, g.m.Level())
	}
	g.levels[info.Level] = true
	if g.m, err = Restore(bytes.NewReader(want), Options{Region: "test"}); err != nil {
		g.fatal("%s: %v", file, err)
	}
}

// recordMissing writes the logs that are not there.
func recordMissing(t *testing.T) {
	for name, record := range map[string]func(w *goldenWalk){
		"level-1": func(w *goldenWalk) { w.steps(60); w.line("snapshot level-1.snap"); w.steps(60) },
		"level-2": func(w *goldenWalk) {
			w.steps(40)
			w.apply(&SetFeatureLevel{Level: 2})
			w.flush()
			w.steps(40)
			w.line("snapshot level-2.snap")
			w.steps(40)
		},
		"level-3": func(w *goldenWalk) {
			w.steps(40)
			w.apply(&SetFeatureLevel{Level: 3})
			w.flush()
			w.gangs()
			w.steps(60)
			p := gpuai.DefaultPolicy()
			p.AgingEvery = gpuai.Minute
			w.apply(&SetPolicy{Policy: p})
			w.flush()
			w.line("snapshot level-3.snap")
			w.steps(40)
		},
		"level-4":           recordLevel4,
		"level-4-quota":     recordQuotas,
		"level-4-ledger":    recordLedger,
		"level-4-authority": recordAuthority,
		"level-4-hours":     recordHours,
		"level-4-tokens":    recordAccess,
		"level-4-secrets":   recordSecrets,
		"level-3-efw":       recordPacking,
		"level-3-order":     recordOrder,
		"level-3-preempt":   recordPreemption,
		"level-3-notes":     recordNotes,
		"level-3-checkpoint": func(w *goldenWalk) {
			w.apply(&SetFeatureLevel{Level: 3})
			w.flush()
			w.preempts, w.publishes = true, true
			w.steps(60)
			w.line("snapshot level-3-checkpoint.snap")
			w.steps(40)
		},
		"level-2-restored": func(w *goldenWalk) {
			w.steps(60)
			e := NewEpoch{Epoch: 3, RestoreID: [16]byte{1, 2, 3}, MaxTTL: gpuai.MinLeaseTTL}
			w.line(fmt.Sprintf("epoch %d %x %d", e.Epoch, e.RestoreID, int64(e.MaxTTL)))
			if _, err := w.m.BeginEpoch(e); err != nil {
				t.Fatal(err)
			}
			w.index = w.m.Index()
			w.line("snapshot level-2-restored.snap")
			w.steps(80)
		},
	} {
		path := "testdata/" + name + ".log"
		if _, err := os.Stat(path); err == nil {
			continue
		}
		w := &goldenWalk{walk: newWalk(t, 177)}
		record(w)
		if err := os.WriteFile(path, []byte(strings.Join(w.lines, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

type goldenWalk struct {
	*walk
	lines []string
}

// recordAuthority has authorities come and go, and nodes and servers join.
func recordAuthority(w *goldenWalk) {
	w.joins = true
	w.steps(20)
	w.apply(&SetFeatureLevel{Level: 4})
	w.flush()
	w.steps(80)
	w.line("snapshot level-4-authority.snap")
	w.steps(40)
}

// recordNotes has agents say why tasks end and what images are, before the
// level that keeps it and from it on.
func recordNotes(w *goldenWalk) {
	w.says = true
	w.steps(40)
	w.apply(&SetFeatureLevel{Level: 3})
	w.flush()
	w.steps(100)
	w.line("snapshot level-3-notes.snap")
	w.steps(80)
}

func (w *goldenWalk) steps(n int) {
	for range n {
		w.step()
		w.flush()
	}
	w.line("digest " + w.m.Digest().String())
}

// flush writes the entry that was applied last.
func (w *goldenWalk) flush() { w.line(hex.EncodeToString(w.log[len(w.log)-1])) }

func (w *goldenWalk) line(line string) { w.lines = append(w.lines, line) }

// recordPacking goes to another packing and back.
func recordPacking(w *goldenWalk) {
	w.apply(&SetFeatureLevel{Level: 3})
	w.flush()
	w.steps(20)
	w.pack()
	for range 6 {
		w.steps(10)
		w.pack()
	}
	w.line("snapshot level-3-efw.snap")
	for range 5 {
		w.steps(20)
		w.pack()
	}
	w.apply(&SetPolicy{Policy: gpuai.DefaultPolicy()})
	w.flush()
	w.steps(10)
}

// pack turns efw on, which the walk's own policies turn off now and then.
func (w *goldenWalk) pack() {
	p := gpuai.DefaultPolicy()
	p.Packing = gpuai.PackingEFW
	for _, c := range []Command{&SetPolicy{Policy: p}, &SetDemand{Demand: walkDemand()}, &Tick{}} {
		w.apply(c)
		w.flush()
	}
}

// recordOrder has everything that decides the order of the queue.
func recordOrder(w *goldenWalk) {
	order := &orderWalk{w.walk}
	w.steps(20)
	w.apply(&SetFeatureLevel{Level: 3})
	w.flush()
	for range 3 {
		for range 50 {
			order.step()
			w.flush()
		}
		w.line("digest " + w.m.Digest().String())
	}
	w.line("snapshot level-3-order.snap")
	w.steps(40)
}

func recordLevel4(w *goldenWalk) {
	w.steps(40)
	w.apply(&SetFeatureLevel{Level: 4})
	w.flush()
	w.steps(40)
	w.line("snapshot level-4.snap")
	w.steps(40)
}

// recordHours has contributors, and schedules of their nodes.
func recordHours(w *goldenWalk) {
	w.apply(&SetFeatureLevel{Level: 4})
	w.flush()
	for _, n := range walkNodes {
		w.node(n, 4)
		w.flush()
		w.incs[n], _, _ = w.m.NodeLive(gpuai.NodeID(n))
	}
	w.wall, w.preempts = monday, true
	w.ofOwners()
	w.steps(150)
	w.line("snapshot level-4-hours.snap")
	w.steps(40)
}

func recordQuotas(w *goldenWalk) { recordTenants(w, false, "level-4-quota") }

func recordLedger(w *goldenWalk) { recordTenants(w, true, "level-4-ledger") }

// recordTenants has tenants with quotas and cohorts, and with pays with budgets.
func recordTenants(w *goldenWalk, pays bool, name string) {
	w.apply(&SetFeatureLevel{Level: 4})
	w.flush()
	for _, n := range walkNodes {
		w.node(n, 4)
		w.flush()
		w.incs[n], _, _ = w.m.NodeLive(gpuai.NodeID(n))
	}
	w.preempts = true
	w.ofTenants(pays)
	for range 3 {
		w.steps(50)
	}
	w.line("snapshot " + name + ".snap")
	w.steps(40)
}

// recordPreemption has jobs of many priorities take room from one another, among
// gangs, arrays and dependencies.
func recordPreemption(w *goldenWalk) {
	w.apply(&SetFeatureLevel{Level: 3})
	w.flush()
	p := gpuai.DefaultPolicy()
	p.PreemptionGap, p.PreemptionProtect = 15, 0
	w.apply(&SetPolicy{Policy: p})
	w.flush()
	w.preempts = true
	w.gangs()
	order := &orderWalk{w.walk}
	for range 3 {
		for range 50 {
			order.step()
			w.flush()
		}
		w.line("digest " + w.m.Digest().String())
	}
	w.line("snapshot level-3-preempt.snap")
	w.steps(40)
}
