package blobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"gocloud.dev/blob"
	"gocloud.dev/blob/fileblob"
	"gocloud.dev/gcerrors"
)

var (
	// ErrNotFound is returned, wrapped with the key, for a blob that is not there.
	ErrNotFound = errors.New("the blob is not in the store")
	// ErrCorrupt is returned, wrapped with what is wrong, for a blob that is not
	// what its digest says.
	ErrCorrupt = errors.New("the blob is damaged")
)

var _ Objects = (*Store)(nil)

// A Store is a bucket, or a directory. It is safe for concurrent use.
type Store struct {
	Trees
	bucket *blob.Bucket
	dir    string // of a store of files, else ""
	sign   signing

	mu     sync.Mutex      // guards below
	synced map[string]bool // directories of dir whose entries are on the disk
}

// Check says what is wrong with the URL of a store, without opening it:
//
//	file:///var/lib/checkpoints           a directory, of a file system that all share
//	s3://bucket/prefix?region=eu-west-1   S3; &endpoint=https://host for another service
//	gs://bucket/prefix                    Google Cloud Storage, by its S3 interface
//
// &unconditional=1 is for a service behind an endpoint that refuses a PUT with
// If-None-Match.
//
// Credentials are in the environment, never in the URL.
func Check(storeURL string) error {
	_, err := parse(storeURL)
	return err
}

// replaceParam is the parameter of an S3 store that cannot be told to replace nothing.
const replaceParam = "unconditional"

func parse(storeURL string) (*url.URL, error) {
	u, err := url.Parse(storeURL)
	if err != nil {
		return nil, errors.New("the URL of a store cannot be read: write file:///dir, s3://bucket or gs://bucket")
	}
	switch {
	case u.Scheme != "file" && u.Scheme != "s3" && u.Scheme != "gs":
		return nil, fmt.Errorf("a store cannot be at %q: write file:///dir, s3://bucket or gs://bucket", u.Redacted())
	case u.User != nil:
		return nil, errors.New("the URL of a store has no user or password: give credentials by the environment, such as AWS_ACCESS_KEY_ID")
	case u.Fragment != "":
		return nil, fmt.Errorf("the URL of the store %q has a fragment", u)
	case u.Scheme == "file" && (u.Host != "" || !path.IsAbs(u.Path) || u.RawQuery != ""):
		return nil, fmt.Errorf("a store of files is an absolute path, as in file:///var/lib/checkpoints, and not %q", u)
	case u.Query().Has(replaceParam) && (u.Scheme != "s3" || u.Query().Get(replaceParam) != "1"):
		return nil, errors.New("unconditional=1 is of s3:// stores, and has no other value")
	case u.Scheme != "file" && u.Host == "":
		return nil, fmt.Errorf("the URL of the store %q names no bucket", u)
	}
	return u, nil
}

// Open opens the store of a URL, see Check. A directory is made if it is not
// there; a bucket must be, which its first use tells.
func Open(ctx context.Context, storeURL string) (*Store, error) {
	u, err := parse(storeURL)
	if err != nil {
		return nil, err
	}
	s := &Store{synced: map[string]bool{}}
	s.Trees = Trees{s, chunkBytes}
	switch u.Scheme {
	case "file":
		s.dir = filepath.Clean(u.Path)
		s.bucket, err = fileblob.OpenBucket(s.dir, &fileblob.Options{
			CreateDir: true, DirFileMode: 0o700, NoTempDir: true, Metadata: fileblob.MetadataDontWrite,
		})
	case "s3":
		s.sign = signOnce
		if u.Query().Get(replaceParam) != "" {
			s.sign = signSize
		}
		s.bucket, err = openS3(ctx, u)
	default:
		s.sign = signSize // its S3 interface knows the condition for reads alone
		s.bucket, err = openGS(ctx, u)
	}
	if err != nil {
		return nil, fmt.Errorf("open the store %s: %w", u, err)
	}
	if p := strings.Trim(u.Path, "/"); p != "" && u.Scheme != "file" {
		s.bucket = blob.PrefixedBucket(s.bucket, p+"/")
	}
	return s, nil
}

// Close ends the use of the store.
func (s *Store) Close() error { return s.bucket.Close() }

