package wire_test

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm/wire"
)

func sampleNode() *gpuai.NodeSpec {
	return &gpuai.NodeSpec{
		ID: "node-1", Zone: "z1", Rack: "r1", NVLinkDomain: "nv-7", Labels: map[string]string{"rack": "r1", "gen": "4", "a.b/c": ""}, Address: "10.0.0.1",
		CPU: 64_000, Memory: 512 << 30, PortMin: 29_500, PortCount: 16, Price: 2_500_000, Simulated: true, Version: "0.1.0",
		Devices: []gpuai.Device{
			{ID: "GPU-0", Vendor: "nvidia", Model: "H100", Memory: 80 << 30},
			{ID: "GPU-1", Vendor: "nvidia", Model: "H100", Memory: 80 << 30, Health: gpuai.DeviceUnhealthy, HealthCode: "xid:79"},
		},
	}
}

func sampleReport() *gpuai.Report {
	return &gpuai.Report{
		Lease: gpuai.MakeToken(1, 99, 3), Seq: 2, Incarnation: 5, State: gpuai.ReportUnkillable, ExitCode: -9,
		Reason: "the task outlived its kill", Unclean: []gpuai.DeviceID{"GPU-0", "GPU-1"},
	}
}

func sampleHeld() []gpuai.HeldLease {
	return []gpuai.HeldLease{{Lease: 1, BootID: "b1"}, {Lease: 1<<64 - 1, BootID: ""}}
}

// A kind is one kind of value: how it is read and written again.
type kind struct {
	name    string
	samples [][]byte
	rewrite func(r *wire.Reader) ([]byte, error)
}

func kinds() []kind {
	policy, empty := gpuai.DefaultPolicy(), gpuai.Policy{}
	return []kind{
		{"node", [][]byte{wire.AppendNodeSpec(nil, sampleNode()), wire.AppendNodeSpec(nil, &gpuai.NodeSpec{}), wire.AppendNodeSpec(nil, &gpuai.NodeSpec{Rack: "r"})},
			func(r *wire.Reader) ([]byte, error) {
				v, err := wire.ReadNodeSpecFrom(r)
				return wire.AppendNodeSpec(nil, &v), err
			}},
		{"devices", [][]byte{wire.AppendDevices(nil, sampleNode().Devices), wire.AppendDevices(nil, nil)},
			func(r *wire.Reader) ([]byte, error) {
				v, err := wire.ReadDevicesFrom(r)
				return wire.AppendDevices(nil, v), err
			}},
		{"held", [][]byte{wire.AppendHeld(nil, sampleHeld()), wire.AppendHeld(nil, nil)},
			func(r *wire.Reader) ([]byte, error) {
				v, err := wire.ReadHeldFrom(r)
				return wire.AppendHeld(nil, v), err
			}},
		{"report", [][]byte{wire.AppendReport(nil, sampleReport()), wire.AppendReport(nil, &gpuai.Report{State: gpuai.ReportDone}),
			wire.AppendReport(nil, &gpuai.Report{State: gpuai.ReportFailed, EndCode: gpuai.EndImagePull, Reason: "no such image"}),
			wire.AppendReport(nil, &gpuai.Report{State: gpuai.ReportPrepared, Mesh: &gpuai.MeshPoint{Key: gpuai.MeshKey{7, 31: 9}, Port: 51820}}),
			wire.AppendReport(nil, &gpuai.Report{State: gpuai.ReportResolved, Image: "sha256:00"})},
			func(r *wire.Reader) ([]byte, error) {
				v, err := wire.ReadReportFrom(r)
				return wire.AppendReport(nil, &v), err
			}},
		{"policy", [][]byte{wire.AppendPolicy(nil, &policy), wire.AppendPolicy(nil, &empty)},
			func(r *wire.Reader) ([]byte, error) {
				v, err := wire.ReadPolicyFrom(r)
				return wire.AppendPolicy(nil, &v), err
			}},
	}
}

