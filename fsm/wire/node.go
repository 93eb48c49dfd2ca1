package wire

import (
	"math/bits"

	"github.com/gpuai/gpuai"
)

// AppendNodeSpec appends what an agent says of its host.
//
//	id zone labels:u8, each: key value; address cpu memory:i64 port_min
//	port_count:u16 price:i64 devices flags:u8 version
//
// flags is 1 for a simulated node, 2 for one that names a rack or an NVLink domain:
// both follow, and 4 for one that refuses tasks: code:u8 detail follow these. Without
// them it is what builds read that do not know feature levels 3 and 4.
func AppendNodeSpec(b []byte, s *gpuai.NodeSpec) []byte {
	b = AppendStr(b, string(s.ID))
	b = AppendStr(b, s.Zone)
	b = appendCount8(b, len(s.Labels))
	for _, k := range gpuai.EnvNames(s.Labels) {
		b = AppendStr(AppendStr(b, k), s.Labels[k])
	}
	b = AppendStr(b, s.Address)
	b = appendI64(appendI64(b, int64(s.CPU)), int64(s.Memory))
	b = le.AppendUint16(le.AppendUint16(b, s.PortMin), s.PortCount)
	b = appendI64(b, int64(s.Price))
	b = AppendDevices(b, s.Devices)
	flags := uint8(0)
	if s.Simulated {
		flags = nodeSimulated
	}
	placed := s.Rack+s.NVLinkDomain != ""
	if placed {
		flags |= nodePlaced
	}
	if s.Refuses != nil {
		flags |= nodeRefuses
	}
	b = AppendStr(append(b, flags), s.Version)
	if placed {
		b = AppendStr(AppendStr(b, s.Rack), s.NVLinkDomain)
	}
	if s.Refuses != nil {
		b = AppendRefusal(b, s.Refuses)
	}
	return b
}

// AppendRefusal appends why a node takes no new task.
//
//	code:u8 detail
func AppendRefusal(b []byte, r *gpuai.Refusal) []byte {
	return AppendStr(append(b, uint8(r.Code)), r.Detail)
}

// ReadRefusalFrom reads why a node takes no new task.
func ReadRefusalFrom(r *Reader) *gpuai.Refusal {
	f := &gpuai.Refusal{Code: gpuai.ReasonCode(r.within(int64(r.U8()), int64(gpuai.DiskFull), int64(gpuai.NodeRefuses))), Detail: r.own()}
	if r.err != nil {
		return nil
	}
	return f
}

// Flags of a node's spec.
const (
	nodeSimulated = 1
	nodePlaced    = 2
	nodeRefuses   = 4
)

// ReadNodeSpecFrom reads what an agent says of its host. Counts and texts are
// within their limits; what else gpuai.NodeSpec's Validate says is not checked.
func ReadNodeSpecFrom(r *Reader) (gpuai.NodeSpec, error) {
	s := gpuai.NodeSpec{ID: gpuai.NodeID(r.own()), Zone: r.kind()}
	s.Labels = r.labels()
	s.Address = r.own()
	s.CPU, s.Memory = gpuai.MilliCPU(r.I64()), gpuai.Bytes(r.I64())
	s.PortMin, s.PortCount = r.U16(), r.U16()
	s.Price = gpuai.Micros(r.I64())
	s.Devices, _ = ReadDevicesFrom(r)
	flags := r.within(int64(r.U8()), 0, nodeSimulated|nodePlaced|nodeRefuses)
	s.Simulated, s.Version = flags&nodeSimulated != 0, r.own()
	if flags&nodePlaced != 0 {
		if s.Rack, s.NVLinkDomain = r.kind(), r.kind(); s.Rack+s.NVLinkDomain == "" {
			r.Fail("a node is said to name its place, and does not")
		}
	}
	if flags&nodeRefuses != 0 {
		s.Refuses = ReadRefusalFrom(r)
	}
	return s, r.err
}

