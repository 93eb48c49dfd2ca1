package gpuai

import (
	"slices"
	"strconv"
	"strings"
)

// fieldErrors collects what is wrong with a document.
type fieldErrors []FieldError

func (v *fieldErrors) add(pointer, detail string) {
	*v = append(*v, FieldError{Pointer: pointer, Detail: detail})
}

func (v *fieldErrors) check(ok bool, pointer, detail string) {
	if !ok {
		v.add(pointer, detail)
	}
}

func (v *fieldErrors) span(pointer string, d, lo, hi Duration) {
	if !(d >= lo && d <= hi) {
		v.add(pointer, "must be between "+lo.String()+" and "+hi.String()+", not "+d.String())
	}
}

func (v *fieldErrors) name(pointer, s string) {
	if !ValidName(s) {
		v.add(pointer, "must be 1 to 63 characters of a-z, 0-9 and '-', with no '-' at either end, not "+strconv.Quote(clip(s)))
	}
}

func (v *fieldErrors) text(pointer, s string) {
	if len(s) > MaxTextLen {
		v.add(pointer, "must be at most "+strconv.Itoa(MaxTextLen)+" bytes long")
	}
}

// clip shortens s for an error message.
func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}

// Defaults fills the fields of s that are absent and have a default. It is
// idempotent. The idempotency hash is taken after it. Priority and lease TTL
// are left to the region's policy.
func (s *JobSpec) Defaults() {
	if s.Tenant == "" {
		s.Tenant = DefaultTenant
	}
	if s.Class == ClassUnset {
		s.Class = ClassBatch
		if s.Type == Train {
			s.Class = ClassTraining
		}
	}
	for i := range s.Groups {
		s.Groups[i].defaults(i, s.Array.Size)
		s.Groups[i].sandboxDefaults(s.Placement.Same)
	}
}

func (g *Group) defaults(i int, array uint32) {
	if g.Name == "" {
		g.Name = "main"
		if i > 0 {
			g.Name = "group-" + strconv.Itoa(i)
		}
	}
	if g.Count == 0 {
		g.Count = max(array, 1)
	}
	r := &g.Restart
	if r.On == nil {
		r.On = []RestartCause{CauseNodeLost, CauseGPUError}
	}
	if r.Attempts == 0 && len(r.On) > 0 {
		r.Attempts = 3
	}
	if r.Backoff == 0 {
		r.Backoff = Second
	}
	if g.Task.Runtime == "" {
		g.Task.Runtime = RuntimeProcess
		if g.Task.Image != "" {
			g.Task.Runtime = RuntimeOCI
		}
	}
	g.Task.secretDefaults()
	if len(g.Task.Secrets) > 0 {
		g.imply(LabelSecrets, LabelYes)
	}
	if g.Task.StopGrace == 0 {
		g.Task.StopGrace = 5 * Second
	}
	if c := &g.Task.Checkpoint; c.Signal != SignalNone && c.Grace == 0 {
		c.Grace = 30 * Second
	}
	g.Resources.defaults()
}

func (r *Resources) defaults() {
	if r.CPU == 0 {
		r.CPU = 1000
	}
	if r.Memory == 0 {
		r.Memory = 1 << 30
	}
}

