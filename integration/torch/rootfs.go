package main

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/gpuai/gpuai/agent/image"
)

// A rootfs is an image's root that is made of the host's own Python and PyTorch:
// the files of Debian's packages, and the libraries that their programs are linked
// with. Nothing is downloaded, and the image has what the host has: that the tasks
// in sandboxes compute as plain processes would is part of what is shown.
type rootfs struct {
	dir       string
	libraries map[string]string // the host's file, by name
	done      map[string]bool   // files of the host that are in it
}

// scriptInImage is where the image has the training script.
const scriptInImage = "/opt/torch-ddp/train.py"

// writeImage makes an image of the host's Python below dir, and returns its
// layout's directory and how much is in it.
func writeImage(ctx context.Context, dir, script string) (layout string, bytes int64, err error) {
	r := &rootfs{dir: filepath.Join(dir, "rootfs"), done: map[string]bool{}}
	if err := r.fill(ctx, script); err != nil {
		return "", 0, fmt.Errorf("make an image of the host's Python: %w", err)
	}
	err = filepath.WalkDir(r.dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		fi, err := d.Info()
		if err == nil {
			bytes += fi.Size()
		}
		return err
	})
	if err != nil {
		return "", 0, err
	}
	built, err := image.Build(r.dir, image.Run{Env: []string{"PATH=/usr/bin:/bin", "LANG=C.UTF-8"}, WorkingDir: "/work"})
	if err != nil {
		return "", 0, err
	}
	layout = filepath.Join(dir, "image")
	if _, err := built.WriteLayout(layout); err != nil {
		return "", 0, err
	}
	return layout, bytes, os.RemoveAll(r.dir)
}

func (r *rootfs) fill(ctx context.Context, script string) (err error) {
	if r.libraries, err = libraries(ctx); err != nil {
		return err
	}
	packages, err := pythonPackages(ctx)
	if err != nil {
		return err
	}
	for _, d := range []string{"usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "opt", "proc", "sys", "dev", "run", "tmp", "work"} {
		if err := os.MkdirAll(filepath.Join(r.dir, d), 0o755); err != nil {
			return err
		}
	}
	for _, d := range merged { // as Debian has it
		if err := os.Symlink("usr/"+d, filepath.Join(r.dir, d)); err != nil {
			return err
		}
	}
	list, err := run(ctx, "dpkg", append([]string{"-L"}, packages...)...)
	if err != nil {
		return err
	}
	for path := range strings.Lines(list) {
		path = strings.TrimSpace(path)
		if strings.HasPrefix(path, "/usr/share/") || strings.HasPrefix(path, "/usr/include/") || !filepath.IsAbs(path) {
			continue
		}
		if err := r.add(path); err != nil {
			return err
		}
	}
	text, err := os.ReadFile(script)
	if err == nil {
		err = r.write(scriptInImage, strings.NewReader(string(text)), 0o755)
	}
	return errors.Join(err, r.write("/etc/passwd", strings.NewReader("root:x:0:0:root:/work:/usr/sbin/nologin\n"), 0o644))
}

// rootPackage is the package that the image is for.
const rootPackage = "python3-torch"

// ofPython are the packages whose files are taken whole. Of the others there are
// the libraries that something is linked with.
var ofPython = regexp.MustCompile(`^(lib)?python3([.-].*)?$`)

// pythonPackages returns Debian's packages of Python that PyTorch depends on.
func pythonPackages(ctx context.Context) ([]string, error) {
	list, err := run(ctx, "dpkg-query", "-W", "-f", "${Package}\t${Pre-Depends}, ${Depends}\n")
	if err != nil {
		return nil, err
	}
	needs := map[string]string{}
	for line := range strings.Lines(list) {
		name, depends, _ := strings.Cut(strings.TrimSpace(line), "\t")
		needs[name] = depends
	}
	out := []string{rootPackage}
	for i := 0; i < len(out); i++ {
		for _, word := range strings.FieldsFunc(needs[out[i]], func(c rune) bool { return c == ',' || c == '|' }) {
			name, _, _ := strings.Cut(strings.TrimSpace(word), " ")
			name, _, _ = strings.Cut(name, ":")
			if _, installed := needs[name]; installed && ofPython.MatchString(name) && !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	return out, nil
}

// libraries returns what the dynamic linker finds, by name: its cache.
func libraries(ctx context.Context) (map[string]string, error) {
	cache, err := run(ctx, "ldconfig", "-p")
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for line := range strings.Lines(cache) {
		name, path, ok := strings.Cut(strings.TrimSpace(line), " => ")
		name, _, _ = strings.Cut(name, " ")
		if ok && out[name] == "" && ownClass(path) { // the first is what the linker takes
			out[name] = path
		}
	}
	return out, nil
}

// ownClass reports whether a library is of this machine's own word size.
func ownClass(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return f.Class == elf.ELFCLASS64
}

// merged are the directories that Debian has as links into /usr.
var merged = []string{"bin", "sbin", "lib", "lib64"}

// inside is where the image has a file of the host.
func (r *rootfs) inside(path string) string {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if slices.Contains(merged, first) {
		path = "/usr" + path
	}
	return filepath.Join(r.dir, path)
}

// add takes a file of the host into the image, what it links to, and the libraries
// that it needs. Directories come with their files.
func (r *rootfs) add(path string) error {
	if r.done[path] {
		return nil
	}
	r.done[path] = true
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist): // diverted, or left out by dpkg's settings
		return nil
	case err != nil:
		return err
	case fi.Mode()&fs.ModeSymlink != 0:
		return r.link(path)
	case !fi.Mode().IsRegular():
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := r.write(path, f, fi.Mode().Perm()); err != nil {
		return err
	}
	return r.needs(f)
}

// link makes a link of the host's in the image, and takes what is behind it. What
// leads outside of /usr, as Debian's alternatives do, is taken in its place.
func (r *rootfs) link(path string) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil // it leads nowhere on the host either
	}
	if fi, err := os.Stat(real); err != nil || fi.IsDir() {
		return err // the directory's files are listed by themselves
	}
	if err := r.add(real); err != nil {
		return err
	}
	to := r.inside(path)
	if to == r.inside(real) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	_, err = os.Lstat(to)
	if err == nil {
		return nil
	}
	return os.Symlink(strings.TrimPrefix(r.inside(real), r.dir), to)
}

// needs takes the libraries of a program or library.
func (r *rootfs) needs(f io.ReaderAt) error {
	e, err := elf.NewFile(f)
	if err != nil {
		return nil // it is none
	}
	names, err := e.ImportedLibraries()
	if err != nil {
		return nil // static, or an object file
	}
	for _, name := range names {
		if path := r.libraries[name]; path != "" {
			if err := r.add(path); err != nil {
				return err
			}
		}
	}
	for _, p := range e.Progs {
		if p.Type == elf.PT_INTERP {
			b, err := io.ReadAll(p.Open())
			if err != nil {
				return err
			}
			return r.add(strings.TrimRight(string(b), "\x00"))
		}
	}
	return nil
}

func (r *rootfs) write(path string, from io.Reader, mode fs.FileMode) error {
	to := r.inside(path)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close(), os.Chmod(to, mode))
}
