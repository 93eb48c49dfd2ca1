package amd

import (
	"cmp"
	"fmt"

	"github.com/gpuai/gpuai/plugins"
)

// Health codes of this driver. Those of RAS and heat end in the block or sensor.
const (
	codeGone     = "amd:gone"         // the GPU is not on the PCI bus any more
	codeUnbound  = "amd:unbound"      // it is not bound to amdgpu any more
	codeNoKFD    = "amd:no-kfd"       // KFD does not list it any more
	codeNoRender = "amd:no-render"    // its renderD is not in /dev
	codeOffBus   = "amd:off-bus"      // it does not answer on the PCI bus
	codeStuck    = "amd:stuck"        // the kernel does not answer for it
	codeUnclean  = "amd:unclean"      // a process of an ended lease still has it
	codeForeign  = "amd:in-use"       // a process that no lease has started uses it
	codeRAS      = "ras:ue:"          // uncorrectable errors of a block
	codeBadPage  = "ras:bad-page"     // a bad page of memory could not be retired
	codePending  = "ras:page-pending" // a bad page is to be retired
	codeWorn     = "ras:worn"         // more pages are retired than is usual
	codeHeat     = "thermal:"         // a sensor is at its limit
)

// pageCover is the memory for one retired page at the rate that the kernel calls
// typical (RAS_BAD_PAGE_COVER); more pages than that are too many.
const pageCover = 100 << 20

// coolDown is how far below its limit a sensor must be, in millidegrees, for the
// device to be well again.
const coolDown = 5_000

// A card is what one GPU says of itself: the same for all of its partitions.
type card struct {
	offBus  bool
	memory  uint64 // bytes of all of it; 0 is not known
	ras     []rasCount
	pages   badPages
	sensors []sensor
}

// card reads what a function's health is judged by.
func (t tree) card(f *function) card {
	c := card{offBus: t.offBus(f)}
	if c.offBus {
		return c
	}
	c.memory, _ = t.number(f.dir(), "mem_info_vram_total")
	c.ras, c.pages, c.sensors = t.rasCounts(f), t.badPages(f), t.sensors(f)
	return c
}

// health judges a device by its card. was is its health until now.
func (t tree) health(g *gpu, c card, was plugins.Health) plugins.Health {
	h := plugins.Health{Device: g.ID, State: plugins.HealthOK}
	sick := func(state plugins.HealthState, code string, action plugins.HealthAction, format string, args ...any) {
		if state > h.State { // the worst counts, of equals the first
			h.State, h.Code, h.Action, h.Message = state, code, action, fmt.Sprintf(format, args...)
		}
	}
	if c.offBus {
		sick(plugins.HealthLost, codeOffBus, plugins.ActionRebootNode, "the GPU %s does not answer on the PCI bus", g.PCIBusID)
	}
	if !t.exists(g.renderNode()) {
		sick(plugins.HealthLost, codeNoRender, plugins.ActionRebootNode, "/%s is not there", g.renderNode())
	}
	for _, r := range c.ras {
		if r.uncorrected > 0 {
			sick(plugins.HealthUnhealthy, codeRAS+r.block, plugins.ActionRebootNode,
				"%d uncorrectable errors in %s since amdgpu was loaded", r.uncorrected, r.block)
		}
	}
	judgePages(c, sick)
	for _, s := range c.sensors {
		judgeHeat(s, was, sick)
	}
	return h
}

// A verdict adds one finding to a device's health.
type verdict func(state plugins.HealthState, code string, action plugins.HealthAction, format string, args ...any)

func judgePages(c card, sick verdict) {
	usual := max(c.memory/pageCover, 1)
	switch p := c.pages; {
	case p.failed > 0:
		sick(plugins.HealthUnhealthy, codeBadPage, plugins.ActionResetDevice, "%d bad pages of memory could not be retired", p.failed)
	case c.memory > 0 && p.retired > usual:
		sick(plugins.HealthUnhealthy, codeWorn, plugins.ActionReplace, "%d pages of memory are retired, usual are at most %d", p.retired, usual)
	case p.pending > 0:
		sick(plugins.HealthDegraded, codePending, plugins.ActionWarn, "%d bad pages of memory wait to be retired", p.pending)
	}
}

func judgeHeat(s sensor, was plugins.Health, sick verdict) {
	code := codeHeat + s.label
	less := uint64(0)
	if was.Code == code {
		less = coolDown
	}
	emergency := was.State == plugins.HealthUnhealthy
	at := func(limit, less uint64) bool { return limit > less && s.now >= limit-less }
	switch {
	case at(s.emergency, less*uint64(btoi(emergency))):
		sick(plugins.HealthUnhealthy, code, plugins.ActionWarn, "%s is at %d °C, it switches off at %d °C", s.label, s.now/1000, s.emergency/1000)
	case at(s.critical, less):
		sick(plugins.HealthDegraded, code, plugins.ActionWarn, "%s is at %d °C, it slows down from %d °C on", s.label, s.now/1000, s.critical/1000)
	}
}

// lost says why a device that was there is there no longer.
func lost(g *gpu, now finding) plugins.Health {
	h := plugins.Health{Device: g.ID, State: plugins.HealthLost, Action: plugins.ActionRebootNode}
	switch f := now.fns[g.PCIBusID]; {
	case f == nil:
		h.Code, h.Message = codeGone, fmt.Sprintf("the GPU %s is not on the PCI bus any more", g.PCIBusID)
	case f.driver != kernelBound:
		h.Code, h.Action = codeUnbound, plugins.ActionWarn
		h.Message = fmt.Sprintf("the GPU %s is bound to %q, not to amdgpu", g.PCIBusID, f.driver)
	default:
		h.Code, h.Message = codeNoKFD, cmp.Or(now.why, fmt.Sprintf("KFD does not list the GPU %s any more", g.PCIBusID))
	}
	return h
}
