package mem

// owner is the identity of who may write a page in place.
type owner struct{ _ byte }

// undoer is a structure whose writes a Space can take back.
type undoer interface {
	undoOne()              // takes back the newest write
	commit() (hash uint64) // forgets old values; returns the change of its hash
	sum() (hash uint64)    // its whole hash, computed anew
}

// A Space is one machine's memory.
type Space struct {
	owner   *owner
	members []undoer
	journal []uint16 // member of each write since the last commit, in order
	written []uint16 // members with a write since; one may be named twice
	section uint64   // from 1; of the journal: between marks, one old value of a record is enough
	hash    uint64
	loading bool // between Load and Loaded
}

// NewSpace returns an empty space. Structures write when they are made: commit
// after the last one, or the first RollbackTo takes them apart.
func NewSpace() *Space { return &Space{owner: new(owner), section: 1} }

// Fork returns a space for the forks of s's structures, which must all be
// forked before either side is written to again. Nothing may be uncommitted.
func (s *Space) Fork() *Space {
	s.owner = new(owner)
	return &Space{owner: new(owner), section: 1, hash: s.hash}
}

func (s *Space) join(u undoer) uint16 {
	s.members = append(s.members, u)
	return uint16(len(s.members) - 1)
}

// A Mark is a point to roll back to, valid until the next Commit.
type Mark int

// Mark returns the present point.
func (s *Space) Mark() Mark {
	s.section++
	return Mark(len(s.journal))
}

// Uncommitted returns how many writes wait for the next Commit. A record that is
// written again and again between two marks counts once or a few times.
func (s *Space) Uncommitted() int { return len(s.journal) }

// wrote notes a write of a member; first, that it is its only one as yet.
func (s *Space) wrote(id uint16, first bool) {
	s.journal = append(s.journal, id)
	if first {
		s.written = append(s.written, id)
	}
}

// RollbackTo takes back every write since m, newest first; mark 0 is the last
// Commit.
func (s *Space) RollbackTo(m Mark) {
	s.section++
	for i := len(s.journal) - 1; i >= int(m); i-- {
		s.members[s.journal[i]].undoOne()
	}
	s.journal = s.journal[:m]
}

// Commit makes all writes since the last one final.
func (s *Space) Commit() {
	if len(s.journal) == 0 {
		return
	}
	for _, id := range s.written {
		s.hash += s.members[id].commit() // nothing, when it is named again
	}
	s.section++
	s.journal, s.written = s.journal[:0], s.written[:0]
}

// Load begins the filling of a space, which costs neither old values nor a
// hash of each write: until Loaded, a write is final at once, RollbackTo takes
// nothing back, Hash stands still and no fork may be made. Who loads throws the
// space away when it fails. Nothing may be uncommitted.
func (s *Space) Load() { s.loading = true }

// Loaded ends what Load began, and computes the hash of all records.
func (s *Space) Loaded() {
	s.loading, s.hash = false, 0
	for _, m := range s.members {
		s.hash += m.sum()
	}
	s.section++
}

// Hash returns the sum of the hashes of all records of hashed tables, as of
// the last Commit. It does not depend on the order of writes.
func (s *Space) Hash() uint64 { return s.hash }
