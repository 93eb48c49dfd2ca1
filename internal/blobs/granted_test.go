package blobs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A leaving granter gives leave for all of a store, as servers do that have judged.
type leaving struct {
	s      *Store
	expire time.Duration
	asked  atomic.Int64 // calls of Grant
}

func (l *leaving) Grant(ctx context.Context, ops []Op) (out []Grant, err error) {
	l.asked.Add(1)
	for _, op := range ops {
		_, ok := OfTree(strings.TrimPrefix(op.Key, "p/"))
		x, err := l.s.Sign(ctx, op, ok)
		if err != nil && !errors.Is(err, ErrUnsigned) {
			return nil, err
		}
		out = append(out, Grant{x, l.expire})
	}
	return out, nil
}

func (l *leaving) PutObject(ctx context.Context, key string, data []byte) error {
	return l.s.PutFrom(ctx, Op{Put: true, Key: key, Bytes: int64(len(data))}, true, bytes.NewReader(data))
}

func (l *leaving) GetObject(ctx context.Context, key string, limit int64) ([]byte, error) {
	r, n, err := l.s.Reader(ctx, key, limit)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data := make([]byte, n)
	_, err = io.ReadFull(r, data)
	return data, err
}

func (l *leaving) ListPage(ctx context.Context, page string) ([]Entry, string, error) {
	var from []byte
	if page != "" {
		from = []byte(page)
	}
	out, next, err := l.s.ListPage(ctx, "p/", from, 3)
	return out, string(next), err
}

func (l *leaving) DeleteObjects(ctx context.Context, keys []string) error {
	return l.s.Delete(ctx, keys...)
}

// granted is all of a store by leave.
func granted(s *Store) (*Granted, *leaving) {
	l := &leaving{s: s, expire: time.Minute}
	g := NewGranted(l, NewGrantClient())
	g.chunk = testChunk
	return g, l
}

// A tree goes by leave as it does without: it comes back, is resumed, verified and
// pruned, and small chunks share a question.
func TestTreeByLeave(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		g, l := granted(s)
		root := sample(t, 1)
		sent, err := g.PutTree(t.Context(), upload(root, "p/"))
		if err != nil || sent.Sent != sent.Bytes {
			t.Fatalf("%+v, %v", sent, err)
		}
		if n := l.asked.Load(); n > 6 {
			t.Errorf("%d questions for 8 chunks and a manifest", n)
		}
		again, err := g.PutTree(t.Context(), upload(root, "p/"))
		if err != nil || again.Digest != sent.Digest || again.Sent != 0 {
			t.Errorf("stored again: %+v, %v", again, err)
		}
		if _, err := g.GetTree(t.Context(), sent.Key, sent.Digest, filepath.Join(t.TempDir(), "to"), 1<<30); err != nil {
			t.Error(err)
		}
		next, err := g.PutTree(t.Context(), upload(sample(t, 2), "p/"))
		if err != nil {
			t.Fatal(err)
		}
		if n, err := g.Prune(t.Context(), "p/", []string{next.Key}); n == 0 || err != nil {
			t.Errorf("%d blobs deleted, %v", n, err)
		}
		if _, err := g.GetTree(t.Context(), sent.Key, sent.Digest, filepath.Join(t.TempDir(), "to"), 1<<30); !errors.Is(err, ErrNotFound) {
			t.Errorf("what was pruned: %v", err)
		}
		if _, err := g.GetTree(t.Context(), next.Key, next.Digest, filepath.Join(t.TempDir(), "to"), 1<<30); err != nil {
			t.Errorf("what was kept: %v", err)
		}
		if _, err := g.Get(t.Context(), next.Key, 10); !errors.Is(err, ErrCorrupt) {
			t.Errorf("a blob that is larger than it may be: %v", err)
		}
	})
}

// A grant that has expired is asked for again; one that expires at once is no leave.
func TestGrantsThatExpire(t *testing.T) {
	g, l := granted(open(t, startS3(t).store("s3")))
	l.expire = grantSpare + 20*time.Millisecond
	if err := g.Prepare(t.Context(), []Op{{Put: true, Key: "p/a", Bytes: 1}}); err != nil {
		t.Fatal(err)
	}
	<-time.After(30 * time.Millisecond)
	if err := g.Put(t.Context(), "p/a", []byte("x")); err != nil || l.asked.Load() != 2 {
		t.Errorf("%v after %d questions", err, l.asked.Load())
	}
	l.expire = time.Second
	if err := g.Put(t.Context(), "p/b", []byte("x")); err == nil || !strings.Contains(err.Error(), "expire at once") {
		t.Error(err)
	}
}

// request uses a signed URL as anybody could who has it.
func request(t *testing.T, method string, x Signed, url string, body []byte) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range x.Header {
		req.Header.Set(name, value)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	return res.StatusCode
}

