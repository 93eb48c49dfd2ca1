package store

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func openDir(t *testing.T, path string) *Dir {
	t.Helper()
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestDirIsLocked(t *testing.T) {
	path := t.TempDir()
	d := openDir(t, path)
	_, err := OpenDir(path)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "by process "+strconv.Itoa(os.Getpid())) {
		t.Errorf("a second opening gave %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("a second Close gave %v", err)
	}
	openDir(t, path)
}

// TestDirIsLockedAgainstOtherProcesses runs this test binary as the holder.
func TestDirIsLockedAgainstOtherProcesses(t *testing.T) {
	if path := os.Getenv("GPUAI_TEST_HOLD"); path != "" {
		d, err := OpenDir(path)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		os.Stdout.WriteString("held\n")
		os.Stdin.Read(make([]byte, 1)) // until the parent goes
		return
	}
	path := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestDirIsLockedAgainstOtherProcesses$")
	cmd.Env = append(os.Environ(), "GPUAI_TEST_HOLD="+path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	if line := make([]byte, 5); true {
		if _, err := out.Read(line); err != nil || !bytes.HasPrefix(line, []byte("held")) {
			t.Fatalf("the holder said %q, %v", line, err)
		}
	}
	_, err = OpenDir(path)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "by process "+strconv.Itoa(cmd.Process.Pid)) {
		t.Errorf("got %v", err)
	}
	if err := cmd.Process.Kill(); err != nil { // the kernel must drop the lock
		t.Fatal(err)
	}
	cmd.Wait()
	openDir(t, path)
}

func TestDirFormat(t *testing.T) {
	cases := []struct{ name, file, want string }{
		{"newer", "2\n", "this build knows up to 1"},
		{"no number", "x", "is it a data directory of gpuai?"},
		{"empty", "", "is it a data directory of gpuai?"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path := t.TempDir()
			if err := os.WriteFile(filepath.Join(path, formatFile), []byte(c.file), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := OpenDir(path)
			if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
			if err := os.Remove(filepath.Join(path, formatFile)); err != nil {
				t.Fatal(err)
			}
			openDir(t, path) // the refusal released the lock
		})
	}
}

func TestDirWithoutFormatButWithALog(t *testing.T) {
	path := t.TempDir()
	if err := os.WriteFile(filepath.Join(path, logFile), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDir(path); !errors.Is(err, ErrFormat) {
		t.Errorf("got %v", err)
	}
}

func TestIdentityIsKept(t *testing.T) {
	path := t.TempDir()
	d := openDir(t, path)
	if _, ok := d.Identity(); ok {
		t.Error("a new directory has an identity")
	}
	want := Identity{Cluster: "c1", Server: "a", Region: "local", Formed: true, Applied: 7, AppliedTerm: 2}
	if err := d.SetIdentity(want); err != nil {
		t.Fatal(err)
	}
	if err := d.Advance(Progress{9, 3, 2, 1}); err != nil {
		t.Fatal(err)
	}
	if err := d.Advance(Progress{8, 3, 1, 1}); err != nil { // behind: kept as it is
		t.Fatal(err)
	}
	d.Close()
	if err := d.Advance(Progress{Applied: 10, Term: 3}); err == nil {
		t.Error("a closed directory was written")
	}
	want.Applied, want.AppliedTerm, want.FormatVersion, want.Epoch, want.Level = 9, 3, FormatVersion, 2, 1
	if got, ok := openDir(t, path).Identity(); !ok || got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestIdentityRefusesAnother(t *testing.T) {
	base := Identity{Cluster: "c1", Server: "a", Region: "local", Formed: true, Applied: 7, AppliedTerm: 2, Epoch: 3, Level: 2}
	cases := []struct {
		name   string
		change func(*Identity)
		want   string
	}{
		{"cluster", func(i *Identity) { i.Cluster = "c2" }, "it belongs to cluster c1 and not to c2"},
		{"server", func(i *Identity) { i.Server = "b" }, "it belongs to server a and not to b"},
		{"region", func(i *Identity) { i.Region = "eu" }, "it belongs to region local and not to eu"},
		{"applied", func(i *Identity) { i.Applied = 6 }, "cannot go back to 6"},
		{"formed", func(i *Identity) { i.Formed = false }, "cannot go back"},
		{"epoch", func(i *Identity) { i.Epoch = 2 }, "cannot go back to epoch 2 at level 2"},
		{"level", func(i *Identity) { i.Level = 1 }, "cannot go back to epoch 3 at level 1"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d := openDir(t, t.TempDir())
			if err := d.SetIdentity(base); err != nil {
				t.Fatal(err)
			}
			next := base
			c.change(&next)
			err := d.SetIdentity(next)
			if !errors.Is(err, ErrIdentity) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q in it", err, c.want)
			}
		})
	}
}

// Files of before there were epochs and levels are read on.
func TestIdentityOfAnOlderVersion(t *testing.T) {
	const text = "format 1\ncluster c1\nserver a\nregion local\nformed true\napplied 7\nterm 2\n"
	whole := fmt.Sprintf("%scrc32c %08x\n", text, crc32.Checksum([]byte(text), castagnoli))
	got, err := decodeIdentity(whole)
	if want := (Identity{Cluster: "c1", Server: "a", Region: "local", FormatVersion: 1, Formed: true, Applied: 7, AppliedTerm: 2}); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestIdentityDamage(t *testing.T) {
	whole := Identity{Cluster: "c1", Server: "a", Region: "local", FormatVersion: 1, Applied: 7}.encode()
	for n := range len(whole) - 1 {
		if _, err := decodeIdentity(string(whole[:n])); err == nil {
			t.Errorf("the first %d bytes pass", n)
		}
		for bit := range 8 {
			b := bytes.Clone(whole)
			b[n] ^= 1 << bit
			if _, err := decodeIdentity(string(b)); err == nil {
				t.Errorf("bit %d of byte %d can flip", bit, n)
			}
		}
	}
	path := t.TempDir()
	openDir(t, path).Close()
	if err := os.WriteFile(filepath.Join(path, identityFile), whole[:20], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDir(path); !errors.Is(err, ErrIdentity) || !strings.Contains(err.Error(), "rejoin --wipe") {
		t.Errorf("got %v", err)
	}
}

func TestWriteAtomicLeavesNoOther(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, text := range []string{"one", "two, longer", ""} {
		if err := writeAtomic(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != text {
			t.Errorf("got %q, %v", b, err)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("%d files are left", len(entries))
	}
	if err := writeAtomic(filepath.Join(dir, "missing", "f"), nil); err == nil {
		t.Error("a missing directory was written")
	}
}
