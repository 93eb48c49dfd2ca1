package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// A source is an image where it comes from, resolved.
type source struct {
	image v1.Image
	// key names the image in the cache: the digest of its manifest, or of its
	// configuration when it comes from a docker archive, which has no manifest.
	key v1.Hash
	// resolved is the name that means this image for ever, REPOSITORY@DIGEST;
	// for a file it is KEY.
	resolved string
	remote   bool
	// origin is the repository that it comes from, "" for files.
	origin string
	// layers are the blobs that the manifest names as layers, once check has
	// found it sound; nil for files.
	layers *layerSet
}

func (src *source) digest() string { return (&Image{Resolved: src.resolved}).Digest() }

// A layerSet names blobs by their digests, for the transport of one request.
type layerSet struct {
	mu  sync.Mutex // guards below
	has map[string]bool
}

func (l *layerSet) add(digest string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.has == nil {
		l.has = map[string]bool{}
	}
	l.has[digest] = true
}

func (l *layerSet) contains(digest string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.has[digest]
}

// layersKey is a context's *layerSet.
type layersKey struct{}

// maxManifest bounds a manifest, an index, a configuration and what a
// registry's token service says.
const maxManifest = 4 << 20

var platform = v1.Platform{OS: "linux", Architecture: runtime.GOARCH}

// find resolves a reference.
func (s *Store) find(ctx context.Context, r Reference) (*source, error) {
	var src *source
	var err error
	if r.registry != nil {
		src, err = s.findRemote(ctx, r)
	} else {
		src, err = s.findFile(r)
	}
	if err != nil {
		return nil, err
	}
	return src, src.check()
}

func (s *Store) findRemote(ctx context.Context, r Reference) (*source, error) {
	layers := &layerSet{}
	ctx = context.WithValue(ctx, layersKey{}, layers) // the library asks for blobs with it, too
	d, err := remote.Get(r.registry, s.remote(ctx)...)
	if err != nil {
		return nil, s.explain(r, err)
	}
	img, err := d.Image()
	if err != nil {
		return nil, s.explain(r, err)
	}
	key, err := img.Digest()
	if err != nil {
		return nil, s.explain(r, err)
	}
	return &source{
		image: img, key: key, resolved: r.registry.Context().Digest(d.Digest.String()).Name(),
		remote: true, origin: r.registry.Context().Name(), layers: layers,
	}, nil
}

func (s *Store) remote(ctx context.Context) []remote.Option {
	return []remote.Option{
		remote.WithContext(ctx), remote.WithTransport(s.transport), remote.WithAuthFromKeychain(&s.credentials),
		remote.WithPlatform(platform), remote.WithUserAgent("gpuai-agent"),
	}
}

// findFile opens an image of the node's own files, if its operator has allowed
// the directory.
func (s *Store) findFile(r Reference) (*source, error) {
	path, err := filepath.EvalSymlinks(r.path)
	if err != nil {
		if !s.allowed(filepath.Clean(r.path)) {
			err = errNotAllowed
		}
		return nil, fileError(r, err)
	}
	if !s.allowed(path) {
		return nil, fileError(r, errNotAllowed)
	}
	if r.prefix == layoutPrefix {
		return findLayout(r, path)
	}
	var tag *name.Tag
	if r.tag != "" {
		t, err := name.NewTag(r.tag)
		if err != nil {
			return nil, fileError(r, err)
		}
		tag = &t
	}
	img, err := tarball.ImageFromPath(path, tag)
	if err != nil {
		return nil, fileError(r, err)
	}
	key, err := img.ConfigName()
	if err != nil {
		return nil, fileError(r, err)
	}
	return &source{image: img, key: key, resolved: key.String()}, nil
}

// errNotAllowed hides whether a file is there.
var errNotAllowed = errors.New("the node's operator has not allowed images of that directory")

func fileError(r Reference, err error) error {
	if errors.Is(err, errNotAllowed) || errors.Is(err, os.ErrNotExist) {
		return &UnavailableError{Image: r.text, Reason: err.Error(), Permanent: true}
	}
	return &RefusedError{Reason: fmt.Sprintf("%s cannot be read: %v", clip(r.text), err)}
}

// allowed reports whether a path is in a directory for images.
func (s *Store) allowed(path string) bool {
	for _, dir := range s.cfg.Files {
		real, err := filepath.EvalSymlinks(dir)
		if err == nil && (path == real || strings.HasPrefix(path, strings.TrimSuffix(real, "/")+"/")) {
			return true
		}
	}
	return false
}

func findLayout(r Reference, path string) (*source, error) {
	idx, err := layout.ImageIndexFromPath(path)
	if err != nil {
		return nil, fileError(r, err)
	}
	img, err := pick(idx, r.tag, 0)
	if err != nil {
		return nil, fileError(r, err)
	}
	key, err := img.Digest()
	if err != nil {
		return nil, fileError(r, err)
	}
	return &source{image: img, key: key, resolved: key.String()}, nil
}

