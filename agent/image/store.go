package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Config says where and how large a node's images are.
type Config struct {
	// Dir is the store's own directory.
	Dir string
	// MaxBytes bounds what is in Dir; 0 means DefaultMaxBytes. Images that run
	// are never taken away for it: one more is refused instead.
	MaxBytes int64
	// KeepFree is what the store leaves free on Dir's disk; 0 means
	// DefaultKeepFree.
	KeepFree int64
	Limits   Limits
	// Credentials is a file of registry credentials, "" for none.
	Credentials string
	// Files are the directories whose OCI layouts and docker archives tasks
	// may name by path; none by default.
	Files []string
	// LocalRegistry allows registries at loopback addresses. Whoever may
	// submit a job reaches the host's own services by it: for development.
	LocalRegistry bool
}

// Defaults of a Config.
const (
	DefaultMaxBytes = 100 << 30
	DefaultKeepFree = 1 << 30
)

// A Store is a node's images. Its methods may be called concurrently. No two
// stores may share a directory.
type Store struct {
	cfg         Config
	credentials credentials
	transport   http.RoundTripper

	mu      sync.Mutex               // guards below
	entries map[string]*entry        // by path below Dir
	aliases map[string]string        // a resolved name → key of its image
	holds   map[string]string        // who → key
	making  map[string]chan struct{} // by repository, and key or blob: closed when it is done
	// reserved is room promised to what is being fetched and unpacked.
	reserved int64

	cleared chan struct{} // closed when what Open found left over is deleted
}

// An entry is an image or a blob of the cache.
type entry struct {
	path  string // below Dir
	bytes int64
	used  time.Time
	pins  int // fetches that need this blob
}

// Directories of a store.
const (
	blobsDir  = "blobs"
	imagesDir = "images"
	holdsDir  = "holds"
	tmpDir    = "tmp"
	// rootDir and metaFile are in an image's directory.
	rootDir  = "root"
	metaFile = "image.json"
)

// leftPrefix begins the names of directories that were tmpDir once.
const leftPrefix = "left-"

// Open opens the store in cfg.Dir. What was never finished is put aside, and
// deleted while the store is in use already: it may be a million files.
func Open(cfg Config) (*Store, error) {
	if cfg.Dir == "" {
		return nil, errors.New("the image store needs a directory")
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	cfg.Dir, cfg.Limits = dir, cfg.Limits.filled()
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = DefaultMaxBytes
	}
	if cfg.KeepFree <= 0 {
		cfg.KeepFree = DefaultKeepFree
	}
	s := &Store{
		cfg: cfg, transport: newTransport(cfg.LocalRegistry, idleTime), entries: map[string]*entry{},
		aliases: map[string]string{}, holds: map[string]string{}, making: map[string]chan struct{}{},
		cleared: make(chan struct{}),
	}
	s.credentials.path = cfg.Credentials
	if err := s.credentials.check(); err != nil {
		return nil, err
	}
	left, err := s.putAside()
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	for _, d := range []string{blobsDir, imagesDir, holdsDir, tmpDir} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
	}
	damaged, err := s.load()
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	s.mu.Lock()
	doomed, _ := s.evict(0) // the bound may be lower than it was
	s.mu.Unlock()
	go func() {
		s.remove(slices.Concat(left, damaged, doomed))
		close(s.cleared)
	}()
	return s, nil
}

