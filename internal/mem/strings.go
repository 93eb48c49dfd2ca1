package mem

// Strings numbers strings: each distinct one once, in order of first sight. It
// only grows. Number 0 is the empty string.
type Strings struct {
	space *Space
	id    uint16
	all   []string
	index *Hash
}

// NewStrings returns a table that holds the empty string.
func NewStrings(s *Space) *Strings {
	t := &Strings{space: s, all: []string{""}, index: NewHash(s)}
	t.id = s.join(t)
	return t
}

// Fork returns the copy of t in ns.
func (t *Strings) Fork(ns *Space) *Strings {
	// The backing array is shared: the fork reads only what it has, and its
	// first append moves it away.
	f := &Strings{space: ns, all: t.all[:len(t.all):len(t.all)], index: t.index.Fork(ns)}
	f.id = ns.join(f)
	return f
}

// Len returns how many numbers are given out, 0 included.
func (t *Strings) Len() uint32 { return uint32(len(t.all)) }

// Get returns the string of number i.
func (t *Strings) Get(i uint32) string { return t.all[i] }

// Find returns the number of s.
func (t *Strings) Find(s string) (uint32, bool) {
	if s == "" {
		return 0, true
	}
	return t.index.Find(HashString(0, s), func(i uint32) bool { return t.all[i] == s })
}

// FindBytes is Find without a string of its own.
func (t *Strings) FindBytes(b []byte) (uint32, bool) {
	if len(b) == 0 {
		return 0, true
	}
	return t.index.Find(HashBytes(0, b), func(i uint32) bool { return t.all[i] == string(b) })
}

// Intern returns the number of s, a new one when it has none. The caller keeps
// the limit.
func (t *Strings) Intern(s string) uint32 {
	if i, ok := t.Find(s); ok {
		return i
	}
	i := uint32(len(t.all))
	t.all = append(t.all, s)
	if !t.space.loading {
		t.space.journal = append(t.space.journal, t.id)
	}
	t.index.Insert(HashString(0, s), i)
	return i
}

// InternBytes is Intern of a copy of b.
func (t *Strings) InternBytes(b []byte) uint32 {
	if i, ok := t.FindBytes(b); ok {
		return i
	}
	return t.Intern(string(b))
}

func (t *Strings) undoOne()       { t.all = t.all[:len(t.all)-1] }
func (t *Strings) commit() uint64 { return 0 }
func (t *Strings) sum() uint64    { return 0 }