func appendPolicy(b []byte, p *gpuai.Policy) []byte {
	return wire.AppendSettings(wire.AppendPolicy(b, p), p)
}

func readPolicy(r *wire.Reader) (gpuai.Policy, error) {
	p, err := wire.ReadPolicyFrom(r)
	if err == nil {
		_, err = wire.ReadSettings(r, &p)
	}
	return p, err
}

// check asserts what holds of any bytes: they are refused, or what was read is
// written again as it was.
func (k *kind) check(t *testing.T, b []byte) {
	t.Helper()
	r := wire.NewReader(b)
	again, err := k.rewrite(r)
	if err != r.Err() {
		t.Fatalf("%s: %x: error %v, the reader's %v", k.name, b, err, r.Err())
	}
	if read := b[:len(b)-len(r.Rest())]; err == nil && !bytes.Equal(read, again) {
		t.Fatalf("%s: %x was written again as %x", k.name, read, again)
	}
}

func TestEdgeRoundTrips(t *testing.T) {
	for _, k := range kinds() {
		for _, b := range k.samples {
			r := wire.NewReader(append(slices.Clone(b), "rest"...))
			again, err := k.rewrite(r)
			if err != nil || !bytes.Equal(again, b) || string(r.Rest()) != "rest" {
				t.Errorf("%s: %x read and written: %x, %v", k.name, b, again, err)
			}
			for n := range b {
				if _, err := k.rewrite(wire.NewReader(b[:n])); err == nil {
					t.Errorf("%s: %d of %d bytes were taken", k.name, n, len(b))
				}
			}
			for i := range b {
				for _, x := range []byte{0, 1, 0x7f, 0x80, 0xff} {
					bad := slices.Clone(b)
					bad[i] = x
					k.check(t, bad)
				}
			}
		}
	}
}

func TestEdgeValuesSurvive(t *testing.T) {
	r := wire.NewReader(wire.AppendNodeSpec(nil, sampleNode()))
	if got, err := wire.ReadNodeSpecFrom(r); err != nil || !reflect.DeepEqual(&got, sampleNode()) {
		t.Errorf("node: %+v, %v", got, err)
	}
	r = wire.NewReader(wire.AppendReport(nil, sampleReport()))
	if got, err := wire.ReadReportFrom(r); err != nil || !reflect.DeepEqual(&got, sampleReport()) {
		t.Errorf("report: %+v, %v", got, err)
	}
	r = wire.NewReader(wire.AppendHeld(nil, sampleHeld()))
	if got, err := wire.ReadHeldFrom(r); err != nil || !reflect.DeepEqual(got, sampleHeld()) {
		t.Errorf("held: %+v, %v", got, err)
	}
	policy := distinct(t)
	r = wire.NewReader(appendPolicy(nil, &policy))
	if got, err := readPolicy(r); err != nil || got != policy || r.Done() != nil {
		t.Errorf("policy: %+v, %v", got, err)
	}
}

// distinct returns a policy each of whose fields has a value of its own, so that
// a field that the codec forgot or confused shows.
func distinct(t testing.TB) gpuai.Policy {
	t.Helper()
	var p gpuai.Policy
	v := reflect.ValueOf(&p).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.Int64:
			f.SetInt(int64(i) + 1)
		case reflect.Uint8, reflect.Uint32:
			f.SetUint(uint64(i) + 1)
		case reflect.Bool:
			f.SetBool(true)
		default:
			t.Fatalf("a policy has a field of kind %s: teach the codec and this test", f.Kind())
		}
	}
	return p
}

