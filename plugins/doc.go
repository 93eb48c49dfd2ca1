// Package plugins is the border between the agent and the drivers: processes
// that know one vendor's devices each.
//
// The nouns:
//
//   - a Driver is what the author of a driver implements; Serve turns it into
//     a plugin process (hashicorp/go-plugin, gRPC, mutual TLS);
//   - a Process is one running driver process, Launch starts it, Remote speaks
//     to it; it is the raw contract, used by the conformance suite;
//   - a Host keeps one driver running for an agent: deadlines on every call,
//     restarts with back-off, a breaker, the merged inventory;
//   - a Reservation holds devices, or a share of one, for a lease; a Grant is
//     what a task needs to use them.
//
// The contract itself is plugins/proto/driver.proto. DESIGN.md says why things
// are as they are, docs/drivers.md how to write a driver. The package runs
// on Linux only: it relies on Pdeathsig, pidfds and /proc.
package plugins
