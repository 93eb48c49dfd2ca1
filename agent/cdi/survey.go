package cdi

import (
	"errors"
	"maps"
	"slices"

	"tags.cncf.io/container-device-interface/pkg/cdi"
)

// A Found is a specification of the directories of a Finder.
type Found struct {
	Path    string
	Devices []string // qualified names
	Hooks   bool     // it has some, which are not run
	Refused error    // why none or one of its devices cannot be used; nil: all can
}

// Survey returns every specification of the finder's directories, by its path,
// with why it would be refused.
func (f *Finder) Survey() ([]Found, error) {
	cache, err := cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(f.dirs()...))
	if err != nil { // documented as impossible
		return nil, err
	}
	by := map[string]*Found{}
	at := func(path string) *Found {
		if by[path] == nil {
			by[path] = &Found{Path: path}
		}
		return by[path]
	}
	for path, errs := range cache.GetErrors() {
		at(path).Refused = errors.Join(errs...)
	}
	for _, name := range cache.ListDevices() {
		spec := at(cache.GetDevice(name).GetSpec().GetPath())
		spec.Devices = append(spec.Devices, name)
		edits, err := f.Resolve([]string{name})
		if spec.Refused == nil {
			spec.Refused = err
		}
		spec.Hooks = spec.Hooks || len(edits.Hooks) > 0
	}
	var out []Found
	for _, path := range slices.Sorted(maps.Keys(by)) {
		out = append(out, *by[path])
	}
	return out, nil
}
