package gpuai

import "errors"

// MaxMeshTasks bounds a gang in sandboxes whose tasks may be on several nodes:
// each of its nodes is told of all others.
const MaxMeshTasks = 512

// LabelMesh is LabelYes on nodes that link the sandboxes of a gang with those on
// other nodes. They have LabelGangNetwork, too.
const LabelMesh = "network.mesh"

// A MeshKey is the public key by which a member of a gang is known to those on other
// nodes. The private one never leaves its node.
type MeshKey [32]byte

// String returns the key's 64 hexadecimal digits.
func (k MeshKey) String() string { return BlobDigest(k).Hex() }

// MarshalText writes the key's text.
func (k MeshKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads a key's text, with the digits in lower case.
func (k *MeshKey) UnmarshalText(b []byte) error {
	var d BlobDigest
	if d.UnmarshalText(append([]byte(digestAlgorithm), b...)) != nil {
		return errors.New("a mesh key is 64 hexadecimal digits in lower case")
	}
	*k = MeshKey(d)
	return nil
}

// A MeshPoint is where the network of a gang's member is reached from other nodes.
// Members of one gang on one node may have the same.
type MeshPoint struct {
	Key  MeshKey `json:"key"`
	Port uint16  `json:"port"` // UDP, at the node's address
}

// Valid reports whether p can be reached at all.
func (p *MeshPoint) Valid() bool { return p.Key != MeshKey{} && p.Port != 0 }

// A MeshPeer is what a member is told of those of its gang on one other node.
type MeshPeer struct {
	Address string `json:"address"` // the node's
	MeshPoint
	Ranks []uint32 `json:"ranks"`
}
