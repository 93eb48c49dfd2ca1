package blobs

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// A Granter asks the region's servers for one lease's part of the store. It is safe
// for concurrent use.
type Granter interface {
	// Grant returns leave for each operation, in their order.
	Grant(ctx context.Context, ops []Op) ([]Grant, error)
	// PutObject and GetObject use the servers' own store of files, where a Grant
	// has no URL. GetObject fails as Objects.Get does.
	PutObject(ctx context.Context, key string, data []byte) error
	GetObject(ctx context.Context, key string, limit int64) ([]byte, error)
	// ListPage and DeleteObjects are about what the lease itself has stored of
	// checkpoints. "" is the first page, and behind the last.
	ListPage(ctx context.Context, page string) (objects []Entry, next string, err error)
	DeleteObjects(ctx context.Context, keys []string) error
}

// A Grant is leave for one operation.
type Grant struct {
	Signed                  // without a URL the servers take it
	ExpiresIn time.Duration // from when it came
}

const (
	// grantSpare is how long a grant must be good for yet when it is used.
	grantSpare = 15 * time.Second
	// grantTries bounds the tries of one request, grantPause the first pause
	// between them; each is twice the one before.
	grantTries = 4
	grantPause = 100 * time.Millisecond
)

var _ Objects = (*Granted)(nil)

// Granted is the part of a store that its servers leave to one lease. Who has it
// has no credentials of the store.
type Granted struct {
	Trees
	granter Granter
	http    *http.Client

	mu   sync.Mutex // guards below
	held map[use]held
}

// A use is what a grant is for.
type use struct {
	put bool
	key string
	n   int64 // bytes of what is put
}

type held struct {
	Grant
	until time.Time
}

// NewGranted returns what g leaves to its lease. Requests of signed URLs are made
// by client.
func NewGranted(g Granter, client *http.Client) *Granted {
	s := &Granted{granter: g, http: client, held: map[use]held{}}
	s.Trees = Trees{s, chunkBytes}
	return s
}

// NewGrantClient returns a client for signed URLs.
func NewGrantClient() *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = time.Minute
	t.MaxIdleConnsPerHost = 2 * parallel
	t.DisableCompression = true
	return &http.Client{Transport: t}
}

func useOf(op *Op) use {
	u := use{put: op.Put, key: op.Key}
	if op.Put {
		u.n = op.Bytes
	}
	return u
}

