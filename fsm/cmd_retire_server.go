package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
	"github.com/gpuai/gpuai/internal/mem"
)

// RetireServer remembers for ever that a server is being removed from the
// region: its ID is given to no other, since a server that comes back under its
// old ID with an empty directory could vote twice. It is applied before Raft's
// configuration changes, so that no removal is without it.
//
// Rejected: InvalidSpec for what is no server's name, TooLarge when
// MaxRetiredServers are remembered. Retiring a server again changes nothing.
type RetireServer struct{ Server gpuai.ServerID }

// Append appends the encoded command to dst.
func (c *RetireServer) Append(dst []byte, env Envelope) []byte {
	return appendCommand(dst, typeRetireServer, env, func(b []byte) []byte { return wire.AppendStr(b, string(c.Server)) })
}

// A retiredRec is a server that was removed.
type retiredRec struct {
	name  uint32 // string number; 0: forgotten
	index uint64 // of the entry that retired it
}

func (r *retiredRec) put(b []byte) []byte {
	return le.AppendUint64(le.AppendUint32(b, r.name), r.index)
}

func (r *retiredRec) get(rd *wire.Reader) { r.name, r.index = rd.U32(), rd.U64() }

func (m *Machine) applyRetireServer(r *wire.Reader) Result {
	id := r.Str()
	switch {
	case r.Done() != nil:
		return malformed
	case !gpuai.ValidName(id):
		return rejected(gpuai.InvalidSpec, "a server's ID is 1 to 63 of a-z, 0-9 and '-'")
	}
	m.now.work -= workLook * int64(m.retired.Len())
	if m.ServerRetired(gpuai.ServerID(id)) {
		return Result{}
	}
	if m.retired.Len() >= MaxRetiredServers {
		return rejected(gpuai.TooLarge, "the region remembers as many removed servers as it can")
	}
	if m.strs.Len() >= MaxStrings {
		return rejected(gpuai.TooLarge, "the region holds as many distinct names as it can")
	}
	m.retired.Append(retiredRec{name: m.strs.Intern(id), index: m.now.index})
	return Result{}
}

// forgetRetired lets every ID be used again: a restored region is another
// cluster, and no server of the old one can vote in it.
func (m *Machine) forgetRetired() {
	for s := range m.retired.Len() {
		*m.retired.Mut(s) = retiredRec{}
	}
}

// ServerRetired reports whether a server was removed from the region, or is
// about to be: its ID must not be used again.
func (m *Machine) ServerRetired(id gpuai.ServerID) bool {
	for s := range m.retired.Len() {
		if r := m.retired.Get(s); r.name != 0 && m.strs.Get(r.name) == string(id) {
			return true
		}
	}
	return false
}

// RetiredServers returns the servers that were removed, oldest first.
func (m *Machine) RetiredServers() (out []gpuai.ServerID) {
	for s := range m.retired.Len() {
		if r := m.retired.Get(s); r.name != 0 {
			out = append(out, gpuai.ServerID(m.strs.Get(r.name)))
		}
	}
	return out
}

func readRetired(rd *wire.Reader, count uint32, t *mem.Table[retiredRec]) {
	for range count {
		var r retiredRec
		r.get(rd)
		if rd.Err() == nil {
			t.Append(r)
		}
	}
}

// checkRetired verifies that the remembered servers have names, and one each.
func (m *Machine) checkRetired() error {
	if n := m.retired.Len(); n > MaxRetiredServers {
		return fmt.Errorf("%d removed servers are remembered, more than %d", n, MaxRetiredServers)
	}
	for s := range m.retired.Len() {
		r := m.retired.Get(s)
		if *r == (retiredRec{}) {
			continue
		}
		name := r.name
		if name == 0 || name >= m.strs.Len() {
			return fmt.Errorf("removed server %d has no name", s)
		}
		for o := range s {
			if m.retired.Get(o).name == name {
				return fmt.Errorf("server %s is remembered twice as removed", m.strs.Get(name))
			}
		}
	}
	return nil
}
