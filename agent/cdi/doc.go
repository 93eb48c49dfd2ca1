// Package cdi finds what a task needs to use its devices in the host's CDI
// specifications (Container Device Interface): device files, files of the host
// to mount and variables.
//
// A driver answers a reservation with qualified names, and nothing else reaches
// this package: no name, path or specification of a tenant's. Specifications are
// taken from directories and files that only root may write.
//
// Hooks are never run: they are programs with the host's rights. A specification
// that has some is used without them, which Edits.Hooks says. What the usual hook
// of GPU vendors does, that libraries are found by their SONAME, is done by
// mounts instead.
package cdi
