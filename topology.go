package gpuai

import "strconv"

// Topology is a level of closeness between nodes, from the closest on.
type Topology uint8

// The levels. A node that names no NVLink domain or no rack is one of its own.
const (
	TopologyNone Topology = iota
	TopologyNode
	TopologyNVLink
	TopologyRack
	TopologyZone
	numTopologies
)

// NumTopologies is the size of a table indexed by Topology.
const NumTopologies = int(numTopologies)

var topologyNames = [numTopologies]string{"", "node", "nvlink_domain", "rack", "zone"}

// String returns the level's text.
func (t Topology) String() string { return enumName(topologyNames[:], uint8(t)) }

// MarshalText writes the level's text.
func (t Topology) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads a level's text.
func (t *Topology) UnmarshalText(b []byte) error {
	return enumParse(topologyNames[:], "topology", b, (*uint8)(t))
}

// Placement says how close together the tasks of each gang must and should be;
// of a job whose groups start together, all of its tasks.
type Placement struct {
	// Same is required: all tasks run in one domain of this level, or none.
	Same Topology `json:"same,omitzero"`
	// Near is preferred: as few domains of this level as there is room for
	// now. It is closer than Same.
	Near Topology `json:"near,omitzero"`
}

// Elastic reports whether a group is a gang that may run with fewer tasks than
// Count.
func (g *Group) Elastic() bool { return g.MinCount > 0 && g.MinCount < g.Count }

func (s *JobSpec) validatePlacement(v *fieldErrors) {
	p := s.Placement
	v.check(p.Same < numTopologies, "/placement/same", "is not a known level")
	v.check(p.Near < numTopologies, "/placement/near", "is not a known level")
	v.check(p.Same == TopologyNone || p.Near < p.Same, "/placement/near", "must be closer than same: what is in one "+p.Same.String()+" needs no such wish")
	if p == (Placement{}) {
		return
	}
	gangs, parts := 0, false
	for i := range s.Groups[:min(len(s.Groups), MaxGroups)] {
		if g := &s.Groups[i]; g.Gang || s.Together {
			gangs++
			parts = parts || g.Resources.GPU.Share.Milli != 0 && !(s.Together && i > 0)
		}
	}
	v.check(gangs > 0, "/placement", "is for gangs: set gang of a group, or together of the job")
	v.check(!parts, "/placement", "is not for shares of a GPU: ask for whole ones, or for none, in every gang, or in the first group of a job whose groups start together")
}

func (s *JobSpec) validateTogether(v *fieldErrors) {
	if !s.Together {
		return
	}
	var tasks uint64
	for i := range s.Groups[:min(len(s.Groups), MaxGroups)] {
		tasks += uint64(s.Groups[i].Count)
	}
	v.check(s.Array.Size == 0, "/together", "an array's tasks are independent: leave it out")
	v.check(tasks <= MaxGangTasks, "/together", "groups that start together have at most "+strconv.Itoa(MaxGangTasks)+" tasks in all")
}

func (g *Group) validateElastic(v *fieldErrors, at string) {
	v.check(g.MinCount == 0 || g.Gang, at+"/min_count", "is for gangs: other tasks start one by one as there is room")
	v.check(g.MinCount <= g.Count, at+"/min_count", "must not be above count")
}
