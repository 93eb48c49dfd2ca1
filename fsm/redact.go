package fsm

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/internal/mem"
	"github.com/gpuai/gpuai/scheduler"
)

// A Redaction replaces what tenants and operators wrote by stand-ins that lead to
// the same decisions: commands, scripts, environments, directories, the names of
// jobs and groups, keys and values of labels, in nodes and in constraints, names
// of racks and NVLink domains, idempotency keys, actors, addresses, boot IDs,
// reasons of reports and of health, digests of images and checkpoints, certificates, sealed keys of authorities,
// names and sealed values of secrets and where tasks have them, hashes of join tokens and of access tokens with what
// describes them, names of tenants for people, and claims. What stays: sizes, times, vendors, models, IDs
// of devices, versions, the names of nodes, servers, tenants and zones, and values
// of labels that are whole numbers, which constraints compare.
//
// Salt makes the stand-ins of names those of one report only: it must be
// secret, and random.
type Redaction struct{ Salt uint64 }

// name returns the stand-in of a name: equal names have equal ones.
func (x *Redaction) name(prefix, s string) string {
	const digits = "0123456789abcdefghijklmnopqrstuv"
	if s == "" {
		return ""
	}
	a, b := mem.HashBytes(x.Salt, []byte(s)), mem.HashBytes(^x.Salt, []byte(s))
	out := []byte(prefix + "-")
	for range 8 {
		out = append(out, digits[a&31], digits[b&31])
		a, b = a>>5, b>>5
	}
	return string(out)
}

// digest returns the stand-in of an image's digest, which is one, too.
func (x *Redaction) digest(s string) string {
	if s == "" {
		return ""
	}
	out := "sha256:"
	for i := range uint64(4) {
		out += fmt.Sprintf("%016x", mem.HashBytes(x.Salt+i, []byte(s)))
	}
	return out
}

// blob returns the stand-in of a checkpoint's digest.
func (x *Redaction) blob(d gpuai.BlobDigest) (out gpuai.BlobDigest) {
	for i := range len(out) / 8 {
		le.PutUint64(out[8*i:], mem.HashBytes(x.Salt+uint64(i), d[:]))
	}
	return out
}

// blank returns a text of equal length that says nothing.
func blank(s string) string { return strings.Repeat("x", len(s)) }

// spec redacts a job.
func (x *Redaction) spec(s *gpuai.JobSpec) {
	s.Name = x.name("j", s.Name)
	for i := range s.Groups {
		g := &s.Groups[i]
		g.Name = x.name("g", g.Name)
		x.constraints(g.Constraints)
		t := &g.Task
		for k := range t.Command {
			t.Command[k] = blank(t.Command[k])
		}
		for k := range t.Args {
			t.Args[k] = blank(t.Args[k])
		}
		t.Image, t.Script = blank(t.Image), blank(t.Script)
		if t.Cwd != "" {
			t.Cwd = "/" + blank(t.Cwd[1:])
		}
		x.taskSecrets(t.Secrets)
		n := len(t.Env)
		t.Env = nil
		for k := range n {
			if t.Env == nil {
				t.Env = map[string]string{}
			}
			t.Env[fmt.Sprintf("X%d", k)] = "x"
		}
	}
}

// encodedSpec redacts an encoded job; false when it is none.
func (x *Redaction) encodedSpec(b []byte) ([]byte, bool) {
	s, err := wire.ReadJobSpec(b)
	if err != nil {
		return nil, false
	}
	x.spec(&s)
	return wire.AppendJobSpec(nil, &s), true
}

// label returns the stand-ins of a label. A whole number stays.
func (x *Redaction) label(key, value string) (string, string) {
	if _, err := strconv.ParseInt(value, 10, 64); err != nil {
		value = x.name("v", value)
	}
	return x.name("l", key), value
}

