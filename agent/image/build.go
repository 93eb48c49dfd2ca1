package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// A Local is an image made of files of this machine, to be pushed or written.
type Local struct {
	image v1.Image
	// What says in a few words what it was read from.
	What string
}

// OpenLocal reads an image from a path: an OCI layout's directory, an archive
// of docker save or of an OCI layout's image, a directory, whose files become
// the image's root, or one program, which becomes its entrypoint. The path of a
// layout or an archive may have a tag behind a colon.
func OpenLocal(path string) (*Local, error) {
	path = strings.TrimPrefix(strings.TrimPrefix(path, layoutPrefix), archivePrefix)
	tag := ""
	fi, err := os.Stat(path)
	if i := strings.LastIndexByte(path, ':'); errors.Is(err, fs.ErrNotExist) && i > 0 {
		path, tag = path[:i], path[i+1:]
		fi, err = os.Stat(path)
	}
	if err != nil {
		return nil, err
	}
	l := &Local{}
	switch {
	case fi.IsDir() && exists(filepath.Join(path, "index.json")):
		l.What = "an OCI layout"
		idx, err := layout.ImageIndexFromPath(path)
		if err == nil {
			l.image, err = pick(idx, tag, 0)
		}
		return l, wrapLocal(path, err)
	case fi.IsDir():
		l.What = "a directory"
		l.image, err = rootOf(path, Run{})
	case isArchive(path):
		l.What = "an archive"
		l.image, err = readArchive(path, tag)
	case fi.Mode().Perm()&0o111 != 0:
		l.What = "a program"
		l.image, err = rootOf(path, Run{Entrypoint: []string{"/" + filepath.Base(path)}})
	default:
		err = errors.New("it is no OCI layout, no archive, no directory and no program")
	}
	return l, wrapLocal(path, err)
}

func wrapLocal(path string, err error) error {
	if err != nil {
		return fmt.Errorf("image of %s: %w", path, err)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// isArchive reports whether a file is a tar archive.
func isArchive(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	_, err = tar.NewReader(f).Next()
	return err == nil
}

func readArchive(path, tag string) (v1.Image, error) {
	if tag == "" {
		return tarball.ImageFromPath(path, nil)
	}
	t, err := name.NewTag(tag)
	if err != nil {
		return nil, err
	}
	return tarball.ImageFromPath(path, &t)
}

// Build makes an image whose root is what is in dir, and which is run as run
// says. The same files make the same image: owners are root, times are zero.
func Build(dir string, run Run) (*Local, error) {
	img, err := rootOf(dir, run)
	if err != nil {
		return nil, wrapLocal(dir, err)
	}
	return &Local{image: img, What: "a directory"}, nil
}

// rootOf makes an image of a directory, or of one file.
func rootOf(path string, run Run) (v1.Image, error) {
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		r, w := io.Pipe()
		go func() { w.CloseWithError(writeRoot(w, path)) }()
		return r, nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(base, layer)
	if err != nil {
		return nil, err
	}
	c, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	c = c.DeepCopy()
	c.OS, c.Architecture = platform.OS, platform.Architecture
	c.Config = v1.Config{
		Entrypoint: run.Entrypoint, Cmd: run.Cmd, Env: run.Env, WorkingDir: run.WorkingDir, User: run.User, StopSignal: run.StopSignal,
	}
	return mutate.ConfigFile(img, c)
}

// writeRoot writes a directory's files, or one file, as a layer.
func writeRoot(to io.Writer, path string) error {
	w := tar.NewWriter(to)
	err := filepath.WalkDir(path, func(at string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(path, at)
		if err != nil || rel == "." && d.IsDir() {
			return err
		}
		if rel == "." {
			rel = filepath.Base(path)
		}
		return writeEntry(w, at, filepath.ToSlash(rel), d)
	})
	return errors.Join(err, w.Close())
}

func writeEntry(w *tar.Writer, at, rel string, d fs.DirEntry) error {
	fi, err := d.Info()
	if err != nil {
		return err
	}
	target := ""
	switch {
	case fi.Mode()&fs.ModeSymlink != 0:
		if target, err = os.Readlink(at); err != nil {
			return err
		}
	case !fi.IsDir() && !fi.Mode().IsRegular():
		return fmt.Errorf("%s is no file, directory or symbolic link, which is all that an image may have", at)
	}
	full, err := tar.FileInfoHeader(fi, target)
	if err != nil {
		return err
	}
	h := &tar.Header{Typeflag: full.Typeflag, Name: rel, Linkname: target, Mode: int64(fi.Mode().Perm()), Size: full.Size}
	if fi.IsDir() {
		h.Name += "/"
	}
	if err := w.WriteHeader(h); err != nil || !fi.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(at)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// WriteLayout writes the image into dir as an OCI layout, and returns its digest.
func (l *Local) WriteLayout(dir string) (string, error) {
	p, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = p.AppendImage(l.image)
	}
	if err != nil {
		return "", fmt.Errorf("write an OCI layout: %w", err)
	}
	return l.Digest()
}

// Digest returns the digest of the image's manifest.
func (l *Local) Digest() (string, error) {
	h, err := l.image.Digest()
	return h.String(), err
}

// A Destination says where an image is pushed to.
type Destination struct {
	// Name is the image's name; one without a registry gets Registry in front.
	Name, Registry string
	// Credentials is a file as the agent's, "" for none.
	Credentials string
	// Progress is called with the bytes that were sent and are to be sent.
	Progress func(done, total int64)
}

// Push sends the image to a registry, and returns its name there by tag and by
// digest. Layers that the registry has are not sent again.
func (l *Local) Push(ctx context.Context, to Destination) (tag, digest string, err error) {
	ref, err := name.ParseReference(to.full())
	if err != nil {
		return "", "", fmt.Errorf("image %q is not a name such as app:v1 or registry.example.com/team/app:v1: %w", clip(to.Name), err)
	}
	if _, pinned := ref.(name.Digest); pinned {
		return "", "", fmt.Errorf("image %q names a digest, which the image has by itself: push to a tag", clip(to.Name))
	}
	c := credentials{path: to.Credentials}
	if err := c.check(); err != nil {
		return "", "", err
	}
	options := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(&c), remote.WithUserAgent("gpuai")}
	told := make(chan struct{})
	close(told)
	if to.Progress != nil {
		updates := make(chan v1.Update, 16)
		options = append(options, remote.WithProgress(updates))
		told = make(chan struct{})
		go func() {
			defer close(told)
			for u := range updates {
				if u.Error == nil {
					to.Progress(u.Complete, u.Total)
				}
			}
		}()
	}
	err = remote.Write(ref, l.image, options...)
	if err != nil {
		return "", "", fmt.Errorf("push to %s: %w", ref.Context().RegistryStr(), err)
	}
	<-told
	h, err := l.image.Digest()
	if err != nil {
		return "", "", err
	}
	return ref.Name(), ref.Context().Digest(h.String()).Name(), nil
}

// full is the destination's name with its registry.
func (d *Destination) full() string {
	first, _, more := strings.Cut(d.Name, "/")
	if more && (strings.ContainsAny(first, ".:") || first == "localhost") || d.Registry == "" {
		return d.Name
	}
	return d.Registry + "/" + d.Name
}
