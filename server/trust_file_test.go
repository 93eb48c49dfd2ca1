package server

import (
	"os"
	"testing"

	"github.com/gpuai/gpuai/store"
)

// Who reads ca.pem while a certificate is renewed sees the old or the new text, whole.
func TestTrustFileIsReplacedWhole(t *testing.T) {
	t.Parallel()
	s := formSecure(t, 1, 0).servers[0]
	path := s.dir.Path(store.TrustFile)
	reader, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.warden.keep(s.dir, s.source().Credential()); err != nil {
		t.Fatal(err)
	}
	old, err := reader.Stat()
	if err != nil {
		t.Fatal(err)
	}
	now, err := os.Stat(path)
	switch got, err2 := os.ReadFile(path); {
	case err != nil || err2 != nil || string(got) != string(want):
		t.Errorf("it holds %q: %v, %v", got, err, err2)
	case os.SameFile(old, now):
		t.Error("it is written in place")
	case now.Mode() != old.Mode() || now.Mode().Perm()&0o044 != 0o044:
		t.Errorf("its mode is %s, and was %s", now.Mode(), old.Mode())
	}
}
