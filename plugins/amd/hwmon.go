package amd

import (
	"path/filepath"
	"strings"
)

// A sensor is one temperature of a card, in millidegrees Celsius. A limit of 0 is
// not known.
type sensor struct {
	label                    string // "edge", "junction", "mem"
	now, critical, emergency uint64
}

// hwmon returns the directory of a card's sensors, or "". One of a card that
// sleeps is not read: that would wake it.
func (t tree) hwmon(f *function) string {
	if t.word(f.dir(), "power/runtime_status") == "suspended" {
		return ""
	}
	for _, name := range t.list(f.dir(), "hwmon") {
		if dir := filepath.Join(f.dir(), "hwmon", name); t.word(dir, "name") == kernelBound {
			return dir
		}
	}
	return ""
}

// maxCelsius is beyond what a sensor can show: more is garbage.
const maxCelsius = 200

// sensors reads all temperatures of a card.
func (t tree) sensors(f *function) []sensor {
	dir := t.hwmon(f)
	if dir == "" {
		return nil
	}
	var out []sensor
	for _, name := range t.list(dir) {
		n, ok := strings.CutSuffix(name, "_input")
		if !ok || !strings.HasPrefix(n, "temp") {
			continue
		}
		now, ok := t.number(dir, name)
		if !ok || now > maxCelsius*1000 {
			continue
		}
		s := sensor{label: t.word(dir, n+"_label"), now: now}
		if s.label == "" || len(s.label) > 32 {
			s.label = n
		}
		s.critical, _ = t.number(dir, n+"_crit")
		s.emergency, _ = t.number(dir, n+"_emergency")
		out = append(out, s)
	}
	return out
}
