package billing

import (
	"errors"

	"github.com/gpuai/gpuai"
)

// Kind says what an account is.
type Kind uint8

// The kinds. World is all that is outside the region: what comes in is debited to
// it, so its balance alone may be below zero.
const (
	World Kind = iota + 1
	Tenant
	Provider
	Fee
	numKinds
)

var kindNames = [numKinds]string{"", "world", "tenant", "provider", "fee"}

// String returns the kind's text.
func (k Kind) String() string {
	if k < numKinds {
		return kindNames[k]
	}
	return "unknown"
}

// MaxAmount bounds the debits and the credits of an account, so that no sum of two
// overflows: about 4.6e12 dollars.
const MaxAmount gpuai.Micros = 1 << 62

var (
	// ErrAmount is returned for an amount below zero, or that would take an account
	// beyond MaxAmount.
	ErrAmount = errors.New("the amount is out of range")
	// ErrFunds is returned when an account has not so much that is not held.
	ErrFunds = errors.New("the account has not so much")
	// ErrHeld is returned when not so much is held.
	ErrHeld = errors.New("not so much is held")
)

// An Account is one account of the ledger.
type Account struct {
	Kind    Kind
	Debits  gpuai.Micros // paid out, in all
	Credits gpuai.Micros // paid in, in all
	Held    gpuai.Micros // of the balance, promised to holds
}

// Balance is what is in the account, held or not.
func (a *Account) Balance() gpuai.Micros { return a.Credits - a.Debits }

// Free is what may be transferred or held.
func (a *Account) Free() gpuai.Micros { return a.Balance() - a.Held }

// Sound reports whether what must hold of every account does.
func (a *Account) Sound() bool {
	in := a.Debits >= 0 && a.Credits >= 0 && a.Debits <= MaxAmount && a.Credits <= MaxAmount
	return in && a.Held >= 0 && (a.Kind == World && a.Held == 0 || a.Held <= a.Balance())
}

// Transfer moves n from one account to another. It returns ErrAmount or ErrFunds.
func Transfer(from, to *Account, n gpuai.Micros) error {
	switch {
	case n < 0 || n > MaxAmount-from.Debits || n > MaxAmount-to.Credits:
		return ErrAmount
	case from.Kind != World && n > from.Free():
		return ErrFunds
	}
	from.Debits += n
	to.Credits += n
	return nil
}

// Reverse takes a transfer of n back: from is whom it was paid to, and has n that is
// not held. Unlike a transfer the other way, it leaves no turnover: what is lent and
// given back any number of times does not fill an account. It returns ErrAmount or
// ErrFunds.
func Reverse(from, to *Account, n gpuai.Micros) error {
	switch {
	case n < 0 || n > from.Credits || n > to.Debits:
		return ErrAmount
	case from.Kind != World && n > from.Free():
		return ErrFunds
	}
	from.Credits -= n
	to.Debits -= n
	return nil
}

// Hold promises n of a's free balance. It returns ErrAmount or ErrFunds; World
// holds nothing.
func (a *Account) Hold(n gpuai.Micros) error {
	switch {
	case n < 0:
		return ErrAmount
	case a.Kind == World || n > a.Free():
		return ErrFunds
	}
	a.Held += n
	return nil
}

// Release ends a promise of n. It returns ErrAmount or ErrHeld.
func (a *Account) Release(n gpuai.Micros) error {
	switch {
	case n < 0:
		return ErrAmount
	case n > a.Held:
		return ErrHeld
	}
	a.Held -= n
	return nil
}

// Capture transfers n of what from holds. It returns ErrAmount or ErrHeld.
func Capture(from, to *Account, n gpuai.Micros) error {
	if err := from.Release(n); err != nil {
		return err
	}
	if err := Transfer(from, to, n); err != nil {
		from.Held += n
		return err
	}
	return nil
}
