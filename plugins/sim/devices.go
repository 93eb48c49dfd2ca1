package sim

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// A device is one simulated device and its place in the configuration; a
// partition has its whole device's place.
type device struct {
	plugins.Device
	place uint32
}

// devices makes the devices of a configuration, in its order.
func (c *Config) devices() []device {
	sum := sha256.Sum256([]byte(c.Seed))
	var out []device
	place := uint32(0)
	for i := range c.Groups {
		g := &c.Groups[i]
		for range g.Count {
			id := gpuai.DeviceID(fmt.Sprintf("SIM-%x-%03d", sum[:6], place))
			out = append(out, g.split(id, place)...)
			place++
		}
	}
	return out
}

// split returns the whole device and its partitions.
func (g *Group) split(id gpuai.DeviceID, place uint32) []device {
	whole := device{place: place, Device: plugins.Device{
		ID: id, Vendor: g.Vendor, Kind: "gpu", Model: g.Model, Memory: g.Memory,
		Index: place, NUMANode: -1, Serial: "simulated-" + strings.ToLower(string(id)),
	}}
	if g.NUMANode != nil {
		whole.NUMANode = int32(*g.NUMANode)
	}
	out := []device{whole}
	for n := range g.Partitions {
		p := whole
		p.ID = gpuai.DeviceID(fmt.Sprintf("%s-%02d", id, n))
		p.Kind, p.Model, p.Memory = "partition", fmt.Sprintf("%s-1of%d", g.Model, g.Partitions), g.Memory/gpuai.Bytes(g.Partitions)
		p.Parent, p.Conflicts = id, []gpuai.DeviceID{id}
		out[0].Conflicts = append(out[0].Conflicts, p.ID)
		out = append(out, p)
	}
	return out
}

// links joins the whole devices of each group that has a link.
func (c *Config) links(ds []device) []plugins.Link {
	var out []plugins.Link
	first := uint32(0)
	for i := range c.Groups {
		g := &c.Groups[i]
		next := first + g.Count
		if g.Link != "" {
			out = append(out, g.mesh(wholes(ds, first, next))...)
		}
		first = next
	}
	return out
}

// wholes returns the IDs of the whole devices at the places first … next-1.
func wholes(ds []device, first, next uint32) []gpuai.DeviceID {
	var ids []gpuai.DeviceID
	for _, d := range ds {
		if d.Parent == "" && d.place >= first && d.place < next {
			ids = append(ids, d.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

func (g *Group) mesh(ids []gpuai.DeviceID) []plugins.Link {
	var out []plugins.Link
	width := max(g.LinkWidth, 1)
	if linkKinds[g.Link] == plugins.LinkPCIeSwitch {
		width = 0
	}
	for i, a := range ids {
		for _, b := range ids[i+1:] {
			out = append(out, plugins.Link{A: a, B: b, Kind: linkKinds[g.Link], Width: width})
		}
	}
	return out
}

// environment is what a task needs to find its devices: the simulated IDs, and
// the variables that programs of the vendors look at.
func environment(ds []device) map[string]string {
	env := map[string]string{}
	add := func(name string, id gpuai.DeviceID) {
		if env[name] != "" {
			env[name] += ","
		}
		env[name] += string(id)
	}
	for _, d := range ds {
		add(gpuai.EnvSimDevices, d.ID)
		switch d.Vendor {
		case "nvidia":
			add(gpuai.EnvCUDADevices, d.ID)
		case "amd":
			add(gpuai.EnvROCRDevices, d.ID)
		}
	}
	return env
}
