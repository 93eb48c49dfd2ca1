package wire

import "github.com/gpuai/gpuai"

// AppendNodeSpec appends what an agent says of its host.
func AppendNodeSpec(b []byte, s *gpuai.NodeSpec) []byte {
	b = AppendStr(b, string(s.ID))
	b = AppendStr(b, s.Zone)
	b = append(b, uint8(len(s.Labels)))
	for _, k := range gpuai.EnvNames(s.Labels) {
		b = AppendStr(AppendStr(b, k), s.Labels[k])
	}
	b = AppendStr(b, s.Address)
	b = appendI64(appendI64(b, int64(s.CPU)), int64(s.Memory))
	b = le.AppendUint16(le.AppendUint16(b, s.PortMin), s.PortCount)
	b = appendI64(b, int64(s.Price))
	b = AppendDevices(b, s.Devices)
	b = appendBool(b, s.Simulated)
	return AppendStr(b, s.Version)
}

// ReadNodeSpecFrom reads what an agent says of its host. What gpuai.NodeSpec's
// Validate says is not checked.
func ReadNodeSpecFrom(r *Reader) (gpuai.NodeSpec, error) {
	s := gpuai.NodeSpec{ID: gpuai.NodeID(r.Str()), Zone: r.Str()}
	if n := r.within(int64(r.U8()), 0, gpuai.MaxLabels); n > 0 && r.err == nil {
		s.Labels = make(map[string]string, n)
		last := ""
		for i := range n {
			k := r.Str()
			if i > 0 && k <= last {
				r.Fail("the labels are out of order")
			}
			s.Labels[k], last = r.Str(), k
		}
	}
	s.Address = r.Str()
	s.CPU, s.Memory = gpuai.MilliCPU(r.I64()), gpuai.Bytes(r.I64())
	s.PortMin, s.PortCount = r.U16(), r.U16()
	s.Price = gpuai.Micros(r.I64())
	var err error
	if s.Devices, err = ReadDevicesFrom(r); err != nil {
		return s, err
	}
	s.Simulated, s.Version = r.bool(), r.Str()
	return s, r.err
}

// AppendDevices appends a list of devices.
func AppendDevices(b []byte, ds []gpuai.Device) []byte {
	b = append(b, uint8(len(ds)))
	for i := range ds {
		d := &ds[i]
		b = AppendStr(AppendStr(AppendStr(b, string(d.ID)), d.Vendor), d.Model)
		b = appendI64(b, int64(d.Memory))
		b = AppendStr(append(b, uint8(d.Health)), d.HealthCode)
	}
	return b
}

// ReadDevicesFrom reads a list of devices.
func ReadDevicesFrom(r *Reader) ([]gpuai.Device, error) {
	n := r.within(int64(r.U8()), 0, gpuai.MaxGPUs)
	if r.err != nil || n == 0 {
		return nil, r.err
	}
	ds := make([]gpuai.Device, 0, n)
	for range n {
		d := gpuai.Device{ID: gpuai.DeviceID(r.Str()), Vendor: r.Str(), Model: r.Str(), Memory: gpuai.Bytes(r.I64())}
		d.Health = gpuai.DeviceHealth(r.within(int64(r.U8()), 0, int64(gpuai.DeviceQuarantined)))
		d.HealthCode = r.Str()
		if r.err != nil {
			return nil, r.err
		}
		ds = append(ds, d)
	}
	return ds, nil
}

// maxHeld bounds the leases of one registration: more than a node may have.
const maxHeld = 4_096

// AppendHeld appends the leases that an agent still runs.
func AppendHeld(b []byte, hs []gpuai.HeldLease) []byte {
	b = le.AppendUint16(b, uint16(len(hs)))
	for i := range hs {
		b = AppendStr(le.AppendUint64(b, uint64(hs[i].Lease)), hs[i].BootID)
	}
	return b
}

// ReadHeldFrom reads the leases that an agent still runs.
func ReadHeldFrom(r *Reader) ([]gpuai.HeldLease, error) {
	var hs []gpuai.HeldLease
	for range r.within(int64(r.U16()), 0, maxHeld) {
		hs = append(hs, gpuai.HeldLease{Lease: gpuai.Token(r.U64()), BootID: r.Str()})
		if r.err != nil {
			return nil, r.err
		}
	}
	return hs, r.err
}

// AppendReport appends a report.
func AppendReport(b []byte, p *gpuai.Report) []byte {
	b = le.AppendUint64(b, uint64(p.Lease))
	b = le.AppendUint32(b, p.Seq)
	b = le.AppendUint64(b, uint64(p.Incarnation))
	b = append(b, uint8(p.State))
	b = le.AppendUint32(b, uint32(p.ExitCode))
	b = AppendStr(b, p.Reason)
	b = append(b, uint8(len(p.Unclean)))
	for _, d := range p.Unclean {
		b = AppendStr(b, string(d))
	}
	return b
}

// ReadReportFrom reads a report.
func ReadReportFrom(r *Reader) (gpuai.Report, error) {
	p := gpuai.Report{Lease: gpuai.Token(r.U64()), Seq: r.U32(), Incarnation: gpuai.Incarnation(r.U64())}
	p.State = gpuai.ReportState(r.within(int64(r.U8()), 1, int64(gpuai.NumReportStates)-1))
	p.ExitCode = int32(r.U32())
	p.Reason = r.Str()
	if len(p.Reason) > gpuai.MaxReasonLen {
		r.Fail("the reason is too long")
	}
	for range r.within(int64(r.U8()), 0, gpuai.MaxGPUs) {
		p.Unclean = append(p.Unclean, gpuai.DeviceID(r.Str()))
	}
	return p, r.err
}

// AppendPolicy appends a policy.
func AppendPolicy(b []byte, p *gpuai.Policy) []byte {
	for _, d := range durationsOf(p) {
		b = appendI64(b, int64(*d))
	}
	for _, n := range numbersOf(p) {
		b = le.AppendUint32(b, *n)
	}
	for _, q := range prioritiesOf(p) {
		b = append(b, uint8(*q))
	}
	return b
}

// ReadPolicyFrom reads a policy. What its Validate says is not checked.
func ReadPolicyFrom(r *Reader) (gpuai.Policy, error) {
	var p gpuai.Policy
	for _, d := range durationsOf(&p) {
		*d = gpuai.Duration(r.I64())
	}
	for _, n := range numbersOf(&p) {
		*n = r.U32()
	}
	for _, q := range prioritiesOf(&p) {
		*q = gpuai.Priority(r.U8())
	}
	return p, r.err
}

func durationsOf(p *gpuai.Policy) [14]*gpuai.Duration {
	return [...]*gpuai.Duration{
		&p.TTLInference, &p.TTLTraining, &p.TTLFinetune, &p.TTLBatch, &p.Heartbeat, &p.Grace,
		&p.BeatEvery, &p.SuspectAfter, &p.KillBudget, &p.Slack, &p.ResultTTL, &p.BreakerWindow,
		&p.FlapWindow, &p.FlapBackoff,
	}
}

func numbersOf(p *gpuai.Policy) [5]*uint32 {
	return [...]*uint32{&p.RateBoundPPM, &p.BreakerMin, &p.BreakerPPM, &p.BreakerRatePPM, &p.FlapLimit}
}

func prioritiesOf(p *gpuai.Policy) [4]*gpuai.Priority {
	return [...]*gpuai.Priority{&p.PriorityInference, &p.PriorityTraining, &p.PriorityFinetune, &p.PriorityBatch}
}