// labels reads a node's labels, which are in order of their keys.
func (r *Reader) labels() map[string]string {
	n := r.count8(gpuai.MaxLabels)
	if n == 0 {
		return nil
	}
	m := make(map[string]string, n)
	last := ""
	for i := range n {
		k := r.kind()
		if i > 0 && k <= last {
			r.Fail("labels are out of order")
			return nil
		}
		m[k], last = r.kind(), k
	}
	return m
}

// AppendDevices appends a list of devices. What the region fills in is left
// out.
//
//	count:u8, each: id vendor model memory:i64 health:u8 health_code
//
// From feature level 4 on numa link_island pcie_group:u8 follow where devicePlaced
// is set in the health.
func AppendDevices(b []byte, ds []gpuai.Device) []byte {
	b = appendCount8(b, len(ds))
	for i := range ds {
		d := &ds[i]
		b = AppendStr(AppendStr(AppendStr(b, string(d.ID)), d.Vendor), d.Model)
		b = appendI64(b, int64(d.Memory))
		p, health := d.DevicePlace, uint8(d.Health)
		if p == (gpuai.DevicePlace{}) {
			b = AppendStr(append(b, health), d.HealthCode)
			continue
		}
		b = append(AppendStr(append(b, health|devicePlaced), d.HealthCode), uint8(p.NUMA), p.LinkIsland, p.PCIeGroup)
	}
	return b
}

// devicePlaced is set in a device's health when its place follows.
const devicePlaced = 1 << 7

// ReadDevicesFrom reads a list of devices. What else gpuai.ValidateDevices says
// is not checked.
func ReadDevicesFrom(r *Reader) ([]gpuai.Device, error) {
	n := r.count8(gpuai.MaxGPUs)
	if n == 0 {
		return nil, r.err
	}
	ds := r.room(n)
	for range n {
		d := gpuai.Device{
			ID: gpuai.DeviceID(r.own()), Vendor: r.kind(), Model: r.kind(), Memory: gpuai.Bytes(r.I64()),
		}
		health := r.U8()
		d.Health = gpuai.DeviceHealth(r.within(int64(health&^devicePlaced), 0, int64(gpuai.DeviceQuarantined)))
		d.HealthCode = r.own()
		if health&devicePlaced != 0 {
			d.DevicePlace = readPlace(r)
		}
		ds = append(ds, d)
	}
	if r.err != nil {
		return nil, r.err
	}
	return ds, nil
}

// readPlace reads the place of a device that has one.
func readPlace(r *Reader) gpuai.DevicePlace {
	p := gpuai.DevicePlace{NUMA: gpuai.NUMANode(r.U8())}
	p.LinkIsland = uint8(r.within(int64(r.U8()), 0, gpuai.MaxGPUs))
	p.PCIeGroup = uint8(r.within(int64(r.U8()), 0, gpuai.MaxGPUs))
	if p == (gpuai.DevicePlace{}) {
		r.Fail("a device is said to have a place, and has none")
	}
	return p
}

// ReadDeviceIDs reads of a node's spec only the IDs of its devices whose bits
// are set in mask: leases name few of a node's devices.
func ReadDeviceIDs(r *Reader, mask uint64) ([]gpuai.DeviceID, error) {
	r.text() // ID
	r.text() // zone
	for range r.count8(gpuai.MaxLabels) {
		r.text()
		r.text()
	}
	r.text() // address
	r.I64()  // CPU
	r.I64()  // memory
	r.U16()  // ports
	r.U16()
	r.I64() // price
	ids := make([]gpuai.DeviceID, 0, bits.OnesCount64(mask))
	for i := range r.count8(gpuai.MaxGPUs) {
		id := r.text()
		if mask>>i&1 != 0 {
			ids = append(ids, gpuai.DeviceID(id))
		}
		r.text() // vendor
		r.text() // model
		r.I64()  // memory
		placed := r.U8()&devicePlaced != 0
		r.text() // health code
		if placed {
			r.U8()
			r.U16()
		}
	}
	return ids, r.err
}

// maxHeld bounds the leases of one registration: more than a node may have.
const maxHeld = 4_096

