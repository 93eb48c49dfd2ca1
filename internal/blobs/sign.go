package blobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
)

// A signing is what a store can put into a signed URL.
type signing uint8

const (
	// signNone: files have no URLs.
	signNone signing = iota
	// signSize signs the size of what is put.
	signSize
	// signOnce signs besides that nothing is replaced.
	signOnce
)

// SignedFor is how long a signed URL is good. What has begun by then may take its
// time.
const SignedFor = 5 * time.Minute

// A Signed operation is one that whoever holds it may do, once or more, until it
// expires, with no other credentials: a request of URL with Header.
type Signed struct {
	URL    string
	Header map[string]string
}

// ErrUnsigned is returned by Sign where a store has no URLs.
var ErrUnsigned = errors.New("a store of files has no URLs")

// Sign returns a URL for one operation on one blob, good for SignedFor. What is put
// has exactly the operation's size, and replaces nothing where once says so and the
// store can hold to it.
func (s *Store) Sign(ctx context.Context, op Op, once bool) (out Signed, err error) {
	if s.sign == signNone {
		return out, ErrUnsigned
	}
	if !keys.MatchString(op.Key) {
		return out, fmt.Errorf("%q is no key of a blob", op.Key)
	}
	o := blob.SignedURLOptions{Expiry: SignedFor, Method: http.MethodGet}
	if op.Put {
		o.Method = http.MethodPut
		o.BeforeSign = func(as func(any) bool) error {
			var in *s3.PutObjectInput
			if !as(&in) {
				return errors.New("the store signs no sizes")
			}
			in.ContentLength = new(op.Bytes)
			if once && s.sign == signOnce {
				in.IfNoneMatch = new("*")
				out.Header = map[string]string{"If-None-Match": "*"}
			}
			return nil
		}
	}
	if out.URL, err = s.bucket.SignedURL(ctx, op.Key, &o); err != nil {
		return Signed{}, fmt.Errorf("sign %s: %w", op.Key, err)
	}
	return out, nil
}

// ErrThere is returned, wrapped with the key, for a blob that is there and was not
// to be replaced.
var ErrThere = errors.New("the blob is in the store already")

// Exists reports whether a blob is there.
func (s *Store) Exists(ctx context.Context, key string) (bool, error) {
	ok, err := s.bucket.Exists(ctx, key)
	if err != nil {
		return false, reading(key, err)
	}
	return ok, nil
}

// PutFrom is Put of what a reader has, which must be exactly size bytes. Where once
// is set a blob that is there is not replaced: ErrThere, unless it has that size.
func (s *Store) PutFrom(ctx context.Context, op Op, once bool, r io.Reader) error {
	if !keys.MatchString(op.Key) {
		return fmt.Errorf("%q is no key of a blob", op.Key)
	}
	if once {
		a, err := s.bucket.Attributes(ctx, op.Key)
		switch {
		case err == nil && a.Size == op.Bytes:
			return nil
		case err == nil:
			return fmt.Errorf("%w: %s", ErrThere, op.Key)
		case gcerrors.Code(err) != gcerrors.NotFound:
			return reading(op.Key, err)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // before Close it drops what was written
	w, err := s.bucket.NewWriter(ctx, op.Key, &blob.WriterOptions{
		ContentType: "application/octet-stream", DisableContentTypeDetection: true, BufferSize: onePart,
	})
	if err != nil {
		return fmt.Errorf("store %s: %w", op.Key, err)
	}
	n, err := io.Copy(w, io.LimitReader(r, op.Bytes+1))
	if err == nil && n != op.Bytes {
		err = fmt.Errorf("%w: it has %d bytes or more, and not the %d that were told", io.ErrUnexpectedEOF, n, op.Bytes)
	}
	if err != nil {
		cancel()
		return errors.Join(fmt.Errorf("store %s: %w", op.Key, err), ignored(w.Close()))
	}
	if err = w.Close(); err == nil && s.dir != "" {
		err = s.sync(op.Key)
	}
	if err != nil {
		return fmt.Errorf("store %s: %w", op.Key, err)
	}
	return nil
}

// ignored drops the error of what was given up.
func ignored(error) error { return nil }

// Reader opens a blob of at most limit bytes, as Get does, and says its size. The
// caller closes it.
func (s *Store) Reader(ctx context.Context, key string, limit int64) (io.ReadCloser, int64, error) {
	if !keys.MatchString(key) {
		return nil, 0, fmt.Errorf("%q is no key of a blob", key)
	}
	r, err := s.bucket.NewReader(ctx, key, nil)
	if err != nil {
		return nil, 0, reading(key, err)
	}
	if r.Size() > limit {
		return nil, 0, errors.Join(fmt.Errorf("%w: %s has %d bytes, of at most %d", ErrCorrupt, key, r.Size(), limit), r.Close())
	}
	return r, r.Size(), nil
}

// ListPage returns about limit blobs whose keys begin with prefix, and where the
// next page begins; nil is the first, and behind the last.
func (s *Store) ListPage(ctx context.Context, prefix string, page []byte, limit int) (out []Entry, next []byte, err error) {
	if page == nil {
		page = blob.FirstPageToken
	}
	objects, next, err := s.bucket.ListPage(ctx, page, limit, &blob.ListOptions{Prefix: prefix})
	if err != nil {
		return nil, nil, fmt.Errorf("list %s: %w", prefix, err)
	}
	for _, o := range objects {
		out = append(out, Entry{o.Key, o.Size})
	}
	return out, next, nil
}