// Validate says all that is wrong with s after Defaults, with JSON pointers;
// nil means nothing is.
func (s *JobSpec) Validate() []FieldError {
	var v fieldErrors
	v.name("/name", s.Name)
	v.name("/tenant", string(s.Tenant))
	if s.Type >= numJobTypes {
		v.add("/type", "is not a known type")
	}
	if !(s.Class > ClassUnset && s.Class < numClasses) {
		v.add("/class", "is not a known class")
	}
	if s.Priority > MaxPriority {
		v.add("/priority", "must be between 1 and 100")
	}
	v.span("/limits/queue_time_ms", s.Limits.QueueTime, 0, MaxDuration)
	v.span("/limits/run_time_ms", s.Limits.RunTime, 0, MaxDuration)
	v.span("/lease_ttl_ms", s.LeaseTTL, 0, MaxLeaseTTL)
	v.check(s.Begin >= 0 && s.Begin <= MaxWallTime, "/begin_unix_ms", "must be a Unix time in milliseconds, before the year 2262")
	s.validateAfter(&v)
	v.check(s.Array.MaxParallel <= s.Array.Size, "/array/max_parallel", "must be at most array.size; leave it out for no bound")
	if s.Array.Size > MaxTasks {
		v.add("/array/size", "must be at most "+strconv.Itoa(MaxTasks))
	}
	if len(s.Groups) <= 0 {
		v.add("/groups", "needs at least one group")
	}
	if len(s.Groups) > MaxGroups {
		v.add("/groups", "must be at most "+strconv.Itoa(MaxGroups)+" groups")
	}
	if s.Array.Size > 0 && len(s.Groups) == 1 {
		g := &s.Groups[0]
		if g.Count != s.Array.Size {
			v.add("/groups/0/count", "must be absent, or equal to array.size")
		}
		if g.Gang {
			v.add("/groups/0/gang", "an array's tasks are independent: use count instead of array for a gang")
		}
	}
	if !(s.Array.Size == 0 || len(s.Groups) == 1) {
		v.add("/array", "an array has exactly one group")
	}
	var tasks uint64
	for i := range s.Groups[:min(len(s.Groups), MaxGroups)] {
		tasks += uint64(s.Groups[i].Count)
		s.Groups[i].validate(&v, "/groups/"+strconv.Itoa(i))
		s.Groups[i].validateNetwork(&v, "/groups/"+strconv.Itoa(i), s.Placement.Same)
		for j := range i {
			if s.Groups[j].Name == s.Groups[i].Name {
				v.add("/groups/"+strconv.Itoa(i)+"/name", "is the name of group "+strconv.Itoa(j)+" too")
			}
		}
	}
	if tasks > MaxTasks {
		v.add("/groups", "all groups together have at most "+strconv.Itoa(MaxTasks)+" tasks")
	}
	s.validatePlacement(&v)
	s.validateTogether(&v)
	if s.size() > MaxSpecBytes {
		v.add("", "the job must be at most "+strconv.Itoa(MaxSpecBytes)+" bytes in all: fetch large scripts and data from where they are kept")
	}
	return v
}

// size bounds from above the bytes that s takes in the log. It stops counting
// beyond MaxSpecBytes.
func (s *JobSpec) size() int {
	const text, fixed = textBytes, fixedBytes
	n := fixed + 2*text + len(s.Name) + len(s.Tenant) + len(s.After)*(len(JobID{})+1)
	for i := 0; i < len(s.Groups) && n <= MaxSpecBytes; i++ {
		g := &s.Groups[i]
		n += fixed + 6*text + len(g.Name) + len(g.Task.Runtime) + len(g.Task.Script) + len(g.Task.Cwd)
		n += fixed + len(g.Task.Image)
		for _, a := range g.Task.Command {
			n += text + len(a)
		}
		for _, a := range g.Task.Args {
			n += text + len(a)
		}
		for j := range g.Task.Secrets {
			s := &g.Task.Secrets[j]
			n += 3*text + len(s.Name) + len(s.Env) + len(s.Path)
		}
		for _, k := range EnvNames(g.Task.Env) {
			n += 2*text + len(k) + len(g.Task.Env[k])
		}
		n += g.needsSize()
	}
	return n
}

// Bytes in the log of a text beside itself, and of a group, the job, or a part of
// them beside its texts.
const textBytes, fixedBytes = 5, 96

// needsSize bounds from above the bytes that a group's needs take beside a fixed
// part. It stops counting beyond MaxSpecBytes.
func (g *Group) needsSize() (n int) {
	for _, a := range g.Resources.GPU.Any {
		n += fixedBytes + len(a.Vendor) + len(a.Model)
	}
	for j := 0; j < len(g.Constraints) && n <= MaxSpecBytes; j++ {
		c := &g.Constraints[j]
		n += fixedBytes + len(c.Attribute)
		for _, v := range c.Values {
			n += textBytes + len(v)
		}
	}
	return n
}

func (s *JobSpec) validateAfter(v *fieldErrors) {
	if len(s.After) > MaxAfter {
		v.add("/after", "must be at most "+strconv.Itoa(MaxAfter)+" jobs")
	}
	for i := range s.After[:min(len(s.After), MaxAfter)] {
		d, p := &s.After[i], "/after/"+strconv.Itoa(i)
		v.check(!d.Job.IsZero(), p+"/job", "must be the ID of a job")
		v.check(d.On < numStages, p+"/on", "is not a known stage")
		for j := range i {
			v.check(s.After[j].Job != d.Job, p+"/job", "is the job of /after/"+strconv.Itoa(j)+" too")
		}
	}
}

