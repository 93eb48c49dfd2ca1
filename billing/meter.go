package billing

import (
	"math"
	"math/bits"

	"github.com/gpuai/gpuai"
)

// milliHour is an hour of a whole device, in the unit of DeviceTime.
const milliHour = uint64(gpuai.Hour) * uint64(gpuai.WholeDevice)

// MaxFeeBps is the highest fee: all of what is billed, in hundredths of a percent.
const MaxFeeBps = 10_000

// DeviceTime is time on devices: thousandths of a device times milliseconds. It
// stops at the greatest number.
func DeviceTime(milli uint64, d gpuai.Duration) uint64 {
	hi, lo := bits.Mul64(milli, uint64(max(d, 0)))
	if hi != 0 {
		return math.MaxUint64
	}
	return lo
}

// MilliHours is a device time in thousandths of a device times hours, rounded down.
func MilliHours(t uint64) uint64 { return t / uint64(gpuai.Hour) }

// Due is what a device time costs at a price by the device and hour: rounded down,
// exact for any device time, at most MaxAmount. A price below zero costs nothing.
func Due(price gpuai.Micros, t uint64) gpuai.Micros {
	hi, lo := bits.Mul64(uint64(max(price, 0)), t)
	if hi >= milliHour {
		return MaxAmount
	}
	q, _ := bits.Div64(hi, lo, milliHour)
	return gpuai.Micros(min(q, uint64(MaxAmount)))
}

// FeeOn is the fee on an amount, rounded down.
func FeeOn(amount gpuai.Micros, bps uint32) gpuai.Micros {
	hi, lo := bits.Mul64(uint64(max(amount, 0)), uint64(min(bps, MaxFeeBps)))
	q, _ := bits.Div64(hi, lo, MaxFeeBps)
	return gpuai.Micros(q)
}

// A Meter counts what one lease costs. It is cumulative: what is due is computed
// from the beginning, less what was billed before, so that how often it is read
// changes nothing.
type Meter struct {
	Price  gpuai.Micros // by the device and hour
	Milli  uint64       // of devices
	FeeBps uint32
	From   gpuai.Instant
	Billed gpuai.Micros // so far
	Fee    gpuai.Micros // taken so far, beside Billed
	Time   uint64       // device time that was counted so far
}

// A Charge is what a reading adds.
type Charge struct {
	Amount, Fee gpuai.Micros
	Time        uint64 // device time
}

// Cost is what a meter comes to after a time, in all: the amount, the fee on it
// and the device time.
func (m *Meter) Cost(d gpuai.Duration) Charge {
	t := DeviceTime(m.Milli, d)
	due := Due(m.Price, t)
	return Charge{due, min(FeeOn(due, m.FeeBps), MaxAmount-due), t}
}

// Read counts up to an instant, and returns what that adds. One before what was
// counted already adds nothing.
func (m *Meter) Read(now gpuai.Instant) Charge {
	c := m.Cost(gpuai.Duration(max(now-m.From, 0)))
	add := Charge{max(c.Amount-m.Billed, 0), max(c.Fee-m.Fee, 0), c.Time - min(m.Time, c.Time)}
	m.Billed += add.Amount
	m.Fee += add.Fee
	m.Time += add.Time
	return add
}
