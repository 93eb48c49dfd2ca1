package scheduler

import (
	"cmp"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/mem"
)

// A world is a State beside a plain model of it that decides by looking at
// everything.
type world struct {
	t      *testing.T
	r      *rand.Rand
	plain  bool // few pools, many nodes in each
	lends  bool // nodes lend scratch space
	sp     *mem.Space
	s      *State
	nodes  map[uint32]*modelNode
	pools  []string // key by number; "" is free
	shapes []modelShape
	leases []modelLease
}

type modelNode struct {
	info     NodeInfo
	open     bool
	cpu, mem int64
	lent     int64
	free     []int
	pools    []int // by device; of the node without devices, one
}

type modelShape struct {
	id    ShapeID
	needs gpuai.Resources
	cs    []gpuai.Constraint
}

type modelLease struct {
	fit      Fit
	cpu, mem int64
	scratch  int64
}

// lease is what a task of a shape holds at a place.
func (sh *modelShape) lease(f Fit) modelLease {
	return modelLease{f, int64(sh.needs.CPU), int64(sh.needs.Memory), sh.scratch()}
}

// scratch is what a task asks for of scratch space.
func (sh *modelShape) scratch() (most int64) {
	for _, c := range sh.cs {
		if n, err := strconv.ParseInt(c.Values[0], 10, 64); err == nil && c.Attribute == "label."+gpuai.LabelScratch && c.Op == gpuai.AtLeast {
			most = max(most, n)
		}
	}
	return most
}

// lends reports whether a node has a task's scratch space left.
func (n *modelNode) lends(sh *modelShape) bool {
	return sh.scratch() == 0 || n.info.Scratch == 0 || n.info.Scratch-n.lent >= sh.scratch()
}

func newWorld(t *testing.T, seed uint64) *world {
	sp := mem.NewSpace()
	w := &world{t: t, r: rand.New(rand.NewPCG(seed, 9)), plain: seed%2 == 1, lends: seed%3 == 2, sp: sp, s: New(sp), nodes: map[uint32]*modelNode{}}
	sp.Commit()
	return w
}

// pick returns one of its arguments.
func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func (w *world) randomInfo() NodeInfo {
	r := w.r
	n := NodeInfo{
		Zone: pick(r, "", "a", "b"), CPU: int64(r.IntN(5)) * 1000, Memory: int64(r.IntN(5)) << 30,
		Price: pick(r, gpuai.Micros(0), 0, 0, 400_000, 900_000),
	}
	if r.IntN(2) == 0 {
		n.Labels = map[string]string{"rack": pick(r, "r1", "r2", "7")}
		if r.IntN(2) == 0 {
			n.Labels["gen"] = pick(r, "1", "2", "10", "x")
		}
	}
	model := randomModel(r)
	if w.plain {
		n.Zone, n.Price, n.Labels, model = "", 0, nil, DeviceInfo{Vendor: "nvidia", Model: "H100", Memory: 80}
	}
	if w.lends {
		w.lendSome(&n)
	}
	n.Rack, n.NVLinkDomain = pick(r, "", "r1", "r1", "r2", "r3"), pick(r, "", "n1", "n2", "n3")
	for range pick(r, 0, 1, 2, 4, 8, 8, 8, 11) {
		if r.IntN(12) == 0 && !w.plain {
			model = randomModel(r) // a node of several kinds
		}
		d := model
		d.Usable = r.IntN(10) > 0
		n.Devices = append(n.Devices, d)
	}
	return n
}

// lendSome has a node lend scratch space, counted or not.
func (w *world) lendSome(n *NodeInfo) {
	labels := map[string]string{gpuai.LabelScratch: pick(w.r, "100", "250")}
	for k, v := range n.Labels {
		labels[k] = v
	}
	if n.Labels = labels; w.r.IntN(4) > 0 {
		n.Scratch, _ = strconv.ParseInt(labels[gpuai.LabelScratch], 10, 64)
	}
}

func randomModel(r *rand.Rand) DeviceInfo {
	return pick(r, DeviceInfo{Vendor: "nvidia", Model: "H100", Memory: 80}, DeviceInfo{Vendor: "nvidia", Model: "A100", Memory: 40},
		DeviceInfo{Vendor: "nvidia", Model: "A100", Memory: 80}, DeviceInfo{Vendor: "amd", Model: "MI300X", Memory: 192})
}

