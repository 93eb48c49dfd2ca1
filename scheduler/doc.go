// Package scheduler finds the node for a task: an exact best-fit index over
// the capacity of all nodes of a region. It is pure and runs inside Apply.
//
// The nouns:
//
//   - a shape is what one task of a group needs, numbered once for all groups
//     that need the same; its filters, one per GPU alternative, say which pools
//     can serve it at all;
//   - a unit is the devices of one kind of one node; a node without devices is
//     one unit too. CPU and memory belong to the node, all its units share them;
//   - a pool is the set of all units of one zone, label set, device kind and
//     price tier, so that a filter holds for all of a pool or for none;
//   - a class says how much of a unit is free: so many wholly free devices, or
//     a device with so much left. Each pool has one ordered tree per class.
//
// DESIGN.md in this directory gives the total order by which a node is chosen,
// the cost of each operation, and why the trees are what they are.
//
// All that a State remembers is in structures of one mem.Space: fork, rollback
// and commit are the space's. A State belongs to one goroutine at a time;
// what only reads says so, and others may call it while nobody changes the State.
package scheduler
