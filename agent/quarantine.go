package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gpuai/gpuai"
)

// Dirt is what a release left: devices that are not clean, and why.
type dirt struct {
	devices []gpuai.DeviceID
	why     string
	again   *driver // that did not answer, and is to be asked again; nil else
}

// namedIn returns those of ids that a driver's text names, or all when it names
// none: which of a lease's devices is not clean, the driver says in words.
func namedIn(detail string, ids []gpuai.DeviceID) []gpuai.DeviceID {
	if named := mentioned(detail, ids); len(named) > 0 {
		return named
	}
	return ids
}

// mentioned returns those of ids that stand in a text as a word.
func mentioned(text string, ids []gpuai.DeviceID) (out []gpuai.DeviceID) {
	word := func(r rune) bool {
		return r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune("-_./:", r)
	}
	words := map[string]bool{}
	for _, w := range strings.FieldsFunc(text, func(r rune) bool { return !word(r) }) {
		words[strings.TrimRight(w, ".:")] = true
	}
	for _, id := range ids {
		if words[string(id)] {
			out = append(out, id)
		}
	}
	return out
}

// healthCode is what the region is told of a device that is out of use: a code
// and, behind it, why.
func healthCode(code, why string) string {
	s := cmp.Or(code, codeUnclean)
	if why != "" {
		s += ": " + why
	}
	s = strings.Map(func(r rune) rune { // a driver's text, on a terminal
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	return strings.ToValidUTF8(s[:min(len(s), gpuai.MaxTextLen)], "")
}

// soil takes devices out of use that a release left unclean, and asks a driver
// again that did not answer.
func (w *worker) soil(all []dirt) {
	for _, d := range all {
		w.a.log.Warn("devices are out of use until their driver or operator says that they are clean, or the host reboots",
			"devices", d.devices, "why", d.why, "lease", w.lease.ID, "operator", "gpuai agent clean")
		w.a.taint(d.devices, d.why)
		if d.again != nil {
			go w.a.releaseAgain(*d.again, w.lease.ID.String(), d)
		}
	}
}

// Between two questions to a driver that does not answer a release.
const againMin, againMax = 5 * time.Second, time.Minute

// releaseAgain asks a driver until it answers, and takes the devices back into
// use if they are clean. What it held it holds until then.
func (a *Agent) releaseAgain(d driver, lease string, left dirt) {
	for wait := cmp.Or(a.cfg.testAgain, againMin); ; wait = min(2*wait, againMax) {
		again := time.NewTimer(wait)
		select {
		case <-again.C:
		case <-a.ended:
			again.Stop()
			return
		}
		clean, detail, err := d.Release(context.Background(), lease, true)
		switch {
		case err != nil:
			continue
		case !clean:
			a.log.Warn("devices are not clean", "lease", lease, "detail", detail)
		default:
			a.post(func() { a.untaint(left.devices, left.why) })
		}
		return
	}
}

// untaint takes devices back into use that are out of it for why.
func (a *Agent) untaint(ids []gpuai.DeviceID, why string) {
	n := len(a.devices.unclean)
	for _, id := range ids {
		if a.devices.unclean[id] == why {
			delete(a.devices.unclean, id)
			delete(a.devices.bad, id)
		}
	}
	if len(a.devices.unclean) < n {
		a.log.Info("devices are clean, and in use again", "devices", ids)
		a.saveTaints()
	}
}

// orphans are the devices that a driver's text names, of an old lease that the
// journal does not know any more.
func (a *Agent) orphans(d driver, detail string) {
	var ids []gpuai.DeviceID
	for _, dev := range d.Inventory().Devices {
		ids = append(ids, dev.ID)
	}
	for _, id := range mentioned(detail, ids) {
		if a.devices.unclean[id] == "" {
			a.devices.unclean[id] = detail
		}
	}
}

// An operator says that devices are clean by files in a directory, so that it
// takes root on the node, and no more than the node.
const (
	cleanDir  = "clean"
	answerExt = ".answer"
	cleanPoll = 500 * time.Millisecond
)

// Clean asks the agent of a data directory to take a device back into use that it
// took out of it, and waits for its answer until ctx ends. For an operator who has
// seen to the device. An agent that does not run takes it up when it starts.
func Clean(ctx context.Context, dataDir string, id gpuai.DeviceID) error {
	if id == "" {
		return errors.New("name a device, as \"gpuai node devices\" does")
	}
	if _, err := os.Stat(filepath.Join(dataDir, journalFile)); err != nil {
		return fmt.Errorf("%s is no agent's data directory: %w", dataDir, err)
	}
	name := filepath.Join(dataDir, cleanDir, url.PathEscape(string(id)))
	err := os.MkdirAll(filepath.Dir(name), 0o700)
	if err == nil {
		_ = os.Remove(name + answerExt) // of another time
		err = os.WriteFile(name, nil, 0o600)
	}
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	for {
		b, err := os.ReadFile(name + answerExt)
		switch {
		case err == nil && len(b) > 0:
			return errors.Join(errors.New(string(b)), os.Remove(name+answerExt))
		case err == nil:
			return os.Remove(name + answerExt)
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("the agent's answer: %w", err)
		}
		if !pause(ctx, cleanPoll/5) {
			return fmt.Errorf("the agent of %s does not answer: it does so when it runs", dataDir)
		}
	}
}

// watchClean does what operators ask for with Clean.
func (a *Agent) watchClean(ctx context.Context) {
	for ok := true; ok; ok = pause(ctx, cleanPoll) {
		entries, err := os.ReadDir(a.path(cleanDir))
		if err != nil {
			continue // it is made by the first who asks
		}
		for _, e := range entries {
			id, err := url.PathUnescape(e.Name())
			if err != nil || strings.HasSuffix(e.Name(), answerExt) {
				continue
			}
			a.post(func() { a.clean(gpuai.DeviceID(id), filepath.Join(a.path(cleanDir), e.Name())) })
		}
	}
}

// clean takes a device back into use, and answers.
func (a *Agent) clean(id gpuai.DeviceID, file string) {
	if os.Remove(file) != nil {
		return // answered already
	}
	answer := ""
	if why, out := a.devices.unclean[id]; out {
		a.log.Warn("the operator says that a device is clean", "device", id, "was", why)
		a.untaint([]gpuai.DeviceID{id}, why)
	} else {
		answer = a.notOut(id)
	}
	if err := os.WriteFile(file+answerExt, []byte(answer), 0o600); err != nil {
		a.log.Warn("an operator's question stays without an answer", "error", err)
	}
}

// notOut says why there is nothing to take back.
func (a *Agent) notOut(id gpuai.DeviceID) string {
	for _, d := range a.devices.offered {
		switch {
		case d.ID == id && d.Health == gpuai.DeviceHealthy:
			return fmt.Sprintf("device %s is in use", id)
		case d.ID == id:
			return fmt.Sprintf("device %s is %s by its driver (%s), and not by the agent: see to it, and to the driver", id, d.Health, d.HealthCode)
		}
	}
	return fmt.Sprintf("this node has no device %s: \"gpuai node devices %s\" lists them", id, a.cfg.Node)
}

// releaseAll gives a lease's devices back to their drivers, and returns what they
// left unclean.
func releaseAll(ctx context.Context, drivers []driver, l *gpuai.Lease) (out []dirt) {
	by, err := owners(drivers, l.Devices)
	if err != nil {
		return nil // nothing was reserved
	}
	for i := range drivers {
		ids := by[i]
		if len(ids) == 0 {
			continue
		}
		clean, detail, err := releaseFrom(ctx, drivers[i], l.ID.String())
		switch {
		case err != nil:
			out = append(out, dirt{ids, "its driver does not answer whether it is clean: " + err.Error(), &drivers[i]})
		case !clean:
			out = append(out, dirt{namedIn(detail, ids), "not clean: " + cmp.Or(detail, "its driver does not say why"), nil})
		}
	}
	return out
}
