package image

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// Prefixes of images that are files of the node.
const (
	layoutPrefix  = "oci:"
	archivePrefix = "docker-archive:"
)

// A Reference names an image: in a registry ("debian:12",
// "ghcr.io/org/app@sha256:…"), in an OCI layout ("oci:/images/app:v1") or in a
// docker archive ("docker-archive:/images/app.tar").
type Reference struct {
	text     string
	registry name.Reference // nil for a file
	prefix   string         // of a file
	path     string
	tag      string // in a file; "" for the only image
}

// ParseReference reads a reference, or says what is wrong with it.
func ParseReference(s string) (Reference, error) {
	r := Reference{text: s}
	for _, prefix := range []string{layoutPrefix, archivePrefix} {
		rest, ok := strings.CutPrefix(s, prefix)
		if !ok {
			continue
		}
		r.prefix = prefix
		r.path, r.tag, _ = strings.Cut(rest, ":")
		if !filepath.IsAbs(r.path) {
			return r, fmt.Errorf("image %q: the path behind %s must be absolute", clip(s), prefix)
		}
		return r, nil
	}
	ref, err := name.ParseReference(s)
	if err != nil {
		return r, fmt.Errorf("image %q is not a name such as debian:12 or registry.example.com/team/app@sha256:…: %w", clip(s), err)
	}
	r.registry = ref
	return r, nil
}

// String returns the reference as it was given.
func (r Reference) String() string { return r.text }

// pinned returns the reference's repository and digest, if it names one.
func (r Reference) pinned() (alias string, ok bool) {
	d, ok := r.registry.(name.Digest)
	if !ok {
		return "", false
	}
	return d.Name(), true
}

// Pinned reports whether an image's name says its digest.
func Pinned(s string) bool {
	r, err := ParseReference(s)
	_, ok := r.pinned()
	return err == nil && ok
}

// at returns the reference to the image of a digest in the same repository. A
// file stays as it is: what it has must be compared.
func (r Reference) at(digest string) (Reference, error) {
	if r.registry == nil {
		return r, nil
	}
	d, err := name.NewDigest(r.registry.Context().Name() + "@" + digest)
	if err != nil {
		return r, fmt.Errorf("the region names the digest %q: %w", clip(digest), err)
	}
	r.registry = d
	return r, nil
}