// putAside moves what an earlier store left in tmpDir out of the way, and
// returns all that is to be deleted.
func (s *Store) putAside() (left []string, err error) {
	tmp := s.path(tmpDir)
	if _, err := os.Lstat(tmp); err == nil {
		to, err := os.MkdirTemp(s.cfg.Dir, leftPrefix)
		if err == nil {
			err = os.Rename(tmp, filepath.Join(to, tmpDir))
		}
		if err != nil {
			return nil, err
		}
	}
	all, err := os.ReadDir(s.cfg.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range all {
		if strings.HasPrefix(e.Name(), leftPrefix) {
			left = append(left, s.path(e.Name()))
		}
	}
	return left, err
}

// load reads what there is, and moves away what is damaged.
func (s *Store) load() (damaged []string, err error) {
	images, err := os.ReadDir(s.path(imagesDir))
	if err != nil {
		return nil, err
	}
	for _, e := range images {
		key := e.Name()
		img, err := s.read(key)
		if err != nil { // not finished, or damaged: it is fetched again
			to, err := s.bury(&entry{path: filepath.Join(imagesDir, key)})
			if err != nil {
				return damaged, err
			}
			damaged = append(damaged, to)
			continue
		}
		fi, err := os.Stat(s.path(imagesDir, key, metaFile))
		if err != nil {
			return damaged, err
		}
		s.add(filepath.Join(imagesDir, key), img.Bytes, fi.ModTime())
		for _, name := range img.Names {
			s.aliases[name] = key
		}
	}
	blobs, err := os.ReadDir(s.path(blobsDir))
	if err != nil {
		return damaged, err
	}
	for _, e := range blobs {
		fi, err := e.Info()
		if err != nil {
			return damaged, err
		}
		s.add(filepath.Join(blobsDir, e.Name()), fi.Size(), fi.ModTime())
	}
	return damaged, s.loadHolds()
}

func (s *Store) loadHolds() error {
	holds, err := os.ReadDir(s.path(holdsDir))
	if err != nil {
		return err
	}
	for _, e := range holds {
		if strings.HasPrefix(e.Name(), ".") { // never finished
			_ = os.Remove(s.path(holdsDir, e.Name())) // what stays is passed over at the next Open, too
			continue
		}
		b, err := os.ReadFile(s.path(holdsDir, e.Name()))
		if err != nil {
			return err
		}
		s.holds[e.Name()] = strings.TrimSpace(string(b))
	}
	return nil
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.cfg.Dir}, parts...)...)
}

// add records an entry. mu is held, or the store is not open yet.
func (s *Store) add(path string, bytes int64, used time.Time) *entry {
	e := &entry{path: path, bytes: bytes, used: used}
	s.entries[path] = e
	return e
}

// use marks an entry as used now. mu is held.
func (s *Store) use(e *entry, stamp string) {
	e.used = time.Now()
	_ = os.Chtimes(stamp, e.used, e.used) // the order of eviction after a restart is worth no error
}

// claim waits until nobody else makes what, and makes it the caller's.
func (s *Store) claim(ctx context.Context, what string) (release func(), err error) {
	for {
		s.mu.Lock()
		other := s.making[what]
		if other == nil {
			mine := make(chan struct{})
			s.making[what] = mine
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.making, what)
				s.mu.Unlock()
				close(mine)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// hold keeps an image for who, and finds it. mu is held.
func (s *Store) hold(who, key string) (*Image, error) {
	e := s.entries[filepath.Join(imagesDir, key)]
	if e == nil {
		return nil, fs.ErrNotExist
	}
	img, err := s.read(key)
	if err != nil {
		return nil, err
	}
	if who != "" && s.holds[who] != key {
		if err := writeFile(s.path(holdsDir, who), []byte(key+"\n")); err != nil {
			return nil, fmt.Errorf("hold an image: %w", err)
		}
		s.holds[who] = key
	}
	s.use(e, s.path(imagesDir, key, metaFile))
	return img, nil
}

// Release gives up what who held. It may be taken away from then on.
func (s *Store) Release(who string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.release(who)
}

func (s *Store) release(who string) error {
	if _, ok := s.holds[who]; !ok {
		return nil
	}
	if err := os.Remove(s.path(holdsDir, who)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("release an image: %w", err)
	}
	delete(s.holds, who)
	return nil
}

// Retain releases the holds of all but those whom keep names: after a restart,
// those whose tasks are gone.
func (s *Store) Retain(keep func(who string) bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for who := range s.holds {
		if !keep(who) {
			errs = append(errs, s.release(who))
		}
	}
	return errors.Join(errs...)
}

// Usage is how full a store is.
type Usage struct {
	Bytes, MaxBytes int64
	Held            int64 // of Bytes, by running tasks
	Images, Blobs   int
}

// Usage returns how full the store is.
func (s *Store) Usage() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := Usage{MaxBytes: s.cfg.MaxBytes, Bytes: s.reserved}
	for _, e := range s.entries {
		u.Bytes += e.bytes
		if s.kept(e) {
			u.Held += e.bytes
		}
		if strings.HasPrefix(e.path, imagesDir+"/") {
			u.Images++
		} else {
			u.Blobs++
		}
	}
	return u
}
