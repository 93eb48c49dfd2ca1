package jobfile

import (
	"encoding"
	"errors"
	"strconv"
	"time"

	"github.com/gpuai/gpuai"
)

// A converter fills a JobSpec from a tree. It takes what it can: what is of a
// wrong type has been reported by the schema already and is left out.
type converter struct{ *source }

func (c converter) spec(n *node) *gpuai.JobSpec {
	s := new(gpuai.JobSpec)
	s.Name = str(n.get("name"))
	s.Tenant = gpuai.TenantID(str(n.get("tenant")))
	enum(&s.Type, n.get("type"))
	enum(&s.Class, n.get("class"))
	s.Priority = gpuai.Priority(c.whole(n.get("priority"), 255))
	limits := n.get("limits")
	s.Limits.QueueTime = c.duration(limits.get("queue_time"), "/limits/queue_time")
	s.Limits.RunTime = c.duration(limits.get("run_time"), "/limits/run_time")
	s.Array.Size = uint32(c.whole(n.get("array").get("size"), 1<<31))
	s.Array.MaxParallel = uint32(c.whole(n.get("array").get("max_parallel"), 1<<31))
	s.LeaseTTL = c.duration(n.get("lease_ttl"), "/lease_ttl")
	if p := n.get("preemptible"); p != nil {
		yes := truth(p)
		s.Preemptible = &yes
	}
	enum(&s.Placement.Same, n.get("placement").get("same"))
	enum(&s.Placement.Near, n.get("placement").get("near"))
	s.Together = truth(n.get("together"))
	s.Begin = c.begin(n.get("begin"))
	for i, d := range n.get("after").list() {
		s.After = append(s.After, c.dependency(d, "/after/"+strconv.Itoa(i)))
	}
	for i, g := range n.get("groups").list() {
		s.Groups = append(s.Groups, c.group(g, "/groups/"+strconv.Itoa(i)))
	}
	return s
}

var errBegin = errors.New(`must be a time with its zone, such as "2026-12-01T08:00:00Z" or "2026-12-01T09:00:00+01:00"`)

// begin reads a time of day as RFC 3339 writes it.
func (c converter) begin(n *node) gpuai.WallTime {
	if n == nil || n.kind != text {
		return 0
	}
	t, err := time.Parse(time.RFC3339, n.text)
	if err != nil {
		c.problem(errBegin, "/begin", n)
		return 0
	}
	if t.UnixMilli() <= 0 {
		c.problem(errors.New("must be later than 1970"), "/begin", n)
	}
	return gpuai.WallTime(t.UnixMilli())
}

// dependency reads a job's ID, or an object that names it.
func (c converter) dependency(n *node, at string) gpuai.JobDependency {
	var d gpuai.JobDependency
	id := n
	if n.kind == object {
		id, at = n.get("job"), at+"/job"
		enum(&d.On, n.get("on"))
	}
	if id != nil && id.kind == text {
		var err error
		d.Job, err = gpuai.ParseJobID(id.text)
		c.problem(err, at, id)
	}
	return d
}

func (c converter) group(n *node, at string) gpuai.Group {
	g := gpuai.Group{
		Name:      str(n.get("name")),
		Count:     uint32(c.whole(n.get("count"), 1<<31)),
		Gang:      truth(n.get("gang")),
		Resources: c.resources(n.get("resources"), at+"/resources"),
		Restart:   c.restart(n.get("restart"), at+"/restart"),
		Task:      c.task(n.get("task"), at+"/task"),
	}
	if count := n.get("count"); count != nil && count.kind == object {
		g.MinCount, g.Count = uint32(c.whole(count.get("min"), 1<<31)), uint32(c.whole(count.get("max"), 1<<31))
	}
	for i, k := range n.get("constraints").list() {
		g.Constraints = append(g.Constraints, c.constraint(k, at+"/constraints/"+strconv.Itoa(i)))
	}
	return g
}

func (c converter) constraint(n *node, at string) gpuai.Constraint {
	k := gpuai.Constraint{Attribute: str(n.get("attribute"))}
	enum(&k.Op, n.get("op"))
	v := n.get("value")
	values, pointers := v.list(), at+"/value/"
	if v != nil && v.kind != list {
		values = []*node{v}
	}
	for i, it := range values {
		s := it.text
		if b, err := ParseSize(s); err == nil && k.Attribute == "gpu.memory_bytes" {
			s = strconv.FormatInt(int64(b), 10)
		} else if k.Attribute == "gpu.memory_bytes" && it.kind == text && !digits(s) {
			c.report(pointers+strconv.Itoa(i), it.line, it.col, errSize.Error())
		}
		k.Values = append(k.Values, s)
	}
	return k
}

func digits(s string) bool {
	_, err := strconv.ParseUint(s, 10, 63)
	return err == nil
}

func (c converter) resources(n *node, at string) gpuai.Resources {
	r := gpuai.Resources{
		Memory:  c.size(n.get("memory"), at+"/memory"),
		Scratch: c.size(n.get("scratch"), at+"/scratch"), Shm: c.size(n.get("shm"), at+"/shm"),
	}
	if cpu := n.get("cpu"); cpu != nil && cpu.kind == number {
		milli, err := ParseCPU(cpu.text)
		c.problem(err, at+"/cpu", cpu)
		r.CPU = milli
	}
	enum(&r.Network, n.get("network"))
	g := n.get("gpu")
	at += "/gpu"
	r.GPU.Count = uint32(c.whole(g.get("count"), 1<<31))
	r.GPU.Share.Milli = gpuai.Milli(c.whole(g.get("share").get("milli"), 1<<15))
	for i, a := range g.get("any").list() {
		r.GPU.Any = append(r.GPU.Any, c.alternative(a, at+"/any/"+strconv.Itoa(i)))
	}
	if flat := c.alternative(g, at); flat != (gpuai.GPUAlternative{}) {
		if g.get("any") != nil {
			line, col := g.keyPlace("any")
			c.report(at+"/any", line, col, "cannot stand beside vendor, model or memory; put those into each alternative")
		}
		r.GPU.Any = append(r.GPU.Any, flat)
	}
	return r
}