func (w *world) randomNeeds() (gpuai.Resources, []gpuai.Constraint) {
	r := w.r
	needs := gpuai.Resources{CPU: gpuai.MilliCPU(r.IntN(3) * 500), Memory: gpuai.Bytes(r.IntN(3)) << 29}
	switch needs.GPU.Count = uint32(pick(r, 0, 1, 1, 1, 2, 4, 8)); {
	case needs.GPU.Count == 1 && r.IntN(2) == 0:
		needs.GPU.Share.Milli = pick(r, gpuai.Milli(1), 49, 50, 99, 333, 460, 500, 501, 549, 999, gpuai.Milli(1+r.IntN(999)))
	}
	if needs.GPU.Count > 0 && r.IntN(2) == 0 {
		for range 1 + r.IntN(3) {
			needs.GPU.Any = append(needs.GPU.Any, gpuai.GPUAlternative{
				Vendor: pick(r, "", "nvidia", "amd"), Model: pick(r, "", "", "H100", "A100"),
				MemoryMin: pick(r, gpuai.Bytes(0), 0, 41, 80), MemoryMax: pick(r, gpuai.Bytes(0), 0, 80, 100),
			})
		}
	}
	var cs []gpuai.Constraint
	for range pick(r, 0, 0, 1, 1, 2) {
		cs = append(cs, randomConstraint(r))
	}
	if w.lends && r.IntN(2) == 0 {
		cs = append(cs, gpuai.Constraint{Attribute: "label." + gpuai.LabelScratch, Op: gpuai.AtLeast, Values: []string{pick(r, "30", "60", "120")}})
	}
	return needs, cs
}

func randomConstraint(r *rand.Rand) gpuai.Constraint {
	c := gpuai.Constraint{
		Attribute: pick(r, "zone", "gpu.vendor", "gpu.model", "gpu.memory_bytes", "label.rack", "label.gen", "label.none"),
		Op:        gpuai.Op(r.IntN(8)),
	}
	n := 1
	if c.Op == gpuai.In || c.Op == gpuai.NotIn {
		n = 1 + r.IntN(3)
	}
	for range n {
		c.Values = append(c.Values, pick(r, "a", "b", "default", "nvidia", "H100", "80", "40", "r1", "7", "2", "x"))
	}
	return c
}

// holds is an evaluator of constraints of its own.
func holds(c gpuai.Constraint, n *NodeInfo, d *DeviceInfo) bool {
	have, ok := "", true
	if key, isLabel := strings.CutPrefix(c.Attribute, "label."); isLabel {
		have, ok = n.Labels[key]
	} else if c.Attribute == "zone" {
		have = cmp.Or(n.Zone, "default")
	} else if ok = d != nil; ok {
		have = map[string]string{"gpu.vendor": d.Vendor, "gpu.model": d.Model, "gpu.memory_bytes": fmt.Sprint(d.Memory)}[c.Attribute]
	}
	negative := c.Op == gpuai.NotEqual || c.Op == gpuai.NotIn
	if !ok {
		return negative
	}
	if c.Op <= gpuai.NotIn {
		return slices.Contains(c.Values, have) != negative
	}
	a, err := strconv.Atoi(have)
	b, err2 := strconv.Atoi(c.Values[0])
	return err == nil && err2 == nil && map[gpuai.Op]bool{
		gpuai.Less: a < b, gpuai.AtMost: a <= b, gpuai.Greater: a > b, gpuai.AtLeast: a >= b,
	}[c.Op]
}

// modelPool returns the number of the pool of a kind of a node.
func (w *world) modelPool(n *NodeInfo, d *DeviceInfo) int {
	key := fmt.Sprint(cmp.Or(n.Zone, "default"), n.Labels, priceTier(n.Price))
	if d != nil {
		key += fmt.Sprint(d.Vendor, d.Model, d.Memory)
	}
	i := slices.Index(w.pools, key)
	if i < 0 {
		if i = slices.Index(w.pools, ""); i < 0 {
			i, w.pools = len(w.pools), append(w.pools, "")
		}
		w.pools[i] = key
	}
	return i
}

func (w *world) setNode(slot uint32) {
	info := w.randomInfo()
	if code := w.s.SetNode(slot, &info); code != gpuai.OK {
		w.t.Fatalf("SetNode: %v", code)
	}
	n := &modelNode{info: info, cpu: info.CPU, mem: info.Memory}
	for i := range info.Devices {
		n.pools = append(n.pools, w.modelPool(&info, &info.Devices[i]))
		n.free = append(n.free, 1000)
	}
	if len(info.Devices) == 0 {
		n.pools = append(n.pools, w.modelPool(&info, nil))
	}
	w.nodes[slot] = n
	w.forgetPools()
	for _, l := range w.leases {
		if l.fit.Node == slot {
			w.hold(l)
		}
	}
}

func (w *world) forgetPools() {
	used := map[int]bool{}
	for _, n := range w.nodes {
		for _, p := range n.pools {
			used[p] = true
		}
	}
	for i := range w.pools {
		if !used[i] {
			w.pools[i] = ""
		}
	}
}

func (w *world) hold(l modelLease) {
	w.s.Hold(l.fit.Node, l.fit.Devices, l.fit.Share, l.cpu, l.mem)
	w.s.Lend(l.fit.Node, l.scratch)
	w.nodes[l.fit.Node].move(l, -1)
}

// move is the model's move. Devices that the node no longer has are left out.
func (n *modelNode) move(l modelLease, by int) {
	n.cpu += int64(by) * l.cpu
	n.mem += int64(by) * l.mem
	n.lent -= int64(by) * l.scratch
	for d := range n.free {
		if l.fit.Devices>>d&1 != 0 {
			n.free[d] += by * int(milli(l.fit.Share))
		}
	}
}

// A rank is the total order: alternative, class, tier, pool, remainder, CPU,
// node.
type rank [7]int