// AppendHeld appends the leases that an agent still runs.
//
//	count:u16, each: lease:u64 boot_id
func AppendHeld(b []byte, hs []gpuai.HeldLease) []byte {
	b = appendCount16(b, len(hs))
	for i := range hs {
		b = AppendStr(le.AppendUint64(b, uint64(hs[i].Lease)), hs[i].BootID)
	}
	return b
}

// ReadHeldFrom reads the leases that an agent still runs.
func ReadHeldFrom(r *Reader) ([]gpuai.HeldLease, error) {
	var hs []gpuai.HeldLease
	for range r.count16(maxHeld) {
		hs = append(hs, gpuai.HeldLease{Lease: gpuai.Token(r.U64()), BootID: string(r.text())})
		if r.err != nil {
			return nil, r.err
		}
	}
	return hs, r.err
}

// AppendReport appends a report.
//
//	lease:u64 seq:u32 incarnation:u64 state:u8 exit_code:i32 reason
//	unclean:u8, each: id
//
// From feature level 3 on the digest of an image follows when state is
// ReportResolved, else the end code where reportCoded is set in the state, or the
// mesh point, key[32] port:u16, where reportMeshed is.
func AppendReport(b []byte, p *gpuai.Report) []byte {
	b = le.AppendUint64(b, uint64(p.Lease))
	b = le.AppendUint32(b, p.Seq)
	b = le.AppendUint64(b, uint64(p.Incarnation))
	coded := p.EndCode != gpuai.EndOther && p.State != gpuai.ReportResolved
	state := uint8(p.State)
	if coded {
		state |= reportCoded
	}
	meshed := p.Mesh != nil && p.State == gpuai.ReportPrepared
	if meshed {
		state |= reportMeshed
	}
	b = append(b, state)
	b = le.AppendUint32(b, uint32(p.ExitCode))
	b = AppendStr(b, p.Reason)
	b = appendCount8(b, len(p.Unclean))
	for _, d := range p.Unclean {
		b = AppendStr(b, string(d))
	}
	switch {
	case p.State == gpuai.ReportResolved:
		b = AppendStr(b, p.Image)
	case coded:
		b = append(b, uint8(p.EndCode))
	}
	if meshed {
		b = le.AppendUint16(append(b, p.Mesh.Key[:]...), p.Mesh.Port)
	}
	return b
}

// Flags in a report's state.
const (
	reportCoded  = 1 << 7 // it has an end code
	reportMeshed = 1 << 6 // it has a mesh point
)

// ReadReportFrom reads a report.
func ReadReportFrom(r *Reader) (gpuai.Report, error) {
	p := gpuai.Report{Lease: gpuai.Token(r.U64()), Seq: r.U32(), Incarnation: gpuai.Incarnation(r.U64())}
	state := r.U8()
	p.State = gpuai.ReportState(r.within(int64(state&^(reportCoded|reportMeshed)), 1, int64(gpuai.NumReportStates)-1))
	p.ExitCode = int32(r.U32())
	p.Reason = string(r.limited(gpuai.MaxReasonLen))
	for range r.count8(gpuai.MaxGPUs) {
		p.Unclean = append(p.Unclean, gpuai.DeviceID(r.text()))
	}
	switch {
	case p.State == gpuai.ReportResolved:
		if p.Image = string(r.text()); state&reportCoded != 0 {
			r.Fail("what is no end has an end code")
		}
	case state&reportCoded != 0:
		p.EndCode = gpuai.EndCode(r.within(int64(r.U8()), 1, int64(gpuai.NumEndCodes)-1))
	}
	if state&reportMeshed != 0 {
		p.Mesh = r.meshPoint(p.State)
	}
	return p, r.err
}

// meshPoint reads where a member is reached that is in a state.
func (r *Reader) meshPoint(s gpuai.ReportState) *gpuai.MeshPoint {
	var p gpuai.MeshPoint
	copy(p.Key[:], r.Bytes(len(p.Key)))
	p.Port = r.U16()
	if s != gpuai.ReportPrepared || !p.Valid() {
		r.Fail("what is no member's has a mesh point")
	}
	return &p
}