func (c converter) alternative(n *node, at string) gpuai.GPUAlternative {
	a := gpuai.GPUAlternative{Vendor: str(n.get("vendor")), Model: str(n.get("model"))}
	if m := n.get("memory"); m != nil && m.kind == text {
		lo, hi, err := parseRange(m.text)
		c.problem(err, at+"/memory", m)
		a.MemoryMin, a.MemoryMax = lo, hi
	}
	return a
}

func (c converter) restart(n *node, at string) gpuai.Restart {
	r := gpuai.Restart{Backoff: c.duration(n.get("backoff"), at+"/backoff")}
	attempts, on := n.get("attempts"), n.get("on")
	r.Attempts = uint32(c.whole(attempts, 1<<31))
	if on != nil && on.kind == list {
		r.On = []gpuai.RestartCause{}
	}
	for _, it := range on.list() {
		var cause gpuai.RestartCause
		if enum(&cause, it) {
			r.On = append(r.On, cause)
		}
	}
	if attempts == nil || attempts.text != "0" {
		return r
	}
	// On the wire 0 attempts stand for the default: never is "on nothing".
	if len(r.On) > 0 {
		c.report(at+"/attempts", attempts.line, attempts.col, "must be at least 1 when on lists causes")
	}
	r.On = []gpuai.RestartCause{}
	return r
}

func (c converter) task(n *node, at string) gpuai.TaskSpec {
	t := gpuai.TaskSpec{
		Runtime:   str(n.get("runtime")),
		Image:     str(n.get("image")),
		Script:    str(n.get("script")),
		Cwd:       str(n.get("cwd")),
		StopGrace: c.duration(n.get("stop_grace"), at+"/stop_grace"),
	}
	if l := n.get("launcher"); l != nil {
		enum(&t.Launcher.Kind, l.get("kind"))
		t.Launcher.ProcsPerNode = uint32(c.whole(l.get("procs_per_node"), 1<<31)) // gpu is 0
		t.Launcher.MaxRestarts = uint32(c.whole(l.get("max_restarts"), 1<<31))
	}
	if k := n.get("checkpoint"); k != nil {
		enum(&t.Checkpoint.Signal, k.get("signal"))
		t.Checkpoint.Grace = c.duration(k.get("grace"), at+"/checkpoint/grace")
		t.Checkpoint.Keep = uint32(c.whole(k.get("keep"), 1<<31))
	}
	for _, a := range n.get("command").list() {
		t.Command = append(t.Command, str(a))
	}
	for _, a := range n.get("args").list() {
		t.Args = append(t.Args, str(a))
	}
	if env := n.get("env"); env != nil && len(env.members) > 0 {
		t.Env = make(map[string]string, len(env.members))
		for _, m := range env.members {
			if m.value != nil && m.value.kind == object {
				t.Secrets = append(t.Secrets, gpuai.TaskSecret{Name: str(m.value.get("secret")), Env: m.name})
			} else {
				t.Env[m.name] = str(m.value)
			}
		}
	}
	for _, s := range n.get("secrets").list() {
		use := gpuai.TaskSecret{Name: str(s.get("name")), Path: str(s.get("path"))}
		enum(&use.Mode, s.get("mode"))
		if use.Path == "" {
			use.Path = use.Name
		}
		t.Secrets = append(t.Secrets, use)
	}
	return t
}

// problem reports err, when there is one, at a value.
func (c converter) problem(err error, pointer string, n *node) {
	if err != nil && !c.reported(pointer) {
		c.report(pointer, n.line, n.col, err.Error()+", not "+quoted(n))
	}
}

func (c converter) duration(n *node, at string) gpuai.Duration {
	if n == nil || n.kind != text {
		return 0
	}
	d, err := gpuai.ParseDuration(n.text)
	c.problem(err, at, n)
	if err == nil && d == 0 && !c.reported(at) {
		c.report(at, n.line, n.col, "must be above 0; leave it out for the default")
	}
	return d
}

func (c converter) size(n *node, at string) gpuai.Bytes {
	if n == nil || n.kind != text {
		return 0
	}
	b, err := ParseSize(n.text)
	c.problem(err, at, n)
	if err == nil && b == 0 {
		c.report(at, n.line, n.col, "must be above 0; leave it out for the default")
	}
	return b
}

// whole reads a non-negative number; what is above limit is the schema's to
// report and becomes limit-1, so that it cannot wrap around.
func (c converter) whole(n *node, limit uint64) uint64 {
	if n == nil || n.kind != number {
		return 0
	}
	v, err := strconv.ParseUint(n.text, 10, 64)
	if err != nil {
		return 0
	}
	return min(v, limit-1)
}

func str(n *node) string {
	if n == nil || n.kind != text {
		return ""
	}
	return n.text
}

func truth(n *node) bool { return n != nil && n.kind == boolean && n.text == "true" }

// enum reads a name; what is none has been reported by the schema.
func enum(into encoding.TextUnmarshaler, n *node) bool {
	return n != nil && n.kind == text && into.UnmarshalText([]byte(n.text)) == nil
}
