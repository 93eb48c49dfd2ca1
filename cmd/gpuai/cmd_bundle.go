package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
)

// maxBundleFile bounds a file of a bundle; a longer one is cut.
const maxBundleFile = 16 << 20

// A bundleFlags is how a bundle is wanted.
type bundleFlags struct {
	out  string // file; "" is named by the time
	data string // a server's data directory on this host; "" for none
	cpu  uint32 // seconds of each CPU profile; 0 for none
}

// A manifest says what is in a bundle, and what is not.
type manifest struct {
	Created time.Time      `json:"created"`
	Version string         `json:"version"` // of the command that made it
	Go      string         `json:"go"`
	Servers []string       `json:"servers"` // those that answered
	Files   []bundleFile   `json:"files"`
	Missing []missingPiece `json:"missing"`
}

type bundleFile struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
	Cut   bool   `json:"cut,omitzero"` // there was more
}

type missingPiece struct {
	What string `json:"what"`
	Why  string `json:"why"`
}

func newBundleCmd(a *app) *cobra.Command {
	f := bundleFlags{cpu: 1}
	c := &cobra.Command{
		Use: "bundle", Short: "Collect what helps to find a fault into one file, without secrets", Args: cobra.NoArgs,
		Long: `Collect what helps to find a fault into one .tgz file: of each server its
version, settings, Raft status, metrics, newest log lines, goroutines, memory and
CPU profile; of the region its digests, policy, queue, and up to 1,000 each of
jobs, leases and nodes, with the newest events. One server is asked, and asks the
others; what cannot be had is named in manifest.json, and the rest is collected.

Job specs are not in it, so no command line, script or environment of a task is.
What looks like a password, token or credential is replaced by [redacted]
everywhere. Names of jobs, nodes and files are in it: look before you publish it.`,
		Example: `  gpuai operator bundle
  gpuai operator bundle --out fault.tgz --cpu-seconds 10
  gpuai operator bundle --addr http://10.0.0.1:7470,http://10.0.0.2:7470 --data /var/lib/gpuai/a
  tar -xzOf fault.tgz --wildcards '*/manifest.json'`,
	}
	c.Flags().StringVar(&f.out, "out", "", "file to write, which must not exist (default gpuai-bundle-TIME.tgz)")
	c.Flags().StringVar(&f.data, "data", "", "also a server's data directory on this host: which files there are, and its identity")
	c.Flags().Uint32Var(&f.cpu, "cpu-seconds", f.cpu, "length of each server's CPU profile; 0 for none")
	c.RunE = does(func(ctx context.Context, _ []string) error { return a.bundle(ctx, &f) })
	return a.talks(c)
}

func (a *app) bundle(ctx context.Context, f *bundleFlags) error {
	if f.cpu > gpuai.MaxDebugSeconds {
		return usageError{fmt.Errorf("--cpu-seconds is at most %d, not %d", gpuai.MaxDebugSeconds, f.cpu)}
	}
	c, err := a.connectOnce()
	if err != nil {
		return err
	}
	now := a.now().UTC()
	name := "gpuai-bundle-" + now.Format("20060102-150405")
	if f.out == "" {
		f.out = name + ".tgz"
	}
	if _, err := os.Lstat(f.out); err == nil {
		return usageError{fmt.Errorf("%s exists: name another file with --out, or move that one away", f.out)}
	}
	b := &bundler{a: a, c: c, flags: f, root: name, at: now}
	b.manifest = manifest{Created: now, Version: gpuai.Version, Go: runtime.Version(), Servers: []string{}, Files: []bundleFile{}, Missing: []missingPiece{}}
	tmp, err := os.CreateTemp(filepath.Dir(f.out), ".gpuai-bundle-*") // 0600
	if err != nil {
		return fmt.Errorf("writing the bundle: %w", err)
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	if err := b.write(ctx, tmp); err != nil {
		return err
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("writing the bundle: %w", err)
	}
	if err := os.Rename(tmp.Name(), f.out); err != nil {
		return fmt.Errorf("writing the bundle: %w", err)
	}
	for _, m := range b.manifest.Missing {
		a.say("missing: %s: %s\n", m.What, m.Why)
	}
	v := &view{names: []string{f.out}, text: func(w io.Writer) error {
		_, err := fmt.Fprintln(w, f.out)
		return err
	}}
	return a.showObject(ctx, &b.manifest, v)
}

// A bundler writes one bundle.
type bundler struct {
	a        *app
	c        *client.Client
	flags    *bundleFlags
	tar      *tar.Writer
	root     string // directory inside the archive
	at       time.Time
	manifest manifest
	broken   error // of the archive
}

func (b *bundler) write(ctx context.Context, w io.Writer) error {
	z := gzip.NewWriter(w)
	b.tar = tar.NewWriter(z)
	if err := b.region(ctx); err != nil && b.flags.data == "" {
		return err
	}
	if b.flags.data != "" {
		b.local(b.flags.data)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	b.object("manifest.json", &b.manifest)
	if err := errors.Join(b.broken, b.tar.Close(), z.Close()); err != nil {
		return fmt.Errorf("writing the bundle: %w", err)
	}
	return nil
}

// missing notes what could not be had.
func (b *bundler) missing(what string, err error) {
	b.manifest.Missing = append(b.manifest.Missing, missingPiece{what, string(scrub([]byte(err.Error())))})
}

// file adds a file, without what looks secret.
func (b *bundler) file(name string, data []byte, cut bool) {
	if filepath.Ext(name) != ".pprof" { // which holds addresses and names of functions
		data = scrub(data)
	}
	h := &tar.Header{Name: b.root + "/" + name, Mode: 0o600, Size: int64(len(data)), ModTime: b.at, Typeflag: tar.TypeReg}
	err := b.tar.WriteHeader(h)
	if err == nil {
		_, err = b.tar.Write(data)
	}
	b.broken = errors.Join(b.broken, err)
	b.manifest.Files = append(b.manifest.Files, bundleFile{name, h.Size, cut})
}

// object adds v as JSON.
func (b *bundler) object(name string, v any) {
	data, err := json.Marshal(v, jsontext.WithIndent("  "))
	if err != nil {
		b.missing(name, err)
		return
	}
	b.file(name, append(data, '\n'), false)
}

// local adds what a data directory on this host is: never what is in its log,
// its snapshots or a journal.
func (b *bundler) local(dir string) {
	type entry struct {
		Name     string    `json:"name"`
		Bytes    int64     `json:"bytes"`
		Modified time.Time `json:"modified"`
		Mode     string    `json:"mode"`
	}
	files := []entry{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || len(files) >= 10_000 {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		files = append(files, entry{name, info.Size(), info.ModTime().UTC(), info.Mode().String()})
		return nil
	})
	if err != nil {
		b.missing("local files", err)
	}
	b.object("local/files.json", files)
	for _, name := range []string{"FORMAT", "identity"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			b.missing("local/"+name, err)
			continue
		}
		b.file("local/"+name, data[:min(len(data), 64<<10)], len(data) > 64<<10)
	}
}
