package plugins

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/gpuai/gpuai"
	pb "github.com/gpuai/gpuai/plugins/proto"
)

// This file turns the nouns into their wire form and back. What comes from a
// driver is checked on the way in: the wire types do not leave the package.

func toWireInfo(i Info) *pb.InfoResponse {
	return &pb.InfoResponse{
		Name: i.Name, Version: i.Version, Simulated: i.Simulated,
		Capabilities: i.Capabilities, ConfigSchema: i.ConfigSchema,
	}
}

func fromWireInfo(m *pb.InfoResponse) (Info, error) {
	if m.GetName() == "" || m.GetVersion() == "" {
		return Info{}, fmt.Errorf("%w: it does not say its name and version", ErrGarbage)
	}
	return Info{
		Name: m.GetName(), Version: m.GetVersion(), Simulated: m.GetSimulated(),
		Capabilities: m.GetCapabilities(), ConfigSchema: m.GetConfigSchema(),
	}, nil
}

func toWireInventory(v Inventory) *pb.FingerprintResponse {
	m := &pb.FingerprintResponse{Generation: v.Generation, Simulated: v.Simulated, DriverError: v.Err,
		DriverVersion: v.DriverVersion, RuntimeVersion: v.RuntimeVersion}
	for _, d := range v.Devices {
		m.Devices = append(m.Devices, &pb.Device{
			Id: string(d.ID), Vendor: d.Vendor, Kind: d.Kind, Model: d.Model,
			MemoryBytes: uint64(d.Memory), Index: d.Index, PciBusId: d.PCIBusID,
			NumaNode: d.NUMANode, CdiName: d.CDIName, Serial: d.Serial,
			ParentId: string(d.Parent), ConflictsWith: toStrings(d.Conflicts),
			Partitioned: d.Partitioned,
		})
	}
	for _, l := range v.Links {
		m.Links = append(m.Links, &pb.Link{A: string(l.A), B: string(l.B), Kind: pb.Link_Kind(l.Kind), Width: l.Width})
	}
	return m
}

func fromWireInventory(m *pb.FingerprintResponse) (Inventory, error) {
	v := Inventory{Generation: m.GetGeneration(), Simulated: m.GetSimulated(), Err: m.GetDriverError(),
		DriverVersion: m.GetDriverVersion(), RuntimeVersion: m.GetRuntimeVersion()}
	for _, d := range m.GetDevices() {
		if d.GetMemoryBytes() >= uint64(gpuai.MaxMemory) {
			return v, fmt.Errorf("%w: device %s has %d bytes of memory", ErrGarbage, clip(d.GetId()), d.GetMemoryBytes())
		}
		v.Devices = append(v.Devices, Device{
			ID: gpuai.DeviceID(d.GetId()), Vendor: d.GetVendor(), Kind: d.GetKind(), Model: d.GetModel(),
			Memory: gpuai.Bytes(d.GetMemoryBytes()), Index: d.GetIndex(), PCIBusID: d.GetPciBusId(),
			NUMANode: d.GetNumaNode(), CDIName: d.GetCdiName(), Serial: d.GetSerial(),
			Parent: gpuai.DeviceID(d.GetParentId()), Conflicts: toIDs(d.GetConflictsWith()),
			Partitioned: d.GetPartitioned(),
		})
	}
	for _, l := range m.GetLinks() {
		if l.GetKind() <= 0 || int(l.GetKind()) >= int(numLinkKinds) {
			return v, fmt.Errorf("%w: link %s-%s is of the unknown kind %d", ErrGarbage, clip(l.GetA()), clip(l.GetB()), l.GetKind())
		}
		v.Links = append(v.Links, Link{
			A: gpuai.DeviceID(l.GetA()), B: gpuai.DeviceID(l.GetB()), Kind: LinkKind(l.GetKind()), Width: l.GetWidth(),
		})
	}
	return v, v.check()
}

func toWireHealth(hs []Health) *pb.HealthResponse {
	m := new(pb.HealthResponse)
	for _, h := range hs {
		m.Devices = append(m.Devices, &pb.DeviceHealth{
			DeviceId: string(h.Device), State: pb.DeviceHealth_State(h.State), Code: h.Code,
			Message: h.Message, Action: pb.DeviceHealth_Action(h.Action),
		})
	}
	return m
}

func fromWireHealth(m *pb.HealthResponse) ([]Health, error) {
	var hs []Health
	for _, d := range m.GetDevices() {
		id, state, action := d.GetDeviceId(), d.GetState(), d.GetAction()
		if state < 0 || int(state) >= int(numHealthStates) || action < 0 || int(action) >= int(numHealthActions) {
			return nil, fmt.Errorf("%w: device %s has the unknown health %d with action %d", ErrGarbage, clip(id), state, action)
		}
		if len(d.GetCode()) > gpuai.MaxTextLen || len(d.GetMessage()) > 4*gpuai.MaxTextLen {
			return nil, fmt.Errorf("%w: device %s has a health code or message that is too long", ErrGarbage, clip(id))
		}
		hs = append(hs, Health{
			Device: gpuai.DeviceID(id), State: HealthState(state), Code: d.GetCode(),
			Message: d.GetMessage(), Action: HealthAction(action),
		})
	}
	return hs, nil
}

