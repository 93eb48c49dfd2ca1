package gpuai

// RegionKeyState says what a key of the keyring is for. Its text is stable.
type RegionKeyState uint8

// The states of a region's keys, in the order in which each key has them.
const (
	KeyNone    RegionKeyState = iota
	KeyOffered                // servers are to hold it; nothing is sealed under it
	KeyActive                 // everything is sealed under it
	KeyOld                    // what it has sealed is sealed under the active one anew
	KeyRetired                // servers delete it
	numRegionKeyStates
)

var regionKeyStateNames = [numRegionKeyStates]string{"", "offered", "active", "old", "retired"}

// Valid reports whether s is a state that there is.
func (s RegionKeyState) Valid() bool { return s > KeyNone && s < numRegionKeyStates }

// String returns the state's text.
func (s RegionKeyState) String() string { return enumName(regionKeyStateNames[:], uint8(s)) }

// MarshalText writes the state's text.
func (s RegionKeyState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads a state's text.
func (s *RegionKeyState) UnmarshalText(b []byte) error {
	return enumParse(regionKeyStateNames[:], "state of a region key", b, (*uint8)(s))
}

// A RegionKey is one of the keys under which the region's secrets and its CAs'
// private keys are sealed. The key itself is in the servers' key files alone.
type RegionKey struct {
	// ID is its name in the key files: 8 hexadecimal digits.
	ID    string         `json:"id"`
	State RegionKeyState `json:"state"`
	// Secrets and Authorities are how many are sealed under it now.
	Secrets     int `json:"secrets"`
	Authorities int `json:"authorities"`
}

// A KeyHolder is a server, and which keys its key file has.
type KeyHolder struct {
	Server ServerID `json:"server"`
	Voter  bool     `json:"voter"`
	Keys   []string `json:"keys"` // IDs, the one that it seals with first
	// Error says why the server did not answer; "" when it has.
	Error string `json:"error,omitzero"`
}

// A RegionKeyList is a region's keys, and who holds them.
type RegionKeyList struct {
	Keys    []RegionKey `json:"keys"`
	Servers []KeyHolder `json:"servers"`
	Index   uint64      `json:"index"`
}

// Rotating returns what a rotation waits for; "" when none is going on.
func (l *RegionKeyList) Rotating() string {
	for i := range l.Keys {
		k := &l.Keys[i]
		switch {
		case k.State == KeyOffered:
			return l.lacking(k.ID)
		case k.State == KeyOld && k.Secrets+k.Authorities > 0:
			return "what is sealed under key " + k.ID + " to be sealed anew"
		}
	}
	return ""
}

// lacking says which voters do not hold a key.
func (l *RegionKeyList) lacking(id string) string {
	for i := range l.Servers {
		h := &l.Servers[i]
		switch {
		case !h.Voter:
		case h.Error != "":
			return "server " + string(h.Server) + ", which does not answer, to hold key " + id + ": it gets it when it comes back; one that never will is removed with 'gpuai server members remove'"
		case !h.Holds(id):
			return "server " + string(h.Server) + " to hold key " + id
		}
	}
	return "key " + id + " to become active"
}

// Holds reports whether a server has a key.
func (h *KeyHolder) Holds(id string) bool {
	for _, k := range h.Keys {
		if k == id {
			return true
		}
	}
	return false
}