// keys are the keys that every kind of store keeps as they are.
var keys = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*$`)

// onePart is above every blob that is put at once: it takes one request.
const onePart = 16 << 20

// Put implements Objects.
func (s *Store) Put(ctx context.Context, key string, data []byte) error {
	if !keys.MatchString(key) {
		return fmt.Errorf("%q is no key of a blob", key)
	}
	err := s.bucket.WriteAll(ctx, key, data, &blob.WriterOptions{
		ContentType: "application/octet-stream", DisableContentTypeDetection: true, BufferSize: onePart,
	})
	if err == nil && s.dir != "" {
		err = s.sync(key)
	}
	if err != nil {
		return fmt.Errorf("store %s: %w", key, err)
	}
	return nil
}

// Prepare implements Objects. A store needs no leave.
func (s *Store) Prepare(context.Context, []Op) error { return nil }

// sync has a new file, and the entries of the directories that lead to it,
// written to the disk.
func (s *Store) sync(key string) error {
	at := filepath.Join(s.dir, filepath.FromSlash(key))
	if err := syncPath(at); err != nil {
		return err
	}
	for first := true; at != s.dir; first = false {
		at = filepath.Dir(at)
		s.mu.Lock()
		known := s.synced[at]
		s.mu.Unlock()
		if known && !first {
			return nil
		}
		if err := syncPath(at); err != nil {
			return err
		}
		s.mu.Lock()
		s.synced[at] = true
		s.mu.Unlock()
	}
	return nil
}

func syncPath(at string) error {
	f, err := os.Open(at)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Get reads a blob of at most limit bytes. What it holds is not verified.
func (s *Store) Get(ctx context.Context, key string, limit int64) ([]byte, error) {
	r, err := s.bucket.NewReader(ctx, key, nil)
	if err != nil {
		return nil, reading(key, err)
	}
	defer r.Close()
	if r.Size() > limit {
		return nil, fmt.Errorf("%w: %s has %d bytes, of at most %d", ErrCorrupt, key, r.Size(), limit)
	}
	data := make([]byte, r.Size())
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, reading(key, err)
	}
	return data, nil
}

func reading(key string, err error) error {
	if gcerrors.Code(err) == gcerrors.NotFound {
		return fmt.Errorf("%w: %s", ErrNotFound, key)
	}
	return fmt.Errorf("read %s: %w", key, err)
}

// An Entry is a blob of a listing.
type Entry struct {
	Key   string
	Bytes int64
}

// List implements Objects.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		it := s.bucket.List(&blob.ListOptions{Prefix: prefix})
		for {
			o, err := it.Next(ctx)
			if errors.Is(err, io.EOF) {
				return
			}
			if err == nil {
				err = ctx.Err() // a store of files does not look
			}
			if err != nil {
				yield(Entry{}, fmt.Errorf("list %s: %w", prefix, err))
				return
			}
			if !yield(Entry{o.Key, o.Size}, nil) {
				return
			}
		}
	}
}

// Delete implements Objects.
func (s *Store) Delete(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("delete %s: %w", key, err)
		}
		if err := s.bucket.Delete(ctx, key); err != nil && gcerrors.Code(err) != gcerrors.NotFound {
			return fmt.Errorf("delete %s: %w", key, err)
		}
	}
	return nil
}

// DeletePrefix removes the blobs whose keys begin with prefix, and says how many
// there were.
func (s *Store) DeletePrefix(ctx context.Context, prefix string) (n int, err error) {
	n, err = s.deleteIf(ctx, prefix, func(string) bool { return true })
	if err == nil && s.dir != "" && strings.HasSuffix(prefix, "/") && keys.MatchString(strings.TrimSuffix(prefix, "/")) {
		err = os.RemoveAll(filepath.Join(s.dir, filepath.FromSlash(prefix))) // the directories
	}
	return n, err
}

// Below returns the names directly below a prefix that ends in "/" which further
// keys are below of, such as "a" for "PREFIXa/b". After an error it ends.
func (s *Store) Below(ctx context.Context, prefix string) iter.Seq2[string, error] {
	if s.dir != "" {
		return s.dirsBelow(prefix)
	}
	return func(yield func(string, error) bool) {
		it := s.bucket.List(&blob.ListOptions{Prefix: prefix, Delimiter: "/"})
		for {
			o, err := it.Next(ctx)
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield("", fmt.Errorf("list %s: %w", prefix, err))
				return
			}
			if o.IsDir && !yield(strings.TrimSuffix(strings.TrimPrefix(o.Key, prefix), "/"), nil) {
				return
			}
		}
	}
}

// dirsBelow is Below of a store of files, without a walk through all of them.
func (s *Store) dirsBelow(prefix string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		entries, err := os.ReadDir(filepath.Join(s.dir, filepath.FromSlash(prefix)))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			yield("", fmt.Errorf("list %s: %w", prefix, err))
			return
		}
		for _, e := range entries {
			if e.IsDir() && !yield(e.Name(), nil) {
				return
			}
		}
	}
}
