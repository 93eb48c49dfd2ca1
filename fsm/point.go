package fsm

import (
	"fmt"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

// A pointRec is where the member of a gang is reached that holds a lease. There is
// none below LevelPlacement, and none of a lease that has ended.
type pointRec struct {
	lease ref
	port  uint16
	key   gpuai.MeshKey
}

func (r *pointRec) put(b []byte) []byte {
	b = r.lease.put(b)
	b = le.AppendUint16(b, r.port)
	return append(b, r.key[:]...)
}

func (r *pointRec) get(rd *wire.Reader) {
	r.lease = ref(rd.U32())
	r.port = rd.U16()
	copy(r.key[:], rd.Bytes(len(r.key)))
}

// keepPoint notes where a lease's member is reached from other nodes: once, since its
// agent makes one key for a lease. It comes before the gang is let start, or else
// those that run already are told.
func (m *Machine) keepPoint(slot uint32, p *gpuai.MeshPoint) {
	l := m.leases.Get(slot)
	group := m.tasks.Get(l.task.slot()).group.slot()
	if p == nil || l.mesh != 0 || l.state != gpuai.LeaseGranted || !m.groups.Get(group).gang {
		return
	}
	at, ok := m.pointSlots.Alloc()
	if !ok {
		return // there are as many slots as leases
	}
	m.points.Put(at, pointRec{lease: refTo(slot), port: p.Port, key: p.Key})
	w := m.leases.Mut(slot)
	w.mesh, w.modified = refTo(at), m.now.index
	if !m.groups.Get(group).held {
		m.tellPeers(slot)
	}
}

// tellPeers has a lease of each other node of a gang told that the gang has a
// member more.
func (m *Machine) tellPeers(joined uint32) {
	home := m.leases.Get(joined).node
	last := home
	group := m.tasks.Get(m.leases.Get(joined).task.slot()).group.slot()
	for t := m.groups.Get(group).first; t != 0; t = m.tasks.Get(t.slot()).next {
		m.now.work -= workLook
		x := m.tasks.Get(t.slot()).lease
		if x == 0 {
			continue
		}
		if l := m.leases.Get(x.slot()); l.live() && l.mesh != 0 && l.node != home && l.node != last {
			last = l.node
			m.leases.Mut(x.slot()).modified = m.now.index
			m.emit(m.leaseEvent(gpuai.LeasePeers, x.slot()))
		}
	}
}

// dropPoint forgets where the member of a lease that ends was reached. The others
// are not told: nobody has its key any more.
func (m *Machine) dropPoint(slot uint32) {
	p := m.leases.Get(slot).mesh
	if p == 0 {
		return
	}
	m.leases.Mut(slot).mesh = 0
	*m.points.Mut(p.slot()) = pointRec{}
	m.pointSlots.Free(p.slot())
}

// appendPeer adds a lease's member to those that others of its gang are told of:
// members of one node that have one key are one peer.
func (m *Machine) appendPeer(peers []gpuai.MeshPeer, l *leaseRec, rank uint32) []gpuai.MeshPeer {
	if l.mesh == 0 || !l.live() {
		return peers
	}
	p := m.points.Get(l.mesh.slot())
	for i := len(peers) - 1; i >= 0; i-- {
		if peers[i].Key == p.key && peers[i].Port == p.port {
			peers[i].Ranks = append(peers[i].Ranks, rank)
			return peers
		}
	}
	return append(peers, gpuai.MeshPeer{
		Address: m.nodeBody(l.node).spec.Address, MeshPoint: gpuai.MeshPoint{Key: p.key, Port: p.port}, Ranks: []uint32{rank},
	})
}

// checkPoints verifies that every point is of one live lease.
func (m *Machine) checkPoints() error {
	n := uint32(0)
	for s, ok := m.leaseSlots.Next(0); ok; s, ok = m.leaseSlots.Next(s + 1) {
		l := m.leases.Get(s)
		if l.mesh == 0 {
			continue
		}
		n++
		if !l.live() || !m.pointSlots.Has(l.mesh.slot()) || m.points.Get(l.mesh.slot()).lease != refTo(s) || m.points.Get(l.mesh.slot()).port == 0 {
			return fmt.Errorf("lease %s has mesh point %d, which is not its own", l.token, l.mesh.slot())
		}
	}
	if n != m.pointSlots.Len() || n > 0 && m.Level() < LevelPlacement {
		return fmt.Errorf("%d mesh points, %d are of leases, at level %d", m.pointSlots.Len(), n, m.Level())
	}
	return nil
}
