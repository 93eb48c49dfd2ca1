package billing

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/gpuai/gpuai"
)

func TestDueIsExact(t *testing.T) {
	for _, x := range []struct {
		price gpuai.Micros
		time  uint64
		want  gpuai.Micros
	}{
		{1_850_000, milliHour, 1_850_000},
		{1_850_000, milliHour / 2, 925_000},
		{1, milliHour - 1, 0},
		{-5, milliHour, 0},
		{1 << 30, 1 << 63, 2_750_977_865_078_622_833}, // needs 128 bits
		{1 << 62, 1 << 63, MaxAmount},
	} {
		if got := Due(x.price, x.time); got != x.want {
			t.Errorf("Due(%d, %d) = %d, want %d", x.price, x.time, got, x.want)
		}
	}
	if got := FeeOn(1<<62, 250); got != 115_292_150_460_684_697 {
		t.Errorf("a fee of 2.5 %% on 2^62 is %d", got)
	}
	if got := DeviceTime(1<<40, 1<<40); got != ^uint64(0) {
		t.Errorf("device time overflows to %d", got)
	}
}

// However often a meter is read, it comes to the same.
func TestMeteringFrequencyChangesNothing(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		whole := Meter{
			Price: gpuai.Micros(r.Int64N(10_000_000)), Milli: 1 + r.Uint64N(64_000),
			FeeBps: r.Uint32N(MaxFeeBps + 1), From: gpuai.Instant(r.Int64N(1 << 40)),
		}
		often, end := whole, whole.From.Add(gpuai.Duration(r.Int64N(int64(gpuai.Day))))
		var sum Charge
		read := func(at gpuai.Instant) {
			c := often.Read(at)
			sum.Amount, sum.Fee, sum.Time = sum.Amount+c.Amount, sum.Fee+c.Fee, sum.Time+c.Time
		}
		for at := whole.From; at < end; at += gpuai.Instant(1 + r.Int64N(int64(gpuai.Hour))) {
			read(at)
			read(at - 5) // a reading of the past adds nothing
		}
		read(end)
		if one := whole.Read(end); one != sum || often != whole {
			t.Fatalf("seed %d: one reading gives %+v, many %+v", seed, one, sum)
		}
	}
}

// Random transfers, holds and captures keep the ledger sound, and one that is
// refused changes nothing.
func TestRandomBookings(t *testing.T) {
	kinds := []Kind{World, Tenant, Tenant, Provider, Fee}
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 2))
		book := make([]Account, len(kinds))
		for i, k := range kinds {
			book[i].Kind = k
		}
		refused := 0
		for range 20_000 {
			before := append([]Account(nil), book...)
			a, b := &book[r.IntN(len(book))], &book[r.IntN(len(book))]
			n := gpuai.Micros(r.Int64N(2_000) - 50)
			if r.IntN(500) == 0 {
				n = MaxAmount
			}
			var err error
			switch r.IntN(4) {
			case 0:
				err = Transfer(a, b, n)
			case 1:
				err = a.Hold(n)
			case 2:
				err = a.Release(n)
			default:
				err = Capture(a, b, n)
			}
			if err != nil {
				if refused++; !errors.Is(err, ErrAmount) && !errors.Is(err, ErrFunds) && !errors.Is(err, ErrHeld) {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
			var sum gpuai.Micros
			for i := range book {
				if sum += book[i].Balance(); !book[i].Sound() {
					t.Fatalf("seed %d: %s account %+v is not sound", seed, book[i].Kind, book[i])
				}
				if err != nil && book[i] != before[i] {
					t.Fatalf("seed %d: a refused booking has changed %+v to %+v", seed, before[i], book[i])
				}
			}
			if sum != 0 {
				t.Fatalf("seed %d: the balances sum to %d", seed, sum)
			}
		}
		if refused == 0 {
			t.Fatalf("seed %d: nothing was refused", seed)
		}
	}
}
