package image

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// An Image is an unpacked image.
type Image struct {
	// Key names it in the store: sha256 in hex.
	Key string `json:"key"`
	// Names are the digests by which it was asked for: REPOSITORY@DIGEST.
	Names []string `json:"names"`
	// Bytes is what it takes in the store.
	Bytes int64 `json:"bytes"`
	// Run says how its makers want it to be run.
	Run Run `json:"run"`

	// Root is the directory with its files. They belong to users 0 to 65535
	// of the host as the image has them, and must be mounted read-only, with
	// the users of the task's namespace in place of these.
	Root string `json:"-"`
	// Resolved is the digest that this request's name stands for.
	Resolved string `json:"-"`
}

// Digest is the part of Resolved that says what the image is.
func (img *Image) Digest() string {
	if _, after, ok := strings.Cut(img.Resolved, "@"); ok {
		return after
	}
	return img.Resolved
}

// A Run is an image's configuration, as far as a task's start needs it.
type Run struct {
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
	Env        []string `json:"env,omitempty"`
	WorkingDir string   `json:"working_dir,omitempty"`
	User       string   `json:"user,omitempty"` // "", "1000", "app", "1000:100"
	StopSignal string   `json:"stop_signal,omitempty"`
}

// Limits of a configuration: it becomes part of a task's start.
const (
	maxArgs     = 4096
	maxArgBytes = 512 << 10
)

// newRun reads an image's configuration.
func newRun(c *v1.ConfigFile) (Run, error) {
	if c.OS != "" && c.OS != platform.OS || c.Architecture != "" && c.Architecture != platform.Architecture {
		return Run{}, &RefusedError{Reason: fmt.Sprintf("it is for %s/%s, and this node is %s", clip(c.OS), clip(c.Architecture), platform)}
	}
	r := Run{
		Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, Env: c.Config.Env,
		WorkingDir: c.Config.WorkingDir, User: c.Config.User, StopSignal: c.Config.StopSignal,
	}
	n, bytes := 0, len(r.WorkingDir)+len(r.User)+len(r.StopSignal)
	for _, s := range slices.Concat(r.Entrypoint, r.Cmd, r.Env) {
		n, bytes = n+1, bytes+len(s)
	}
	if n > maxArgs || bytes > maxArgBytes {
		return Run{}, &RefusedError{Reason: fmt.Sprintf("its configuration has %d arguments and variables of %d bytes, more than %d or %d", n, bytes, maxArgs, maxArgBytes)}
	}
	return r, nil
}

// read reads the image of a key.
func (s *Store) read(key string) (*Image, error) {
	b, err := os.ReadFile(s.path(imagesDir, key, metaFile))
	if err != nil {
		return nil, err
	}
	var img Image
	if err := json.Unmarshal(b, &img); err != nil {
		return nil, fmt.Errorf("image %s in the cache: %w", key, err)
	}
	if img.Key != key || img.Bytes <= 0 {
		return nil, fmt.Errorf("image %s in the cache is described as another", key)
	}
	img.Root = s.path(imagesDir, key, rootDir)
	return &img, nil
}

// write writes an image's description into dir.
func (img *Image) write(path string) error {
	b, err := json.Marshal(img)
	if err != nil {
		return err
	}
	return writeFile(path, append(b, '\n'))
}