// Prepare implements Objects.
func (s *Granted) Prepare(ctx context.Context, ops []Op) error {
	if len(ops) == 0 {
		return nil
	}
	asked := time.Now()
	grants, err := s.granter.Grant(ctx, ops)
	if err != nil {
		return err
	}
	if len(grants) != len(ops) {
		return fmt.Errorf("%d grants came for %d", len(grants), len(ops))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for u, h := range s.held { // of what was given up
		if asked.After(h.until) {
			delete(s.held, u)
		}
	}
	for i := range ops {
		s.held[useOf(&ops[i])] = held{grants[i], asked.Add(grants[i].ExpiresIn - grantSpare)}
	}
	return nil
}

// take returns the grant of an operation, once; a new one if there is none.
func (s *Granted) take(ctx context.Context, op Op) (g Grant, err error) {
	for range 2 {
		s.mu.Lock()
		h, ok := s.held[useOf(&op)]
		delete(s.held, useOf(&op))
		s.mu.Unlock()
		if ok && time.Now().Before(h.until) {
			return h.Grant, nil
		}
		if err := s.Prepare(ctx, []Op{op}); err != nil {
			return g, err
		}
	}
	return g, errors.New("the servers' grants expire at once")
}

// Put implements Objects.
func (s *Granted) Put(ctx context.Context, key string, data []byte) error {
	op := Op{Put: true, Key: key, Bytes: int64(len(data))}
	return s.use(ctx, op, func(g *Grant) error {
		if g.URL == "" {
			return s.granter.PutObject(ctx, key, data)
		}
		return s.request(ctx, &op, g, data, nil)
	})
}

// Get implements Objects.
func (s *Granted) Get(ctx context.Context, key string, limit int64) (data []byte, err error) {
	op := Op{Key: key, Bytes: limit}
	err = s.use(ctx, op, func(g *Grant) (err error) {
		if g.URL == "" {
			data, err = s.granter.GetObject(ctx, key, limit)
			return err
		}
		return s.request(ctx, &op, g, nil, func(res *http.Response) (err error) {
			data, err = readAll(res, key, limit)
			return err
		})
	})
	return data, err
}

// A passing error may be gone at the next try.
type passing struct{ error }

// Unwrap returns what happened.
func (p *passing) Unwrap() error { return p.error }

// use does an operation with a grant, and again with another while that may help.
func (s *Granted) use(ctx context.Context, op Op, do func(*Grant) error) error {
	verb := "read "
	if op.Put {
		verb = "store "
	}
	for try, wait := 1, grantPause; ; try, wait = try+1, 2*wait {
		g, err := s.take(ctx, op)
		if err != nil {
			return fmt.Errorf("%s%s: %w", verb, op.Key, err)
		}
		err = do(&g)
		var again *passing
		switch {
		case err == nil:
			return nil
		case errors.Is(err, ErrNotFound) || errors.Is(err, ErrCorrupt):
			return err
		case !errors.As(err, &again) || try == grantTries:
			return fmt.Errorf("%s%s: %w", verb, op.Key, err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("%s%s: %w (%w)", verb, op.Key, err, ctx.Err())
		}
	}
}

// request makes the request of a signed URL.
func (s *Granted) request(ctx context.Context, op *Op, g *Grant, body []byte, read func(*http.Response) error) error {
	method := http.MethodGet
	if op.Put {
		method = http.MethodPut
	}
	req, err := http.NewRequestWithContext(ctx, method, g.URL, bytes.NewReader(body))
	if err != nil {
		return errors.New("the servers' grant has no URL that can be read")
	}
	for name, value := range g.Header {
		req.Header.Set(name, value)
	}
	res, err := s.http.Do(req)
	if err != nil {
		return &passing{withoutURL(err)}
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode < 300 && read != nil:
		return read(res)
	case res.StatusCode < 300:
		return nil
	case op.Put && res.StatusCode == http.StatusPreconditionFailed:
		return nil // it is there: by its digest, or stored by a request whose answer was lost
	case !op.Put && res.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%w: %s", ErrNotFound, op.Key)
	}
	err = fmt.Errorf("the store answered %s%s", res.Status, saidOf(res.Body))
	if code := res.StatusCode; code >= 500 && code != http.StatusNotImplemented || code == http.StatusForbidden ||
		code == http.StatusTooManyRequests || code == http.StatusRequestTimeout || code == http.StatusConflict {
		return &passing{err}
	}
	return err
}

// saidOf is what a store of S3 says of a refusal, as far as it is for everybody: the
// rest of its answer has keys, and what was signed.
func saidOf(body io.Reader) string {
	var said struct{ Code, Message string }
	_ = xml.NewDecoder(io.LimitReader(body, 4<<10)).Decode(&said) // as far as it can be read
	if said.Code == "" {
		return ""
	}
	return fmt.Sprintf(" %.100s: %.300s", said.Code, said.Message)
}

// withoutURL takes a signed URL, which is leave, from an error that is to be logged.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return fmt.Errorf("the store cannot be reached: %w", u.Err)
	}
	return err
}

// readAll reads an answer of at most limit bytes.
func readAll(res *http.Response, key string, limit int64) ([]byte, error) {
	if res.ContentLength > limit {
		return nil, fmt.Errorf("%w: %s has %d bytes, of at most %d", ErrCorrupt, key, res.ContentLength, limit)
	}
	var b bytes.Buffer
	b.Grow(int(max(res.ContentLength, 0)) + bytes.MinRead)
	n, err := b.ReadFrom(io.LimitReader(res.Body, limit+1))
	if err != nil {
		return nil, &passing{err}
	}
	if n > limit {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", ErrCorrupt, key, limit)
	}
	return b.Bytes(), nil
}

// List implements Objects: of what the lease itself has stored of checkpoints.
func (s *Granted) List(ctx context.Context, prefix string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for page, more := "", true; more; more = page != "" {
			objects, next, err := s.granter.ListPage(ctx, page)
			if err != nil {
				yield(Entry{}, fmt.Errorf("list %s: %w", prefix, err))
				return
			}
			for _, e := range objects {
				if strings.HasPrefix(e.Key, prefix) && !yield(e, nil) {
					return
				}
			}
			page = next
		}
	}
}

// Delete implements Objects: of what the lease itself has stored of checkpoints.
func (s *Granted) Delete(ctx context.Context, keys ...string) error {
	if len(keys) == 0 {
		return nil
	}
	if err := s.granter.DeleteObjects(ctx, keys); err != nil {
		return fmt.Errorf("delete %s and others: %w", keys[0], err)
	}
	return nil
}
