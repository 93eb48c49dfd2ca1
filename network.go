package gpuai

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
// needs one has the constraint that it is LabelYes, unless it names the label in a
// constraint of its own.
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

// networkDefaults adds the constraints of what the group's sandboxes need.
func (g *Group) networkDefaults() {
	if g.Task.Runtime != RuntimeOCI {
		return
	}
	g.needs(LabelOCI)
	switch g.Resources.Network {
	case NetworkEgress:
		g.needs(LabelEgress)
	case NetworkHost:
		g.needs(LabelHostNetwork)
	}
	if g.Gang && g.Count > 1 && g.inSandbox() {
		g.needs(LabelGangNetwork)
	}
}

// needs adds the constraint that a label of the node is LabelYes, unless the
// group has one on that label.
func (g *Group) needs(label string) {
	for i := range g.Constraints {
		if g.Constraints[i].Attribute == LabelPrefix+label {
			return
		}
	}
	more := Constraint{Attribute: LabelPrefix + label, Op: Equal, Values: []string{LabelYes}}
	g.Constraints = append(g.Constraints[:len(g.Constraints):len(g.Constraints)], more)
}

// validateNetwork says what is wrong with a group's network. same is how near its
// tasks are to be.
func (g *Group) validateNetwork(v *fieldErrors, at string, same Topology) {
	n := g.Resources.Network
	v.check(n < numNetworks, at+"/resources/network", "is not a known network")
	v.check(n == NetworkNone || g.Task.Runtime == RuntimeOCI, at+"/resources/network", "is for tasks with an image: a plain process has its node's network")
	if g.Gang && g.Count > 1 && g.inSandbox() && same != TopologyNode {
		v.add(at+"/resources/network", "the sandboxes of a gang reach one another on one node only, until a mesh across nodes is built: "+
			"say placement {same: node}, or network host, or use the runtime \"process\" without an image")
	}
}