// ranks returns how good a node is for a shape with one alternative, and the
// devices, for each kind that can serve it.
func (w *world) ranks(sh *modelShape, alt int, slot uint32) (best rank, devices uint64, ok bool) {
	n := w.nodes[slot]
	g := &sh.needs.GPU
	if !n.open || n.cpu < int64(sh.needs.CPU) || n.mem < int64(sh.needs.Memory) || n.cpu < 0 || n.mem < 0 || !n.lends(sh) {
		return best, 0, false
	}
	for begin := range max(len(n.info.Devices), 1) {
		var kindOf *DeviceInfo
		if len(n.info.Devices) > 0 {
			kindOf = &n.info.Devices[begin]
		}
		if !w.admits(sh, alt, n, kindOf) {
			continue
		}
		var mine []int // usable devices of the kind
		for d := range n.info.Devices {
			if n.pools[d] == n.pools[begin] && n.info.Devices[d].Usable {
				mine = append(mine, d)
			}
		}
		class, left, devs, fits := chooseDevices(mine, n.free, int(g.Count), int(g.Share.Milli))
		x := rank{alt, class, int(priceTier(n.info.Price)), n.pools[begin], left, int(n.cpu), int(slot)}
		if fits && (!ok || slices.Compare(x[:], best[:]) < 0) {
			best, devices, ok = x, devs, true
		}
	}
	return best, devices, ok
}

func (w *world) admits(sh *modelShape, alt int, n *modelNode, d *DeviceInfo) bool {
	if len(sh.needs.GPU.Any) > 0 {
		a := sh.needs.GPU.Any[alt]
		if d == nil || a.Vendor != "" && a.Vendor != d.Vendor || a.Model != "" && a.Model != d.Model ||
			d.Memory < int64(a.MemoryMin) || a.MemoryMax != 0 && d.Memory > int64(a.MemoryMax) {
			return false
		}
	}
	for _, c := range sh.cs {
		if !holds(c, &n.info, d) {
			return false
		}
	}
	return true
}

// chooseDevices chooses among the usable devices of one kind.
func chooseDevices(mine, free []int, count, share int) (class, left int, devs uint64, ok bool) {
	var whole []int
	bestLeft, bestDev := 1000, -1
	for _, d := range mine {
		if free[d] == 1000 {
			whole = append(whole, d)
		} else if free[d] >= max(share, 1) && free[d] < bestLeft {
			bestLeft, bestDev = free[d], d
		}
	}
	if share > 0 && bestDev >= 0 {
		// The remainder counts only in the share's own level of 50.
		return bestLeft / levelStep, bestLeft % levelStep, 1 << bestDev, true
	}
	if share > 0 && len(whole) == 0 || len(whole) < count {
		return 0, 0, 0, false
	}
	for _, d := range whole[:count] {
		devs |= 1 << d
	}
	return wholeClass + len(whole), 0, devs, true
}

// brute is Find by looking at everything.
func (w *world) brute(sh *modelShape, only func(slot uint32) bool) (Fit, bool) {
	var best rank
	var fit Fit
	found := false
	for alt := range max(len(sh.needs.GPU.Any), 1) {
		for slot := range w.nodes {
			if !only(slot) {
				continue
			}
			x, devs, ok := w.ranks(sh, alt, slot)
			if ok && (!found || slices.Compare(x[:], best[:]) < 0) {
				best, found = x, true
				fit = Fit{Node: slot, Devices: devs, Share: uint16(sh.needs.GPU.Share.Milli), Alt: uint8(alt)}
			}
		}
	}
	return fit, found
}

// ever is CanEver by looking at everything.
func (w *world) ever(sh *modelShape) bool {
	for _, n := range w.nodes {
		if n.info.CPU < int64(sh.needs.CPU) || n.info.Memory < int64(sh.needs.Memory) || n.info.Scratch != 0 && n.info.Scratch < sh.scratch() {
			continue
		}
		for begin := range n.pools {
			var d *DeviceInfo
			count := 0
			if len(n.info.Devices) > 0 {
				d = &n.info.Devices[begin]
			}
			for i := range n.info.Devices {
				if n.pools[i] == n.pools[begin] {
					count++
				}
			}
			for alt := range max(len(sh.needs.GPU.Any), 1) {
				if count >= int(sh.needs.GPU.Count) && w.admits(sh, alt, n, d) {
					return true
				}
			}
		}
	}
	return false
}

// dump writes all that reaches a decision.
func dump(s *State) string {
	b := s.AppendState(nil)
	for slot := range s.nodes.Len() {
		n := s.nodes.Get(slot)
		if !n.known {
			continue
		}
		b = fmt.Append(b, "\n", slot, n.capCPU, n.capMem, n.freeCPU, n.freeMem, n.scratch, n.lent, n.open)
		for x := &n.unit; x != nil; x = s.next(x) {
			b = fmt.Append(b, " ", x.devs, x.usable, x.whole, x.pool)
			for m := x.devs; m != 0; m &= m - 1 {
				b = fmt.Append(b, " ", s.free(n, uint8(bits.TrailingZeros64(m))))
			}
		}
	}
	return fmt.Sprint(string(b), s.space.Hash())
}