// A signed URL is leave for one method, one key and one size, and, of S3, for one
// blob that is not there yet.
func TestSignedURLIsForOneThing(t *testing.T) {
	srv := startS3(t)
	for _, scheme := range []string{"s3", "gs"} {
		t.Run(scheme, func(t *testing.T) {
			s := open(t, srv.store(scheme))
			if err := s.Put(t.Context(), "other", []byte("theirs")); err != nil {
				t.Fatal(err)
			}
			put, err := s.Sign(t.Context(), Op{Put: true, Key: "mine-" + scheme, Bytes: 4}, true)
			if err != nil {
				t.Fatal(err)
			}
			get, err := s.Sign(t.Context(), Op{Key: "mine-" + scheme}, false)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range []struct {
				name, method string
				x            Signed
				url          string
				body         string
				want         bool
			}{
				{"larger", "PUT", put, put.URL, "12345", false},
				{"smaller", "PUT", put, put.URL, "123", false},
				{"another key", "PUT", put, strings.Replace(put.URL, "mine-"+scheme, "other", 1), "1234", false},
				{"a key within", "PUT", put, strings.Replace(put.URL, "mine-"+scheme, "mine-"+scheme+"/a", 1), "1234", false},
				{"longer than it was signed for", "PUT", put, strings.Replace(put.URL, "X-Amz-Expires=300", "X-Amz-Expires=3000", 1), "1234", false},
				{"another method", "DELETE", put, put.URL, "", false},
				{"read with leave to store", "GET", put, put.URL, "", false},
				{"what it is for", "PUT", put, put.URL, "1234", true},
				{"once more", "PUT", put, put.URL, "5678", scheme == "gs"},
				{"read", "GET", get, get.URL, "", true},
				{"store with leave to read", "PUT", get, get.URL, "1234", false},
				{"read another", "GET", get, strings.Replace(get.URL, "mine-"+scheme, "other", 1), "", false},
				{"list", "GET", get, strings.Replace(get.URL, "/some/prefix/mine-"+scheme, "", 1), "", false},
			} {
				if code := request(t, c.method, c.x, c.url, []byte(c.body)); (code == http.StatusOK) != c.want {
					t.Errorf("%s: %d", c.name, code)
				}
			}
			if data, err := s.Get(t.Context(), "other", 100); err != nil || string(data) != "theirs" {
				t.Errorf("%q, %v", data, err)
			}
		})
	}
}

// What breaks off leaves nothing, and what is there is not replaced.
func TestPutFrom(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		op := Op{Put: true, Key: "a/b", Bytes: 4}
		for _, text := range []string{"", "123", "12345"} {
			if err := s.PutFrom(t.Context(), op, true, strings.NewReader(text)); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%q: %v", text, err)
			}
			if there, err := s.Exists(t.Context(), op.Key); there || err != nil {
				t.Fatalf("%q is there: %v", text, err)
			}
		}
		if err := s.PutFrom(t.Context(), op, true, strings.NewReader("1234")); err != nil {
			t.Fatal(err)
		}
		if err := s.PutFrom(t.Context(), op, true, strings.NewReader("5678")); err != nil {
			t.Errorf("once more: %v", err)
		}
		if err := s.PutFrom(t.Context(), Op{Put: true, Key: op.Key, Bytes: 5}, true, strings.NewReader("56789")); !errors.Is(err, ErrThere) {
			t.Errorf("with another size: %v", err)
		}
		if data, err := s.Get(t.Context(), op.Key, 100); err != nil || string(data) != "1234" {
			t.Errorf("%q, %v", data, err)
		}
	})
}

func TestNamesWithinTreesAndLogs(t *testing.T) {
	d := strings.Repeat("0a", 32)
	for name, want := range map[string]bool{
		"chunks/" + d: true, "manifests/" + d: true, "chunks/" + d[1:]: false, "chunks/" + d + "0a": false, "chunks/" + strings.ToUpper(d): false,
		"chunks/../" + d: false, "chunks//" + d: false, "chunks/" + d + "/": false, "/chunks/" + d: false, "chunks%2f" + d: false, "chunks/": false, "": false,
		"manifests/chunks/" + d: false,
	} {
		if _, ok := OfTree(name); ok != want {
			t.Errorf("%q: %v", name, ok)
		}
	}
	for name, want := range map[string]bool{
		"index": true, "stdout/0": true, "stderr/123": true, "stdout/01": false, "stdout/-1": false, "stdout/+1": false, "stdout": false, "stdout/": false,
		"stdout/0/..": false, "stdin/0": false, "index/": false, "../index": false, "stdout/99999999999999999999": false,
	} {
		if _, once, ok := OfLog(name); ok != want || once != (name == "index") {
			t.Errorf("%q: %v", name, ok)
		}
	}
}

// BenchmarkSign signs as many URLs as an agent may ask for at once.
func BenchmarkSign(b *testing.B) {
	b.Setenv("AWS_ACCESS_KEY_ID", "the-id")
	b.Setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
	b.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	s, err := Open(b.Context(), "s3://bucket/prefix?region=eu-west-1")
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	for b.Loop() {
		for range MaxOps {
			if _, err := s.Sign(b.Context(), Op{Put: true, Key: "checkpoints/a/chunks/b", Bytes: chunkBytes}, true); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// What a store says of a refusal goes to the task's user: its code and sentence, not
// the keys and signatures that an answer of S3 has beside them.
func TestRefusalOfTheStoreTellsNoKeys(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>InvalidAccessKeyId</Code><AWSAccessKeyId>AKIASERVERS</AWSAccessKeyId><Message>The key does not exist.</Message><Resource>/bucket/p/a</Resource></Error>`)
	}))
	defer srv.Close()
	g, _ := granted(open(t, "file://"+t.TempDir()))
	err := g.request(t.Context(), &Op{Key: "p/a"}, &Grant{Signed: Signed{URL: srv.URL}}, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "InvalidAccessKeyId: The key does not exist.") || strings.Contains(err.Error(), "AKIA") {
		t.Error(err)
	}
}
