package jobfile

import (
	"errors"
	"math/bits"
	"strconv"
	"strings"

	"github.com/gpuai/gpuai"
)

var (
	errSize  = errors.New(`must be a size with its unit, such as "24GiB" or "512MiB" (KiB, MiB, GiB, TiB)`)
	errRange = errors.New(`must be a size such as "24GiB" (at least that), or a range such as "40GiB..80GiB", "24GiB.." or "..80GiB"`)
	errCPU   = errors.New("must be a number of cores above 0 with at most three decimals, such as 0.5 or 16")
)

var sizeUnits = [...]struct {
	name  string
	shift uint
}{{"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}}

// ParseSize reads a size with its unit, such as "1.5GiB", as bytes, rounded
// down. The error completes a sentence that begins with the field's name.
func ParseSize(s string) (gpuai.Bytes, error) {
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		milli, err := parseMilli(digits)
		if err != nil {
			return 0, errSize
		}
		hi, lo := bits.Mul64(uint64(milli), 1<<u.shift)
		if hi >= 1000 {
			return 0, errSize
		}
		b, _ := bits.Div64(hi, lo, 1000)
		if b >= uint64(gpuai.MaxMemory) {
			return 0, errors.New("must be below 1 PiB")
		}
		return gpuai.Bytes(b), nil
	}
	return 0, errSize
}

// parseRange reads a memory range; a bare size is a lower bound.
func parseRange(s string) (lo, hi gpuai.Bytes, err error) {
	from, to, ranged := strings.Cut(s, "..")
	if from == "" && to == "" {
		return 0, 0, errRange
	}
	if from != "" {
		if lo, err = ParseSize(from); err != nil {
			return 0, 0, errRange
		}
	}
	if ranged && to != "" {
		if hi, err = ParseSize(to); err != nil {
			return 0, 0, errRange
		}
		if hi == 0 || hi < lo {
			return 0, 0, errors.New("must not end below its start")
		}
	}
	return lo, hi, nil
}

// ParseCPU reads cores with at most three decimals, such as "0.5". The error
// completes a sentence that begins with the field's name.
func ParseCPU(s string) (gpuai.MilliCPU, error) {
	m, err := parseMilli(s)
	if err != nil || m == 0 {
		return 0, errCPU
	}
	return gpuai.MilliCPU(m), nil
}

// parseMilli reads a decimal with at most three places as thousandths, exactly.
func parseMilli(s string) (int64, error) {
	whole, frac, dot := strings.Cut(s, ".")
	if len(frac) > 3 || dot && frac == "" || whole == "" || strings.ContainsAny(s, "+-_") {
		return 0, errCPU
	}
	w, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || w > 1<<52 {
		return 0, errCPU
	}
	f, err := strconv.ParseInt((frac + "000")[:3], 10, 64)
	if err != nil {
		return 0, errCPU
	}
	return w*1000 + f, nil
}