func (g *Group) validate(v *fieldErrors, at string) {
	v.name(at+"/name", g.Name)
	if !(g.Count >= 1 && g.Count <= MaxTasks) {
		v.add(at+"/count", "must be between 1 and "+strconv.Itoa(MaxTasks))
	}
	if !(!g.Gang || g.Count <= MaxGangTasks) {
		v.add(at+"/count", "a gang has at most "+strconv.Itoa(MaxGangTasks)+" tasks")
	}
	g.validateElastic(v, at)
	if len(g.Constraints) > MaxConstraints || g.own() > MaxOwnConstraints {
		v.add(at+"/constraints", "must be at most "+strconv.Itoa(MaxOwnConstraints)+" beside those that a sandbox implies")
	}
	for i := range g.Constraints[:min(len(g.Constraints), MaxConstraints)] {
		g.Constraints[i].validate(v, at+"/constraints/"+strconv.Itoa(i))
	}
	g.Resources.validate(v, at+"/resources")
	if g.Restart.Attempts > MaxAttempts {
		v.add(at+"/restart/attempts", "must be at most "+strconv.Itoa(MaxAttempts))
	}
	v.span(at+"/restart/backoff_ms", g.Restart.Backoff, 0, MaxBackoff)
	for i, c := range g.Restart.On {
		if !(c <= CauseGPUError && !slices.Contains(g.Restart.On[:i], c)) {
			v.add(at+"/restart/on/"+strconv.Itoa(i), "is unknown or named twice")
		}
		if i > int(CauseGPUError) {
			break
		}
	}
	g.Task.validate(v, at+"/task")
	v.check(g.Task.Runtime != RuntimeProcess || g.Resources.Scratch == 0 && g.Resources.Shm == 0, at+"/resources",
		"scratch and shm are for tasks with an image: a plain process has its node's disk and memory")
	g.validateLauncher(v, at)
}

// attributes are the fixed names that a constraint may use.
var attributes = []string{"zone", "gpu.vendor", "gpu.model", "gpu.memory_bytes"}

// LabelPrefix precedes a label's key in a constraint's attribute.
const LabelPrefix = "label."

func (c *Constraint) validate(v *fieldErrors, at string) {
	key, isLabel := strings.CutPrefix(c.Attribute, LabelPrefix)
	if !(slices.Contains(attributes, c.Attribute) || isLabel && ValidLabel(key)) {
		v.add(at+"/attribute", "must be zone, gpu.vendor, gpu.model, gpu.memory_bytes or label.<key>, not "+strconv.Quote(clip(c.Attribute)))
	}
	if c.Op >= numOps {
		v.add(at+"/op", "is not a known operator")
	}
	if !(len(c.Values) >= 1 && len(c.Values) <= MaxValues) {
		v.add(at+"/values", "must have 1 to "+strconv.Itoa(MaxValues)+" values")
	}
	if !(c.Op == In || c.Op == NotIn || len(c.Values) <= 1) {
		v.add(at+"/values", "takes one value with this operator")
	}
	for i, s := range c.Values[:min(len(c.Values), MaxValues)] {
		v.text(at+"/values/"+strconv.Itoa(i), s)
		if _, err := strconv.ParseInt(s, 10, 64); c.Op >= Less {
			if err != nil {
				v.add(at+"/values/"+strconv.Itoa(i), "must be a decimal integer with this operator")
			}
		}
	}
}

// ValidLabel reports whether s can be a label's key: 1 to 63 characters of
// a-z, 0-9, '-', '_', '.' and '/'.
func ValidLabel(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte("-_./", c) < 0 {
			return false
		}
	}
	return len(s) >= 1 && len(s) <= MaxNameLen
}