// constraints redacts the attributes that are no names of ours, and their values.
func (x *Redaction) constraints(cs []gpuai.Constraint) {
	for i := range cs {
		c := &cs[i]
		switch c.Attribute {
		case "zone", "gpu.vendor", "gpu.model", "gpu.memory_bytes":
			continue
		}
		key := strings.TrimPrefix(c.Attribute, gpuai.LabelPrefix)
		for k, v := range c.Values {
			_, c.Values[k] = x.label(key, v)
		}
		key, _ = x.label(key, "")
		c.Attribute = gpuai.LabelPrefix + key
	}
}

func (x *Redaction) node(s *gpuai.NodeSpec) {
	s.Address = blank(s.Address)
	s.Rack, s.NVLinkDomain = x.name("r", s.Rack), x.name("r", s.NVLinkDomain)
	labels := map[string]string{}
	for _, k := range gpuai.EnvNames(s.Labels) {
		key, value := x.label(k, s.Labels[k])
		labels[key] = value
	}
	if s.Labels != nil {
		s.Labels = labels
	}
	x.devices(s.Devices)
	x.refusal(s.Refuses)
}

// refusal blanks what an agent says of its host in words.
func (x *Redaction) refusal(r *gpuai.Refusal) {
	if r != nil {
		r.Detail = blank(r.Detail)
	}
}

func (x *Redaction) devices(ds []gpuai.Device) {
	for i := range ds {
		ds[i].HealthCode = blank(ds[i].HealthCode)
	}
}

// RedactState redacts the state of m, which is then another one, with another
// digest, in which the same commands lead to the same decisions. It is for
// machines made from a snapshot, outside Apply.
func (x *Redaction) RedactState(m *Machine) {
	for s := range m.nodes.Len() {
		body := m.nodeBody(s)
		x.node(&body.spec)
		body.boot, body.nonce = x.name("b", body.boot), x.name("b", body.nonce)
		m.setNodeBody(s, &body)
	}
	for s, ok := m.jobSlots.Next(0); ok; s, ok = m.jobSlots.Next(s + 1) {
		x.job(m, s)
		x.notes(m, s)
	}
	for s, ok := m.checkpointSlots.Next(0); ok; s, ok = m.checkpointSlots.Next(s + 1) {
		c := m.checkpoints.Mut(s)
		c.digest = x.blob(c.digest)
	}
	x.access(m)
	x.authorities(m)
	x.secrets(m)
	m.sched.Rename(&scheduler.Renames{
		Label: x.label, Domain: func(name string) string { return x.name("r", name) },
		Constraints: func(cs []gpuai.Constraint) []gpuai.Constraint {
			x.constraints(cs)
			_, cs, _ = wire.ReadShape(wire.AppendShape(nil, &gpuai.Resources{}, cs)) // its own order
			return cs
		},
		Key: func(r gpuai.Resources, cs []gpuai.Constraint) []byte { return wire.AppendShape(nil, &r, cs) },
	})
	x.addresses(m)
	if r := m.audit.Mut(); r.records > 0 { // over actors, too
		r.hash = gpuai.AuditHash{1}
	}
	m.sp.Commit()
}

// addresses redacts what is interned and is no name of a node, tenant or server:
// the addresses that servers have, or have had.
func (x *Redaction) addresses(m *Machine) {
	name := make([]bool, m.strs.Len())
	for s := range m.nodes.Len() {
		name[m.nodes.Get(s).name] = true
	}
	for s, ok := m.jobSlots.Next(0); ok; s, ok = m.jobSlots.Next(s + 1) {
		name[m.jobs.Get(s).tenant] = true
	}
	for s := range m.tenants.Len() {
		name[m.tenants.Get(s).name] = true
	}
	for s := range m.servers.Len() {
		name[m.servers.Get(s).name] = true
	}
	for s := range m.nodes.Len() {
		name[m.nodes.Get(s).owner] = true
	}
	for s, ok := m.tokenSlots.Next(0); ok; s, ok = m.tokenSlots.Next(s + 1) {
		name[m.tokens.Get(s).contributor] = true
	}
	for s, ok := m.roleSlots.Next(0); ok; s, ok = m.roleSlots.Next(s + 1) {
		name[m.roles.Get(s).contributor] = true
	}
	keepNamesOfJoins(m, name)
	keepNamesOfSecrets(m, name)
	old := m.strs
	m.strs = mem.NewStrings(m.sp)
	for i := uint32(1); i < old.Len(); i++ {
		if s := old.Get(i); name[i] {
			m.strs.Intern(s)
		} else {
			m.strs.Intern(x.name("a", s))
		}
	}
}