// maxIndexDepth bounds indexes of indexes.
const maxIndexDepth = 3

// pick returns the image of an index with a tag, for this machine.
func pick(idx v1.ImageIndex, tag string, depth int) (v1.Image, error) {
	m, err := idx.IndexManifest()
	if err != nil {
		return nil, err
	}
	var fit []v1.Descriptor
	for _, d := range m.Manifests {
		switch {
		case tag != "" && d.Annotations["org.opencontainers.image.ref.name"] != tag:
		case d.Platform != nil && !d.Platform.Satisfies(platform):
		case d.MediaType.IsImage() || d.MediaType.IsIndex():
			fit = append(fit, d)
		}
	}
	switch {
	case len(fit) == 0:
		return nil, fmt.Errorf("it has no image %q for %s", tag, platform)
	case len(fit) > 1:
		return nil, fmt.Errorf("it has %d images for %s: name one by its tag", len(fit), platform)
	case fit[0].MediaType.IsImage():
		return idx.Image(fit[0].Digest)
	case depth >= maxIndexDepth:
		return nil, errors.New("its indexes are nested too deep")
	}
	below, err := idx.ImageIndex(fit[0].Digest)
	if err != nil {
		return nil, err
	}
	return pick(below, "", depth+1)
}

// check refuses a manifest that contradicts itself, before anything is fetched
// by it.
func (src *source) check() error {
	m, err := src.image.Manifest()
	if err != nil {
		return &RefusedError{Reason: fmt.Sprintf("its manifest cannot be read: %v", err)}
	}
	switch {
	case m.Config.Size > maxManifest:
		return &RefusedError{Reason: fmt.Sprintf("its configuration has %d bytes, more than %d", m.Config.Size, maxManifest)}
	case m.Config.Size < 0: // the library takes -1 for "until the registry ends"
		return &RefusedError{Reason: fmt.Sprintf("its manifest gives its configuration %d bytes", m.Config.Size)}
	}
	for i, l := range m.Layers {
		if l.Size < 0 {
			return &RefusedError{Layer: i + 1, Reason: fmt.Sprintf("has %d bytes, by its manifest", l.Size)}
		}
		if l.MediaType.IsDistributable() && !l.MediaType.IsLayer() {
			return &RefusedError{Layer: i + 1, Reason: fmt.Sprintf("is of type %q: this is not a container image", clip(string(l.MediaType)))}
		}
	}
	if src.layers != nil {
		for _, l := range m.Layers {
			src.layers.add(l.Digest.String())
		}
	}
	return nil
}

// An UnavailableError says why an image cannot be had.
type UnavailableError struct {
	Image, Reason string
	// Permanent says that trying again, on this node, does not help.
	Permanent bool
}

// Error says it in one sentence.
func (e *UnavailableError) Error() string {
	return fmt.Sprintf("image %s: %s", clip(e.Image), e.Reason)
}

// explain says what a registry's answer means for who asked for the image.
func (s *Store) explain(r Reference, err error) error {
	registry := r.registry.Context().RegistryStr()
	var answer *transport.Error
	var refused *RefusedError
	switch {
	case errors.As(err, &refused), errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &answer) && (answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden):
		// Many registries answer so for what does not exist.
		where := "this node has no file of registry credentials: its operator names one with --registry-credentials FILE of gpuai agent run, in the form of docker's config.json"
		if s.credentials.path != "" {
			where = "check its name, and what the node's file of credentials, " + s.credentials.path + ", has for " + registry + "; it is read again when it has changed"
		}
		return &UnavailableError{Image: r.text, Permanent: true, Reason: fmt.Sprintf(
			"registry %s denies it (%d): it does not exist, or the credentials are missing or wrong; %s", registry, answer.StatusCode, where)}
	case errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound:
		return &UnavailableError{Image: r.text, Permanent: true, Reason: "registry " + registry + " has no such image or tag: check its name, and that it was pushed"}
	case errors.As(err, &answer) && answer.StatusCode/100 == 4 && answer.StatusCode != http.StatusTooManyRequests:
		return &UnavailableError{Image: r.text, Permanent: true, Reason: fmt.Sprintf("registry %s answers %d", registry, answer.StatusCode)}
	case errors.As(err, &answer): // and not what it says: it may be a service of the node's network that is no registry
		return &UnavailableError{Image: r.text, Reason: fmt.Sprintf("registry %s answers %d: it is tried again", registry, answer.StatusCode)}
	case errors.Is(err, errForbiddenAddress):
		return &UnavailableError{Image: r.text, Permanent: true, Reason: "registry " + registry + ": " + errForbiddenAddress.Error()}
	case strings.Contains(err.Error(), "no child with platform"):
		return &UnavailableError{Image: r.text, Permanent: true, Reason: fmt.Sprintf("it has no image for %s", platform)}
	}
	return &UnavailableError{Image: r.text, Reason: fmt.Sprintf("registry %s: %v", registry, err)}
}
