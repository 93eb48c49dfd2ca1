// Package network gives sandboxes a network: the internet through a filter of
// the node's own, and to the members of a gang one another.
//
// A gang's members on one node meet in a hub, a namespace that routes between them;
// those on others are behind a mesh, which a process of its own holds (package mesh).
//
// Nothing of it needs to be undone for a task to be gone. A task's interfaces
// are in its network namespace and go with it, and so does the hub, the namespace
// in which a gang meets, with the last member that holds it. What is left on
// the host are an address in a set of the filter, and for a moment an interface:
// Leave takes them away, and after a crash Retain, by the owner and the lease that
// an interface's alias names.
//
// Links and addresses are vishvananda/netlink's. The filter is a text that the
// program nft loads in one transaction, so that an operator reads it with "nft list
// table" as it was written here; google/nftables would have us write its byte code.
// Others can flush it, with no agent there to see: what must hold then is in the
// baseline, a program that is part of each link.
package network
