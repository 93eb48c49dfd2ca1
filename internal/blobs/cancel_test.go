package blobs

import (
	"context"
	"errors"
	"strconv"
	"testing"
)

// Who is to stop does, in the middle of a large listing or deletion: a store of files
// looks at no context by itself.
func TestLongWorkOnFilesEndsWithItsContext(t *testing.T) {
	s, err := Open(t.Context(), "file://"+t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if err := s.Put(t.Context(), "a/b/"+strconv.Itoa(i), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	for _, err = range s.List(ctx, "a/") {
		if n++; n == 2 {
			cancel()
		}
	}
	if !errors.Is(err, context.Canceled) || n > 3 {
		t.Errorf("the list went on: %d entries, %v", n, err)
	}
	if err := s.Delete(ctx, "a/b/0", "a/b/1"); !errors.Is(err, context.Canceled) {
		t.Errorf("deletes went on: %v", err)
	}
	if n, err := s.DeletePrefix(ctx, "a/"); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("%d of a prefix were deleted: %v", n, err)
	}
	if n, err := s.DeletePrefix(t.Context(), "a/"); n != 5 || err != nil {
		t.Errorf("%d were left: %v", n, err)
	}
}
