package plugins

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/gpuai/gpuai"
	pb "github.com/gpuai/gpuai/plugins/proto"
)

// fill sets every field of v to something that is not zero, so that a field
// that the wire form forgets shows.
func fill(t *testing.T, v reflect.Value, n *int64) {
	*n++
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(t, v.Index(0), n)
		fill(t, v.Index(1), n)
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(t, key, n)
		fill(t, value, n)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), n)
	case reflect.String:
		v.SetString(fmt.Sprint("s", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Float64:
		v.SetFloat(float64(*n) / 4)
	case reflect.Int32, reflect.Int64:
		v.SetInt(*n)
	case reflect.Uint8, reflect.Uint16:
		v.SetUint(uint64(1 + *n%4))
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n))
	default:
		t.Fatalf("fill does not know %s", v.Kind())
	}
}

func filled[T any](t *testing.T) T {
	var v T
	n := int64(0)
	fill(t, reflect.ValueOf(&v).Elem(), &n)
	return v
}

// over sends a message over the wire.
func over[M proto.Message](t *testing.T, m, into M) M {
	t.Helper()
	src, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(src, into); err != nil {
		t.Fatal(err)
	}
	return into
}

func TestWireKeepsEveryField(t *testing.T) {
	same := func(name string, want, got any, err error) {
		t.Helper()
		if err != nil || !reflect.DeepEqual(want, got) {
			t.Errorf("%s: sent %+v, received %+v, %v", name, want, got, err)
		}
	}
	info := filled[Info](t)
	gotInfo, err := fromWireInfo(over(t, toWireInfo(info), new(pb.InfoResponse)))
	same("info", info, gotInfo, err)

	v := filled[Inventory](t)
	v.Err = ""
	a, b := &v.Devices[0], &v.Devices[1]
	a.Conflicts, b.Conflicts = []gpuai.DeviceID{b.ID}, []gpuai.DeviceID{a.ID}
	v.Links = v.Links[:1]
	v.Links[0].A, v.Links[0].B = min(a.ID, b.ID), max(a.ID, b.ID)
	gotV, err := fromWireInventory(over(t, toWireInventory(v), new(pb.FingerprintResponse)))
	same("inventory", v, gotV, err)

	hs := filled[[]Health](t)
	gotHs, err := fromWireHealth(over(t, toWireHealth(hs), new(pb.HealthResponse)))
	same("health", hs, gotHs, err)

	r := Reservation{ID: "7", Devices: []gpuai.DeviceID{"a"}, Share: 250, Incarnation: 9}
	gotR, err := fromWireReservation(over(t, toWireReservation(r), new(pb.ReserveRequest)))
	same("reservation", r, gotR, err)

	g := filled[Grant](t)
	same("grant", g, fromWireGrant(over(t, toWireGrant(g), new(pb.ReserveResponse))), nil)

	s := filled[Stats](t)
	same("stats", s, fromWireStats(over(t, toWireStats(s), new(pb.DeviceStats))), nil)
}

// Absent is not 0, in both directions.
func TestWireKeepsAbsentApartFromZero(t *testing.T) {
	in := Stats{Device: "a", GPUUtilization: new(float64(0)), ECCUncorrected: new(uint64(0))}
	out := fromWireStats(over(t, toWireStats(in), new(pb.DeviceStats)))
	if !reflect.DeepEqual(in, out) {
		t.Errorf("sent %+v, received %+v", in, out)
	}
	if out.PowerWatts != nil || out.ECCCorrected != nil || out.GPUUtilization == nil || out.ECCUncorrected == nil {
		t.Errorf("received %+v", out)
	}
}

