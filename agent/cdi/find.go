package cdi

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

// HostDirs are the host's directories of specifications, the second over the first.
var HostDirs = slices.Clone(cdi.DefaultSpecDirs)

// A Finder resolves qualified names. Its directories are read at each use.
type Finder struct {
	// Host are the host's directories; a name in a later one hides the same in
	// an earlier one. nil means HostDirs.
	Host []string
	// Drivers are the drivers' own directories. The host's hide them.
	Drivers []string
}

// An UnresolvedError is returned by Resolve when a name cannot be resolved, or
// what it resolves to cannot be had in a sandbox. Its text is for the operator.
type UnresolvedError struct {
	Name string
	Dirs []string // that were searched
	Why  error    // what is wrong with its specification; nil: there is none
}

// Error says the name, the directories and what to do.
func (e *UnresolvedError) Error() string {
	if e.Why == nil {
		return fmt.Sprintf("no CDI specification has the device %s; searched: %s", e.Name, strings.Join(e.Dirs, ", "))
	}
	return fmt.Sprintf("the CDI device %s cannot be used: %v; searched: %s", e.Name, e.Why, strings.Join(e.Dirs, ", "))
}

// Unwrap returns what is wrong with the specification.
func (e *UnresolvedError) Unwrap() error { return e.Why }

// dirs are all directories, the least first.
func (f *Finder) dirs() []string {
	host := f.Host
	if host == nil {
		host = HostDirs
	}
	return slices.Concat(f.Drivers, host)
}

// Resolve returns the edits of the named devices and of their specifications,
// each once. An error is an *UnresolvedError.
func (f *Finder) Resolve(names []string) (Edits, error) {
	dirs := f.dirs()
	cache, err := cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(dirs...))
	if err != nil { // documented as impossible
		return Edits{}, &UnresolvedError{Name: strings.Join(names, ", "), Dirs: dirs, Why: err}
	}
	var e Edits
	specs := map[*cdi.Spec]bool{}
	for _, name := range names {
		unresolved := func(why error) error { return &UnresolvedError{Name: name, Dirs: dirs, Why: why} }
		d := cache.GetDevice(name)
		if d == nil {
			return Edits{}, unresolved(troubles(cache))
		}
		spec := d.GetSpec()
		if !specs[spec] {
			specs[spec] = true
			if err := trusted(spec.GetPath()); err != nil {
				return Edits{}, unresolved(err)
			}
			if err := e.add(&spec.ContainerEdits, spec.GetPath()); err != nil {
				return Edits{}, unresolved(err)
			}
		}
		if err := e.add(&d.ContainerEdits, spec.GetPath()); err != nil {
			return Edits{}, unresolved(err)
		}
	}
	e.findLibraries()
	return e, nil
}

// troubles are the specifications that could not be read or contradict one
// another: the one that is looked for may be among them.
func troubles(cache *cdi.Cache) error {
	var all []error
	for _, errs := range cache.GetErrors() {
		all = append(all, errs...)
	}
	slices.SortFunc(all, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(all[:min(len(all), 3)]...)
}

// trusted refuses a specification that others than root, or whom the agent runs
// as, may change: it says which files of the host a task sees.
func trusted(path string) error {
	for _, p := range []string{filepath.Dir(path), path} {
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		if st.Uid != 0 && int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
			return fmt.Errorf("%s may be written by others than root: chown root and chmod go-w it", p)
		}
	}
	return nil
}
