package amd

import (
	"strconv"
	"strings"
)

// rasDir holds the counters of the card's error correction; cards without one
// have no such directory.
const rasDir = "ras"

// A rasCount is what one block of the chip counted since amdgpu was loaded.
type rasCount struct {
	block                  string // "umc" is the memory, "gfx" the cores
	uncorrected, corrected uint64
}

// rasCounts reads <block>_err_count of every block.
func (t tree) rasCounts(f *function) []rasCount {
	var out []rasCount
	for _, name := range t.list(f.dir(), rasDir) {
		block, ok := strings.CutSuffix(name, "_err_count")
		if !ok {
			continue
		}
		text, err := t.text(f.dir(), rasDir, name)
		if err != nil {
			continue
		}
		if ue, ce, ok := parseErrCount(text); ok {
			out = append(out, rasCount{block, ue, ce})
		}
	}
	return out
}

// parseErrCount reads "ue: N" and "ce: N", a line each, and reports whether there
// was one. Further counters are passed over.
func parseErrCount(text string) (ue, ce uint64, ok bool) {
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
		if err != nil {
			continue
		}
		switch name {
		case "ue":
			ue, ok = n, true
		case "ce":
			ce, ok = n, true
		}
	}
	return ue, ce, ok
}

// A badPages is how many pages of memory are out of use.
type badPages struct {
	retired, pending, failed uint64
}

// badPages reads the list of bad pages; a card that keeps none has no bad ones.
func (t tree) badPages(f *function) badPages {
	text, err := t.text(f.dir(), rasDir, "gpu_vram_bad_pages")
	if err != nil {
		return badPages{}
	}
	return parseBadPages(text)
}

// parseBadPages reads lines of "page : size : flag". R is retired, P is to be
// retired, F could not be retired.
func parseBadPages(text string) (out badPages) {
	for line := range strings.Lines(text) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) != 3 {
			continue
		}
		switch strings.TrimSpace(fields[2]) {
		case "R":
			out.retired++
		case "P":
			out.pending++
		case "F":
			out.failed++
		}
	}
	return out
}