func TestEdgeLimits(t *testing.T) {
	long := strings.Repeat("x", gpuai.MaxTextLen+1)
	labels := map[string]string{}
	for i := range 300 {
		labels[fmt.Sprintf("l%03d", i)] = ""
	}
	node := func(change func(*gpuai.NodeSpec)) []byte {
		s := sampleNode()
		change(s)
		return wire.AppendNodeSpec(nil, s)
	}
	report := func(change func(*gpuai.Report)) []byte {
		p := sampleReport()
		change(p)
		return wire.AppendReport(nil, p)
	}
	by := map[string]kind{}
	for _, k := range kinds() {
		by[k.name] = k
	}
	for _, c := range []struct {
		kind, what string
		data       []byte
	}{
		{"node", "labels", node(func(s *gpuai.NodeSpec) { s.Labels = labels })},
		{"node", "long id", node(func(s *gpuai.NodeSpec) { s.ID = gpuai.NodeID(long) })},
		{"node", "long label", node(func(s *gpuai.NodeSpec) { s.Labels = map[string]string{"a": long} })},
		{"node", "long address", node(func(s *gpuai.NodeSpec) { s.Address = long })},
		{"node", "long version", node(func(s *gpuai.NodeSpec) { s.Version = long })},
		{"node", "65 devices", node(func(s *gpuai.NodeSpec) { s.Devices = make([]gpuai.Device, 65) })},
		{"devices", "256 devices", wire.AppendDevices(nil, make([]gpuai.Device, 256))},
		{"devices", "long id", wire.AppendDevices(nil, []gpuai.Device{{ID: gpuai.DeviceID(long)}})},
		{"devices", "health", wire.AppendDevices(nil, []gpuai.Device{{Health: gpuai.DeviceQuarantined + 1}})},
		{"held", "leases", wire.AppendHeld(nil, make([]gpuai.HeldLease, 4_097))},
		{"held", "leases beyond u16", wire.AppendHeld(nil, make([]gpuai.HeldLease, 1<<16))},
		{"held", "long boot id", wire.AppendHeld(nil, []gpuai.HeldLease{{BootID: long}})},
		{"report", "no state", report(func(p *gpuai.Report) { p.State = 0 })},
		{"report", "state", report(func(p *gpuai.Report) { p.State = gpuai.ReportState(gpuai.NumReportStates) })},
		{"report", "long reason", report(func(p *gpuai.Report) { p.Reason = strings.Repeat("r", gpuai.MaxReasonLen+1) })},
		{"report", "unclean devices", report(func(p *gpuai.Report) { p.Unclean = make([]gpuai.DeviceID, 256) })},
	} {
		if _, err := by[c.kind].rewrite(wire.NewReader(c.data)); err == nil {
			t.Errorf("%s: %s: taken", c.kind, c.what)
		}
	}
}

func fuzzKind(f *testing.F, name string) {
	for _, k := range kinds() {
		if k.name == name {
			for _, b := range k.samples {
				f.Add(b)
			}
			f.Fuzz(k.check)
		}
	}
}

func FuzzNodeSpec(f *testing.F) { fuzzKind(f, "node") }
func FuzzDevices(f *testing.F)  { fuzzKind(f, "devices") }
func FuzzHeld(f *testing.F)     { fuzzKind(f, "held") }
func FuzzReport(f *testing.F)   { fuzzKind(f, "report") }

// FuzzSettings holds that a policy's settings have one form.
func FuzzSettings(f *testing.F) {
	d, p := gpuai.DefaultPolicy(), distinct(f)
	f.Add(wire.AppendSettings(nil, &d))
	f.Add(wire.AppendSettings(nil, &p))
	f.Fuzz(func(t *testing.T, b []byte) {
		var p gpuai.Policy
		r := wire.NewReader(b)
		extended, err := wire.ReadSettings(r, &p)
		if err != nil {
			return
		}
		rest := len(r.Rest())
		if again := wire.AppendSettings(nil, &p); extended != (len(b) > 0) || !bytes.Equal(again, b[:len(b)-rest]) {
			t.Fatalf("%x was written again as %x", b, again)
		}
	})
}

