package sim

import (
	"cmp"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// poll is how often faults are looked at.
const poll = 20 * time.Millisecond

// active reports whether the fault is there, age after the process started.
func (f *Fault) active(age gpuai.Duration) bool {
	if f.OnFile != "" {
		_, err := os.Stat(f.OnFile)
		return err == nil
	}
	return age >= f.After && (f.For == 0 || age < f.After+f.For)
}

func (f *Fault) hits(place uint32) bool { return f.Device == nil || *f.Device == place }

func (f *Fault) health(id gpuai.DeviceID) plugins.Health {
	return plugins.Health{
		Device: id, State: healthStates[f.State], Code: cmp.Or(f.Code, "sim:fault"),
		Message: cmp.Or(f.Message, "simulated fault"), Action: healthActions[f.Action],
	}
}

// now returns the faults that are there.
func (d *Driver) now() []*Fault {
	age := gpuai.Duration(time.Since(d.started).Milliseconds())
	var out []*Fault
	for i := range d.config.Faults {
		if f := &d.config.Faults[i]; f.active(age) {
			out = append(out, f)
		}
	}
	return out
}

// play looks at the faults for as long as the process lives.
func (d *Driver) play() {
	for range time.Tick(poll) {
		d.step()
	}
}

// step crashes or hangs if it is time, and brings inventory and health up to date.
func (d *Driver) step() {
	faults := d.now()
	for _, f := range faults {
		switch f.Kind {
		case FaultCrash:
			d.trigger(f)
			d.log.Error("simulated crash")
			os.Exit(3)
		case FaultHang:
			d.trigger(f)
			d.log.Error("simulated hang")
			unix.Kill(os.Getpid(), unix.SIGSTOP)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.update(faults)
}

// trigger removes the file that triggered a fault, so that it happens once.
func (d *Driver) trigger(f *Fault) {
	if f.OnFile == "" || f.Repeat {
		return
	}
	if err := os.Remove(f.OnFile); err != nil {
		d.log.Error("the fault will repeat: its file cannot be removed", "err", err)
	}
}