func (r *Resources) validate(v *fieldErrors, at string) {
	g := &r.GPU
	if g.Count > MaxGPUs {
		v.add(at+"/gpu/count", "must be at most "+strconv.Itoa(MaxGPUs)+"; use a gang for more")
	}
	if !(g.Count > 0 || len(g.Any) == 0) {
		v.add(at+"/gpu/any", "needs a count of at least 1")
	}
	if g.Share.Milli >= WholeDevice {
		v.add(at+"/gpu/share/milli", "must be between 1 and 999; leave it out for a whole device")
	}
	if !(g.Share.Milli == 0 || g.Count == 1) {
		v.add(at+"/gpu/share", "needs a count of 1")
	}
	if len(g.Any) > MaxAlternatives {
		v.add(at+"/gpu/any", "must be at most "+strconv.Itoa(MaxAlternatives))
	}
	for i, a := range g.Any[:min(len(g.Any), MaxAlternatives)] {
		p := at + "/gpu/any/" + strconv.Itoa(i)
		v.text(p+"/vendor", a.Vendor)
		v.text(p+"/model", a.Model)
		if !(a.MemoryMin >= 0 && a.MemoryMin < MaxMemory) {
			v.add(p+"/memory_min_bytes", "must be between 0 and 1 PiB")
		}
		if !(a.MemoryMax == 0 || a.MemoryMax >= a.MemoryMin && a.MemoryMax < MaxMemory) {
			v.add(p+"/memory_max_bytes", "must not be below memory_min_bytes")
		}
	}
	if !(r.CPU >= 1 && r.CPU < MaxCPU) {
		v.add(at+"/cpu_milli", "must be between 1 and "+strconv.FormatInt(int64(MaxCPU)-1, 10))
	}
	if !(r.Memory >= 1 && r.Memory < MaxMemory) {
		v.add(at+"/memory_bytes", "must be between 1 and "+strconv.FormatInt(int64(MaxMemory)-1, 10))
	}
	v.check(r.Scratch == 0 || r.Scratch >= MinScratch && r.Scratch < MaxMemory, at+"/scratch_bytes", "must be at least 64 MiB and less than 1 PiB")
	v.check(r.Shm >= 0 && r.Shm <= r.Memory, at+"/shm_bytes", "must be at most memory, which it is part of")
}

func (t *TaskSpec) validate(v *fieldErrors, at string) {
	t.validateProgram(v, at)
	if len(t.Env) > MaxEnv {
		v.add(at+"/env", "must be at most "+strconv.Itoa(MaxEnv)+" variables")
	}
	for _, k := range EnvNames(t.Env) {
		if !validEnv(k) {
			v.add(at+"/env", "a variable's name has letters, digits and '_', not "+strconv.Quote(clip(k)))
		}
		if strings.HasPrefix(k, "GPUAI_") {
			v.add(at+"/env/"+k, "names that start with GPUAI_ are the region's own")
		}
		if strings.IndexByte(t.Env[k], 0) >= 0 {
			v.add(at+"/env/"+k, "must not contain a NUL byte")
		}
	}
	if !(t.Cwd == "" || t.Cwd[0] == '/') {
		v.add(at+"/cwd", "must be absolute")
	}
	if !(len(t.Cwd) <= 4096 && strings.IndexByte(t.Cwd, 0) < 0) {
		v.add(at+"/cwd", "must be at most 4096 bytes without a NUL")
	}
	t.validateSecrets(v, at)
	v.span(at+"/stop_grace_ms", t.StopGrace, 0, Hour)
	if t.Checkpoint.Signal >= numSignals {
		v.add(at+"/checkpoint/signal", "is not a known signal")
	}
	if t.Checkpoint.Signal == SignalNone && t.Checkpoint.Grace != 0 {
		v.add(at+"/checkpoint/signal", "is needed beside a grace: it tells the task to save its work")
	}
	v.span(at+"/checkpoint/grace_ms", t.Checkpoint.Grace, 0, Hour)
	if t.Checkpoint.Keep > MaxCheckpointKeep {
		v.add(at+"/checkpoint/keep", "must be at most 16")
	}
}

// validateProgram says what is wrong with what t runs, and in what.
func (t *TaskSpec) validateProgram(v *fieldErrors, at string) {
	switch {
	case t.Runtime != RuntimeProcess && t.Runtime != RuntimeOCI:
		v.add(at+"/runtime", "the runtimes are \"oci\" and \"process\"")
	case t.Runtime == RuntimeOCI && t.Image == "":
		v.add(at+"/image", "is needed by the runtime \"oci\": it is what the sandbox has for files")
	case t.Runtime == RuntimeProcess && t.Image != "":
		v.add(at+"/runtime", "a plain process has no image: leave out one of the two")
	case t.Image == "" && len(t.Command) == 0 && t.Script == "":
		v.add(at, "needs an image, a command or a script")
	}
	v.check(len(t.Command) == 0 || t.Script == "", at, "needs a command or a script, and not both")
	v.check(len(t.Image) <= MaxImageLen && !strings.ContainsAny(t.Image, " \t\r\n\x00"), at+"/image", "must be a name of at most "+strconv.Itoa(MaxImageLen)+" bytes without spaces, such as \"debian:12\"")
	v.check(len(t.Command) == 0 || t.Command[0] != "", at+"/command/0", "must name a program")
	v.args(at+"/command", t.Command)
	v.args(at+"/args", t.Args)
	v.check(strings.IndexByte(t.Script, 0) < 0, at+"/script", "must not contain a NUL byte")
}

