package gpuai

import (
	"slices"
	"strconv"
)

// Network is what a sandboxed task may reach.
type Network uint8

// The networks. A task without an image has its node's in any case.
const (
	// NetworkNone is the task itself and, for a member of a gang, the others.
	NetworkNone Network = iota
	// NetworkEgress is the internet beside, as far as the node's operator lets it.
	NetworkEgress
	// NetworkHost is the node's own network, as for RDMA: on nodes whose
	// operator allows it only.
	NetworkHost
	numNetworks
)

// NumNetworks bounds the networks there are.
const NumNetworks = int(numNetworks)

var networkNames = [numNetworks]string{"none", "egress", "host"}

// String returns the network's text.
func (n Network) String() string { return enumName(networkNames[:], uint8(n)) }

// MarshalText writes the network's text.
func (n Network) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText reads a network's text.
func (n *Network) UnmarshalText(b []byte) error {
	return enumParse(networkNames[:], "network", b, (*uint8)(n))
}

// Labels of nodes that say which networks their sandboxes can have. A group that
// needs one has the constraint that it is LabelYes, beside those of its own; only
// on LabelEgress does its own stand alone that says which of LabelYes and
// LabelListed it takes.
const (
	// LabelEgress is LabelYes where the internet can be reached, LabelListed
	// where only what the operator lists.
	LabelEgress = "network.egress"
	LabelListed = "listed"
	// LabelHostNetwork is LabelYes where the operator allows NetworkHost.
	LabelHostNetwork = "network.host"
	// LabelGangNetwork is LabelYes where the sandboxes of a gang can have a
	// network of their own.
	LabelGangNetwork = "network.gang"
)

// inSandbox reports whether the group's tasks have a network of their own.
func (g *Group) inSandbox() bool {
	return g.Task.Runtime == RuntimeOCI && g.Resources.Network != NetworkHost
}

// meshed reports whether the group's tasks may be on several nodes and must reach one
// another from sandboxes. same is how near they are to be.
func (g *Group) meshed(same Topology) bool {
	return g.Gang && g.Count > 1 && g.inSandbox() && same != TopologyNode
}

// sandboxDefaults adds the constraints of what the group's sandboxes need, and
// takes out those that an earlier form of the group needed. same is how near its
// tasks are to be.
func (g *Group) sandboxDefaults(same Topology) {
	if g.Task.Runtime != RuntimeOCI {
		return
	}
	n, scratch := g.Resources.Network, ""
	if g.Resources.Scratch > 0 {
		scratch = strconv.FormatInt(int64(g.Resources.Scratch), 10)
	}
	g.imply(LabelOCI, yesIf(true))
	g.imply(LabelEgress, yesIf(n == NetworkEgress && !slices.ContainsFunc(g.Constraints, ownEgress)))
	g.imply(LabelHostNetwork, yesIf(n == NetworkHost))
	g.imply(LabelGangNetwork, yesIf(g.Gang && g.Count > 1 && g.inSandbox() && !g.meshed(same))) // a mesh has one
	g.imply(LabelMesh, yesIf(g.meshed(same)))
	g.imply(LabelScratch, scratch)
}

func yesIf(needed bool) string {
	if needed {
		return LabelYes
	}
	return ""
}

// imply makes the group's one constraint of the implied form on a label that with
// a value; none with "".
func (g *Group) imply(label, value string) {
	implied := func(c Constraint) bool { return c.implied(label) }
	if slices.ContainsFunc(g.Constraints, implied) {
		g.Constraints = slices.DeleteFunc(slices.Clone(g.Constraints), implied)
	}
	if value == "" {
		return
	}
	more := Constraint{Attribute: LabelPrefix + label, Op: impliedOp(label), Values: []string{value}}
	g.Constraints = append(slices.Clip(g.Constraints), more)
}

func impliedOp(label string) Op {
	if label == LabelScratch {
		return AtLeast
	}
	return Equal
}

// implied reports whether c has the form of the constraint that a sandbox implies
// on a label.
func (c *Constraint) implied(label string) bool {
	return c.Attribute == LabelPrefix+label && c.Op == impliedOp(label) && len(c.Values) == 1 &&
		(label == LabelScratch || c.Values[0] == LabelYes)
}

// ownEgress reports whether c says which of the nodes with egress a group takes.
func ownEgress(c Constraint) bool {
	return c.Attribute == LabelPrefix+LabelEgress && (c.Op == Equal || c.Op == In) && !c.implied(LabelEgress) &&
		len(c.Values) > 0 && !slices.ContainsFunc(c.Values, func(s string) bool { return s != LabelYes && s != LabelListed })
}

// own counts the constraints that no sandbox implies, or its secrets.
func (g *Group) own() (n int) {
	for i := range g.Constraints {
		c := &g.Constraints[i]
		if c.implied(LabelSecrets) && len(g.Task.Secrets) > 0 {
			continue
		}
		if g.Task.Runtime != RuntimeOCI || !c.implied(LabelOCI) && !c.implied(LabelEgress) && !c.implied(LabelHostNetwork) &&
			!c.implied(LabelGangNetwork) && !c.implied(LabelMesh) && !c.implied(LabelScratch) {
			n++
		}
	}
	return n
}

// validateNetwork says what is wrong with a group's network. same is how near its
// tasks are to be.
func (g *Group) validateNetwork(v *fieldErrors, at string, same Topology) {
	n := g.Resources.Network
	v.check(n < numNetworks, at+"/resources/network", "is not a known network")
	v.check(n == NetworkNone || g.Task.Runtime == RuntimeOCI, at+"/resources/network", "is for tasks with an image: a plain process has its node's network")
	if g.Count > MaxMeshTasks && g.meshed(same) {
		v.add(at+"/count", "a gang in sandboxes on several nodes has at most "+strconv.Itoa(MaxMeshTasks)+" tasks: "+
			"say placement {same: node}, or network host, or use the runtime \"process\" without an image")
	}
}