// What came later than the first settings is written only up to the last that is
// off its default, so that policies without it keep their bytes.
func TestLaterSettings(t *testing.T) {
	aged, denied := gpuai.DefaultPolicy(), gpuai.DefaultPolicy()
	aged.AgingEvery, denied.Exec = gpuai.Hour, gpuai.ExecDeny
	for n, p := range map[int]*gpuai.Policy{11: &aged, 12: &denied} {
		b := wire.AppendSettings(nil, p)
		got := gpuai.DefaultPolicy()
		if _, err := wire.ReadSettings(wire.NewReader(b), &got); err != nil || got != *p || len(b) != 8*n {
			t.Errorf("%d bytes, want %d settings: %v, %+v", len(b), n, err, got)
		}
	}
	b := append(wire.AppendSettings(nil, &aged), make([]byte, 8)...)
	if _, err := wire.ReadSettings(wire.NewReader(b), &aged); err == nil {
		t.Error("a default that need not be written is read")
	}
}

func FuzzPolicy(f *testing.F) { fuzzKind(f, "policy") }

// The IDs are those that the whole spec has, for any mask and any text.
func TestReadDeviceIDs(t *testing.T) {
	s := sampleNode()
	for len(s.Devices) < gpuai.MaxGPUs {
		s.Devices = append(s.Devices, gpuai.Device{ID: gpuai.DeviceID(fmt.Sprintf("GPU-%d", len(s.Devices))), Vendor: "v", Model: "m"})
	}
	b := wire.AppendNodeSpec(nil, s)
	for _, mask := range []uint64{0, 1, 2, 3, 1 << 63, 0xaaaa_aaaa_5555_5555, 1<<64 - 1} {
		var want []gpuai.DeviceID
		for i := range s.Devices {
			if mask>>i&1 != 0 {
				want = append(want, s.Devices[i].ID)
			}
		}
		if got, err := wire.ReadDeviceIDs(wire.NewReader(b), mask); err != nil || !slices.Equal(got, want) {
			t.Errorf("mask %x: %q, %v", mask, got, err)
		}
	}
	two := wire.AppendNodeSpec(nil, sampleNode())
	if got, err := wire.ReadDeviceIDs(wire.NewReader(two), 1<<5|2); err != nil || len(got) != 1 || got[0] != "GPU-1" {
		t.Errorf("a device that is not there: %q, %v", got, err)
	}
	for i := range two[:bytes.Index(two, []byte("xid"))] {
		if _, err := wire.ReadDeviceIDs(wire.NewReader(two[:i]), 1); err == nil {
			t.Errorf("the first %d bytes pass", i)
		}
	}
}

// A brief reading has what a node has, and leaves out who it is; the texts of
// the nodes before it do not show in it.
func TestBriefNodeSpec(t *testing.T) {
	var b wire.Brief
	for i := range 50 {
		s := gpuai.NodeSpec{
			ID: gpuai.NodeID(fmt.Sprint("n", i)), Zone: fmt.Sprint("zone-", i%7), Address: "10.0.0.1", Version: "1",
			Labels: map[string]string{"disk": fmt.Sprint("d", i%3)}, CPU: gpuai.MilliCPU(i), Memory: 9, PortMin: 1, PortCount: 2, Price: 3,
		}
		for d := range i % 9 {
			s.Devices = append(s.Devices, gpuai.Device{
				ID: gpuai.DeviceID(fmt.Sprint("gpu", d)), Vendor: "v", Model: fmt.Sprint("m", (i+d)%5), Memory: gpuai.Bytes(d),
				Health: gpuai.DeviceHealth(d % 2), HealthCode: "c",
			})
		}
		raw := wire.AppendNodeSpec(nil, &s)
		whole, err := wire.ReadNodeSpecFrom(wire.NewReader(raw))
		if err != nil || !reflect.DeepEqual(whole, s) {
			t.Fatalf("read whole: %+v, %v; want %+v", whole, err, s)
		}
		got, err := b.ReadNodeSpec(wire.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		s.ID, s.Address, s.Version = "", "", ""
		for d := range s.Devices {
			s.Devices[d].ID, s.Devices[d].HealthCode = "", ""
		}
		if !reflect.DeepEqual(got, s) {
			t.Fatalf("read briefly: %+v, want %+v", got, s)
		}
	}
}