func (v *fieldErrors) args(at string, list []string) {
	if len(list) > MaxCommand {
		v.add(at, "must be at most "+strconv.Itoa(MaxCommand)+" arguments")
	}
	for i, a := range list[:min(len(list), MaxCommand)] {
		v.check(strings.IndexByte(a, 0) < 0, at+"/"+strconv.Itoa(i), "must not contain a NUL byte")
	}
}

func validEnv(k string) bool {
	for i := range len(k) {
		c := k[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '_' && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return k != "" && len(k) <= MaxTextLen
}

// Validate says all that is wrong with s; nil means nothing is.
func (s *NodeSpec) Validate() []FieldError {
	var v fieldErrors
	v.name("/id", string(s.ID))
	if !(s.Zone == "" || ValidName(s.Zone)) {
		v.add("/zone", "must be a name of a-z, 0-9 and '-'")
	}
	v.check(s.Rack == "" || ValidName(s.Rack), "/rack", "must be a name of a-z, 0-9 and '-'")
	v.check(s.NVLinkDomain == "" || ValidName(s.NVLinkDomain), "/nvlink_domain", "must be a name of a-z, 0-9 and '-'")
	if len(s.Labels) > MaxLabels {
		v.add("/labels", "must be at most "+strconv.Itoa(MaxLabels))
	}
	for _, k := range EnvNames(s.Labels) {
		if !ValidLabel(k) {
			v.add("/labels", "a label's key has a-z, 0-9, '-', '_', '.' and '/', not "+strconv.Quote(clip(k)))
		}
		v.text("/labels/"+k, s.Labels[k])
	}
	v.text("/address", s.Address)
	v.text("/version", s.Version)
	if !(s.CPU >= 0 && s.CPU < MaxCPU) {
		v.add("/cpu_milli", "is out of range")
	}
	if !(s.Memory >= 0 && s.Memory < MaxMemory) {
		v.add("/memory_bytes", "is out of range")
	}
	if s.PortCount > MaxPorts {
		v.add("/port_count", "must be at most "+strconv.Itoa(MaxPorts))
	}
	if int(s.PortMin)+int(s.PortCount) > 1<<16 {
		v.add("/port_min", "the range must end below 65536")
	}
	if !(s.PortCount == 0 || s.PortMin > 0) {
		v.add("/port_min", "must be at least 1")
	}
	if s.Price < 0 {
		v.add("/price_micros_per_gpu_hour", "must not be negative")
	}
	if len(s.Devices) > MaxGPUs {
		v.add("/devices", "must be at most "+strconv.Itoa(MaxGPUs))
	}
	v.check(s.Refuses.Valid(), "/refuses", "must be DiskFull or NodeRefuses with at most "+strconv.Itoa(MaxTextLen)+" bytes of detail")
	ValidateDevices(s.Devices, (*[]FieldError)(&v))
	return v
}

// ValidateDevices appends what is wrong with a node's list of devices.
func ValidateDevices(ds []Device, to *[]FieldError) {
	v := (*fieldErrors)(to)
	for i := range ds[:min(len(ds), MaxGPUs)] {
		d, p := &ds[i], "/devices/"+strconv.Itoa(i)
		if !(d.ID != "" && len(d.ID) <= MaxTextLen) {
			v.add(p+"/id", "must be 1 to 256 bytes long")
		}
		if !(i == 0 || ds[i-1].ID < d.ID) {
			v.add(p+"/id", "devices must be sorted by ID, each ID once")
		}
		if !(d.Vendor != "" && len(d.Vendor) <= MaxTextLen) {
			v.add(p+"/vendor", "must be 1 to 256 bytes long")
		}
		if !(d.Model != "" && len(d.Model) <= MaxTextLen) {
			v.add(p+"/model", "must be 1 to 256 bytes long")
		}
		if !(d.Memory >= 0 && d.Memory < MaxMemory) {
			v.add(p+"/memory_bytes", "is out of range")
		}
		if d.Health >= numDeviceHealth {
			v.add(p+"/health", "is unknown")
		}
		v.text(p+"/health_code", d.HealthCode)
		v.check(d.LinkIsland <= MaxGPUs, p+"/link_island", "must be at most "+strconv.Itoa(MaxGPUs))
		v.check(d.PCIeGroup <= MaxGPUs, p+"/pcie_group", "must be at most "+strconv.Itoa(MaxGPUs))
	}
}

// Valid reports whether a refusal, or none, can be kept.
func (r *Refusal) Valid() bool {
	return r == nil || (r.Code == DiskFull || r.Code == NodeRefuses) && len(r.Detail) <= MaxTextLen
}