func toWireReservation(r Reservation) *pb.ReserveRequest {
	return &pb.ReserveRequest{
		ReservationId: r.ID, DeviceIds: toStrings(r.Devices),
		ShareMilli: uint32(r.Share), Incarnation: uint64(r.Incarnation),
	}
}

func fromWireReservation(m *pb.ReserveRequest) (Reservation, error) {
	share := min(m.GetShareMilli(), 1<<16-1) // out of range stays out of range
	return Reservation{
		ID: m.GetReservationId(), Devices: toIDs(m.GetDeviceIds()),
		Share: gpuai.Milli(share), Incarnation: gpuai.Incarnation(m.GetIncarnation()),
	}.Normal()
}

func toWireGrant(g Grant) *pb.ReserveResponse {
	m := &pb.ReserveResponse{CdiDevices: g.CDI, Env: g.Env, Cpuset: g.CPUSet, Memset: g.MemSet}
	for _, v := range g.Mounts {
		m.Mounts = append(m.Mounts, &pb.Mount{HostPath: v.HostPath, ContainerPath: v.ContainerPath, Options: v.Options})
	}
	for _, n := range g.DeviceNodes {
		m.DeviceNodes = append(m.DeviceNodes, &pb.DeviceNode{HostPath: n.HostPath, ContainerPath: n.ContainerPath, Permissions: n.Permissions})
	}
	return m
}

func fromWireGrant(m *pb.ReserveResponse) Grant {
	g := Grant{Env: m.GetEnv(), CDI: m.GetCdiDevices(), CPUSet: m.GetCpuset(), MemSet: m.GetMemset()}
	for _, v := range m.GetMounts() {
		g.Mounts = append(g.Mounts, Mount{HostPath: v.GetHostPath(), ContainerPath: v.GetContainerPath(), Options: v.GetOptions()})
	}
	for _, n := range m.GetDeviceNodes() {
		g.DeviceNodes = append(g.DeviceNodes, DeviceNode{n.GetHostPath(), n.GetContainerPath(), n.GetPermissions()})
	}
	return g
}

func toWireStats(s Stats) *pb.DeviceStats {
	m := &pb.DeviceStats{
		DeviceId:            string(s.Device),
		GpuUtilizationRatio: s.GPUUtilization, MemoryUtilizationRatio: s.MemoryUtilization,
		MemoryUsedBytes: s.MemoryUsedBytes, MemoryTotalBytes: s.MemoryTotalBytes,
		PowerWatts: s.PowerWatts, PowerLimitWatts: s.PowerLimitWatts,
		EnergyMillijoulesTotal: s.EnergyMillijoules, TemperatureCelsius: s.TemperatureCelsius,
		SmClockHertz: s.SMClockHertz, PcieRxBytesTotal: s.PCIeRxBytes, PcieTxBytesTotal: s.PCIeTxBytes,
		LinkBytesTotal: s.LinkBytes, EccUncorrectedTotal: s.ECCUncorrected,
		EccCorrectedTotal: s.ECCCorrected, ThrottleReasons: s.ThrottleReasons,
	}
	for _, p := range s.Processes {
		m.Processes = append(m.Processes, &pb.ProcessUse{Pid: p.PID, MemoryBytes: uint64(p.Memory)})
	}
	return m
}

func fromWireStats(m *pb.DeviceStats) Stats {
	s := Stats{
		Device:         gpuai.DeviceID(m.GetDeviceId()),
		GPUUtilization: m.GpuUtilizationRatio, MemoryUtilization: m.MemoryUtilizationRatio,
		MemoryUsedBytes: m.MemoryUsedBytes, MemoryTotalBytes: m.MemoryTotalBytes,
		PowerWatts: m.PowerWatts, PowerLimitWatts: m.PowerLimitWatts,
		EnergyMillijoules: m.EnergyMillijoulesTotal, TemperatureCelsius: m.TemperatureCelsius,
		SMClockHertz: m.SmClockHertz, PCIeRxBytes: m.PcieRxBytesTotal, PCIeTxBytes: m.PcieTxBytesTotal,
		LinkBytes: m.LinkBytesTotal, ECCUncorrected: m.EccUncorrectedTotal,
		ECCCorrected: m.EccCorrectedTotal, ThrottleReasons: m.ThrottleReasons,
	}
	for _, p := range m.GetProcesses() {
		s.Processes = append(s.Processes, ProcessUse{PID: p.GetPid(), Memory: gpuai.Bytes(p.GetMemoryBytes())})
	}
	return s
}

// sameInventory reports whether a and b differ at most in their generation.
func sameInventory(a, b Inventory) bool {
	a.Generation, b.Generation = 0, 0
	return proto.Equal(toWireInventory(a), toWireInventory(b))
}

func toStrings(ids []gpuai.DeviceID) []string {
	var out []string
	for _, id := range ids {
		out = append(out, string(id))
	}
	return out
}

func toIDs(ss []string) []gpuai.DeviceID {
	var out []gpuai.DeviceID
	for _, s := range ss {
		out = append(out, gpuai.DeviceID(s))
	}
	return out
}

// clip bounds and quotes what a driver said before it goes into a sentence.
func clip(s string) string {
	if len(s) > 120 {
		s = s[:120] + "…"
	}
	return fmt.Sprintf("%q", s)
}