func TestInventoryCheck(t *testing.T) {
	good := func() Inventory {
		return Inventory{
			Devices: []Device{
				{ID: "a", Vendor: "v", Model: "m", Conflicts: []gpuai.DeviceID{"b"}},
				{ID: "b", Vendor: "v", Model: "m", Conflicts: []gpuai.DeviceID{"a"}},
				{ID: "c", Vendor: "v", Model: "m"},
			},
			Links: []Link{{A: "a", B: "b", Kind: LinkNVLink}, {A: "a", B: "c", Kind: LinkNVLink}},
		}
	}
	for _, c := range []struct {
		name  string
		spoil func(*Inventory)
		want  string // "" when it is good
	}{
		{"good", func(*Inventory) {}, ""},
		{"empty", func(v *Inventory) { *v = Inventory{} }, ""},
		{"only an error", func(v *Inventory) { *v = Inventory{Err: "no library"} }, ""},
		{"devices and error", func(v *Inventory) { v.Err = "no library" }, "devices and an error"},
		{"no ID", func(v *Inventory) { v.Devices[2].ID = ""; v.Links = nil }, "/devices/0/id must be 1 to 256 bytes long"},
		{"no vendor", func(v *Inventory) { v.Devices[2].Vendor = "" }, "/devices/2/vendor"},
		{"long model", func(v *Inventory) { v.Devices[2].Model = strings.Repeat("x", 257) }, "/devices/2/model"},
		{"twice", func(v *Inventory) { v.Devices[2].ID = "a" }, "a device twice"},
		{"one-sided conflict", func(v *Inventory) { v.Devices[1].Conflicts = nil }, "does not say the same"},
		{"conflict with itself", func(v *Inventory) { v.Devices[2].Conflicts = []gpuai.DeviceID{"c"} }, "does not say the same"},
		{"conflict with nobody", func(v *Inventory) { v.Devices[2].Conflicts = []gpuai.DeviceID{"z"} }, "does not say the same"},
		{"link to nobody", func(v *Inventory) { v.Links[1].B = "z" }, "not between two known devices"},
		{"link backwards", func(v *Inventory) { v.Links[0].A, v.Links[0].B = "b", "a" }, "in order"},
		{"link twice", func(v *Inventory) { v.Links[1] = v.Links[0] }, "one comes twice"},
		{"links unsorted", func(v *Inventory) { v.Links[0], v.Links[1] = v.Links[1], v.Links[0] }, "not sorted"},
	} {
		v := good()
		c.spoil(&v)
		err := v.check()
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, ErrGarbage) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestWireRefusesGarbage(t *testing.T) {
	for name, m := range map[string]*pb.FingerprintResponse{
		"memory":    {Devices: []*pb.Device{{Id: "a", Vendor: "v", Model: "m", MemoryBytes: 1 << 63}}},
		"link kind": {Links: []*pb.Link{{A: "a", B: "b", Kind: 77}}},
		"no kind":   {Links: []*pb.Link{{A: "a", B: "b"}}},
		"nil":       {Devices: []*pb.Device{nil}},
	} {
		if _, err := fromWireInventory(m); !errors.Is(err, ErrGarbage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, d := range map[string]*pb.DeviceHealth{
		"state":    {DeviceId: "a", State: 9},
		"negative": {DeviceId: "a", State: -1},
		"action":   {DeviceId: "a", Action: 9},
		"code":     {DeviceId: "a", Code: strings.Repeat("x", 257)},
		"message":  {DeviceId: "a", Message: strings.Repeat("x", 2000)},
	} {
		if _, err := fromWireHealth(&pb.HealthResponse{Devices: []*pb.DeviceHealth{d}}); !errors.Is(err, ErrGarbage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r := &pb.ReserveRequest{ReservationId: "1", DeviceIds: []string{"a"}, ShareMilli: 1<<16 + 1}
	if _, err := fromWireReservation(r); !errors.Is(err, ErrInvalid) {
		t.Errorf("a share that does not fit: %v", err)
	}
}

func TestErrorsCrossTheBorder(t *testing.T) {
	for _, e := range errorCodes {
		said := fmt.Errorf("%w: GPU-1", e.err)
		got := fromStatus("reserving", toStatus(said))
		if !errors.Is(got, e.err) {
			t.Errorf("%v became %v", said, got)
		}
		if e.err != ErrDown && e.err != ErrTimeout && got.Error() != "reserving: "+said.Error() {
			t.Errorf("%v became %v", said, got)
		}
	}
	if err := fromStatus("x", toStatus(nil)); err != nil {
		t.Errorf("no error became %v", err)
	}
	if err := fromStatus("x", toStatus(fmt.Errorf("a: %w", context.Canceled))); !errors.Is(err, context.Canceled) {
		t.Errorf("the caller's end became %v", err)
	}
	if err := fromStatus("x", toStatus(context.DeadlineExceeded)); !errors.Is(err, ErrTimeout) {
		t.Errorf("the deadline became %v", err)
	}
	if s := status.Convert(toStatus(errors.New("bug"))); s.Code() != codes.Internal {
		t.Errorf("an unknown error became %s", s.Code())
	}
}

func TestReservationNormal(t *testing.T) {
	ids := func(s string) []gpuai.DeviceID { return toIDs(strings.Fields(s)) }
	got, err := Reservation{ID: "1", Devices: ids("c a b")}.Normal()
	if want := (Reservation{ID: "1", Devices: ids("a b c"), Share: 1000}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	for name, r := range map[string]Reservation{
		"no ID":        {Devices: ids("a")},
		"long ID":      {ID: strings.Repeat("x", 257), Devices: ids("a")},
		"no device":    {ID: "1"},
		"twice":        {ID: "1", Devices: ids("a a")},
		"too much":     {ID: "1", Devices: ids("a"), Share: 1001},
		"share of two": {ID: "1", Devices: ids("a b"), Share: 500},
		"too many":     {ID: "1", Devices: make([]gpuai.DeviceID, gpuai.MaxGPUs+1)},
	} {
		if _, err := r.Normal(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
