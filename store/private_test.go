package store

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPrivateFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "keys")
	if b, err := ReadPrivate(path); b != nil || err != nil {
		t.Errorf("of a file that is not there: %q, %v", b, err)
	}
	for _, text := range []string{"one", "two"} {
		if err := WritePrivate(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if b, err := ReadPrivate(path); string(b) != text || err != nil {
			t.Errorf("%q, %v", b, err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadPrivate(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a file that others can read: %v", err)
	}
}