// notes redacts what was told of a job's tasks and images.
func (x *Redaction) notes(m *Machine, job uint32) {
	rewrite := func(r ref, f func(string) string) {
		if r == 0 {
			return
		}
		text := []byte(f(m.noteText(r)))
		w := m.notes.Mut(r.slot())
		m.blobs.Free(uint32(w.text))
		w.text, w.hash = ref(m.blobs.Put(text)), hashOf(text)
	}
	for g := m.jobs.Get(job).group; g != 0; g = m.groups.Get(g.slot()).next {
		rewrite(m.groups.Get(g.slot()).image, x.digest)
		for t := m.groups.Get(g.slot()).first; t != 0; t = m.tasks.Get(t.slot()).next {
			rewrite(m.tasks.Get(t.slot()).note, blank)
		}
	}
}

func (x *Redaction) job(m *Machine, slot uint32) {
	j := m.jobs.Get(slot)
	b, ok := x.encodedSpec(m.blobs.Append(nil, uint32(j.spec)))
	var v wire.JobView
	if !ok || wire.ReadJobView(b, &v) != nil { // written by us: cannot be
		b = nil
	}
	old, now := j.nameHash, mem.HashBytes(3, v.Name)
	head, found := m.jobByName.Find(old, func(s uint32) bool { return m.jobs.Get(s).nameHash == old })
	w := m.jobs.Mut(slot)
	m.blobs.Free(uint32(w.spec))
	w.spec, w.specHash, w.nameHash = ref(m.blobs.Put(b)), hashOf(b), now
	if found && head == slot { // the newest of its name
		m.jobByName.Delete(old, slot)
		m.jobByName.Insert(now, slot)
	}
}

// RedactEntry redacts a log entry. m is the machine that has applied the
// redacted entries before it: a Checkpoint is made to name its digests.
func (x *Redaction) RedactEntry(data []byte, m *Machine) ([]byte, error) {
	e, err := wire.OpenEntry(data)
	if err != nil {
		return nil, err
	}
	var cmds [][]byte
	for c, ok := e.Next(); ok; c, ok = e.Next() {
		actor := ""
		if len(c.Actor) > 0 {
			actor = "redacted"
		}
		out, at := wire.BeginCommand(nil, c.Type, c.Version, string(c.Tenant), actor, x.name("k", string(c.Key)))
		cmds = append(cmds, wire.EndCommand(append(out, x.body(&c, m)...), at))
	}
	return wire.AppendEntry(nil, e.Header, cmds...), nil
}

