// Package billing counts money: whole micro-dollars in accounts of a double-entry
// ledger, and meters that turn time on devices into amounts.
//
// It is pure: no clock, no I/O, no floats. Accounts and meters are plain values
// that the state machine keeps in its tables; the functions here check before they
// write, so that after an error nothing has changed.
//
// What always holds: the balances of all accounts sum to zero; of every account but
// World, balance ≥ held ≥ 0.
package billing
