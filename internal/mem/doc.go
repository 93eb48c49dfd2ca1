// Package mem holds the memory of the state machine: tables of records on
// copy-on-write pages, with undo.
//
// Everything that a machine remembers lives in structures of one Space. That
// gives three things to all of it at once:
//
//   - Commit ends one or more commands: the old values are forgotten and the
//     incremental hash of the hashed tables takes the change in;
//   - RollbackTo a Mark undoes all writes since, in any table;
//   - Fork gives a second, independent copy in O(pages): both sides copy a page
//     before they first write to it.
//
// A machine that is read from a snapshot is filled between Load and Loaded:
// nothing is kept to take back, and the hash is computed once at the end.
//
// The package is pure. A Space and its structures belong to one goroutine at a
// time; a fork belongs to another and shares only pages that neither writes.
// Slots are handed out lowest first, so that they are a function of the set of
// slots in use and not of history: two machines with equal records hand out
// equal slots for ever.
package mem