// body redacts a command's body. What cannot be read becomes what cannot be
// read.
func (x *Redaction) body(c *wire.Command, m *Machine) []byte {
	var b []byte
	ok := true
	switch c.Type {
	case typeSubmitJob:
		b, ok = x.submitBody(c.Body)
	case typeRegisterNode:
		var r RegisterNode
		var err error
		if r, err = readRegisterNode(wire.NewReader(c.Body)); err == nil {
			x.node(&r.Spec)
			r.BootID, r.Nonce = x.name("b", r.BootID), x.name("b", r.Nonce)
			for i := range r.Held {
				r.Held[i].BootID = x.name("b", r.Held[i].BootID)
			}
			b = bodyOf(&r)
		}
		ok = err == nil
	case typeUpdateDevices:
		b, ok = x.devicesBody(c.Body)
	case typeReportLease:
		r := wire.NewReader(c.Body)
		u := ReportLease{Node: gpuai.NodeID(r.Str())}
		var err error
		if u.Report, err = wire.ReadReportFrom(r); err == nil && r.Done() == nil {
			u.Report.Reason, u.Report.Image = blank(u.Report.Reason), x.digest(u.Report.Image)
			b = bodyOf(&u)
		}
		ok = b != nil
	case typePublishCheckpoint:
		var u PublishCheckpoint
		if u, ok = readPublish(wire.NewReader(c.Body)); ok {
			u.Publish.Digest = x.blob(u.Publish.Digest)
			b = bodyOf(&u)
		}
	case typeSetDemand:
		d, err := readDemand(wire.NewReader(c.Body))
		for i := range d.Demand {
			x.constraints(d.Demand[i].Constraints)
		}
		b, ok = bodyOf(&d), err == nil
	case typeCreateTenant, typeCreateToken, typeSetRole:
		b, ok = x.accessBody(c)
	case typePutSecret, typeDeleteSecret:
		b, ok = x.secretBody(c)
	case typeAuditNote:
		b, ok = x.auditNotes(c.Body)
	case typeMoveServer:
		r := wire.NewReader(c.Body)
		u := MoveServer{Server: gpuai.ServerID(r.Str()), Address: x.name("a", r.Str())}
		b, ok = bodyOf(&u), r.Done() == nil
	case typeCheckpoint:
		return renamedCheckpoint(c.Body, m)
	default:
		b, ok = x.authorityBody(c)
	}
	if !ok {
		return []byte(strings.Repeat("\xff", len(c.Body)))
	}
	return b
}

func (x *Redaction) devicesBody(body []byte) ([]byte, bool) {
	r := wire.NewReader(body)
	u := UpdateDevices{Node: gpuai.NodeID(r.Str()), Incarnation: gpuai.Incarnation(r.U64())}
	var err error
	if u.Devices, err = wire.ReadDevicesFrom(r); err == nil && r.More() {
		u.Refuses = wire.ReadRefusalFrom(r)
	}
	if err != nil || r.Done() != nil {
		return nil, false
	}
	x.devices(u.Devices)
	x.refusal(u.Refuses)
	return bodyOf(&u), true
}

// renamedCheckpoint makes a Checkpoint name the digest that m has.
func renamedCheckpoint(body []byte, m *Machine) []byte {
	if len(body) < 8 {
		return body
	}
	index := le.Uint64(body)
	d, known := m.DigestAt(index)
	if !known {
		index = 0 // no replica remembers it
	}
	return bodyOf(&Checkpoint{Index: index, Digest: d})
}

func (x *Redaction) auditNotes(body []byte) ([]byte, bool) {
	lines := readAuditNotes(wire.NewReader(body))
	var u AuditNote
	for i := range lines {
		l := &lines[i]
		u.Notes = append(u.Notes, gpuai.AuditNote{
			Actor: x.name("u", string(l.actor)), Tenant: gpuai.TenantID(l.tenant), Job: l.job,
			Subject: x.name("s", string(l.subject)), Request: x.name("r", string(l.request)), Code: l.code, Count: l.count,
		})
	}
	return bodyOf(&u), lines != nil
}

func (x *Redaction) submitBody(body []byte) ([]byte, bool) {
	if len(body) < submitHeader {
		return nil, false
	}
	spec, ok := x.encodedSpec(body[submitHeader:])
	if !ok {
		return nil, false
	}
	return append(append([]byte(nil), body[:submitHeader]...), spec...), true
}

// bodyOf returns the body of a command.
func bodyOf(c Command) []byte {
	e, err := wire.OpenEntry(AppendEntry(nil, Header{}, c.Append(nil, Envelope{})))
	if err != nil {
		return nil
	}
	cmd, _ := e.Next()
	return cmd.Body
}
