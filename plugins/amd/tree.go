package amd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Bounds of what is read. Sysfs gives a page at most; the list of bad pages is
// the one longer file.
const (
	maxFile    = 1 << 20
	maxEntries = 1 << 15
)

// A tree is the directory that stands for "/".
type tree string

var errOdd = errors.New("no regular file of a sane size")

func (t tree) path(parts ...string) string {
	return filepath.Join(append([]string{string(t)}, parts...)...)
}

// text returns what a file holds, without the space around it. It does not
// block: a FIFO in its place is an error.
func (t tree) text(parts ...string) (string, error) {
	f, err := os.OpenFile(t.path(parts...), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return "", errors.Join(fmt.Errorf("%s: %w", f.Name(), errOdd), err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxFile {
		return "", fmt.Errorf("%s: %w", f.Name(), errOdd)
	}
	return strings.TrimSpace(strings.ToValidUTF8(string(b), "")), nil
}

// word returns the text of a file, or "" when there is none.
func (t tree) word(parts ...string) string {
	s, err := t.text(parts...)
	if err != nil || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' }) {
		return ""
	}
	return s
}

// number returns a file's unsigned decimal number, and whether it holds one.
func (t tree) number(parts ...string) (uint64, bool) {
	n, err := strconv.ParseUint(t.word(parts...), 10, 64)
	return n, err == nil
}

// hex returns a file's hexadecimal number with or without 0x, and whether it
// holds one.
func (t tree) hex(parts ...string) (uint64, bool) {
	n, err := strconv.ParseUint(strings.TrimPrefix(t.word(parts...), "0x"), 16, 64)
	return n, err == nil
}

// list returns the names in a directory, numbers among them in their order. A
// directory that is not there is empty.
func (t tree) list(parts ...string) []string {
	f, err := os.Open(t.path(parts...))
	if err != nil {
		return nil
	}
	defer f.Close()
	names, err := f.Readdirnames(maxEntries)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	slices.SortFunc(names, byNumber)
	return names
}

// byNumber orders numbers by value, before all other names.
func byNumber(a, b string) int {
	x, errX := strconv.ParseUint(a, 10, 32)
	y, errY := strconv.ParseUint(b, 10, 32)
	switch {
	case errX == nil && errY == nil && x != y:
		return 1 - 2*btoi(x < y)
	case (errX == nil) != (errY == nil):
		return 1 - 2*btoi(errX == nil)
	}
	return strings.Compare(a, b)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// target returns the last name of what a symbolic link points to, or "".
func (t tree) target(parts ...string) string {
	to, err := os.Readlink(t.path(parts...))
	if err != nil {
		return ""
	}
	return filepath.Base(to)
}

func (t tree) exists(parts ...string) bool {
	_, err := os.Lstat(t.path(parts...))
	return err == nil
}

// bytes returns the first n bytes of a binary file.
func (t tree) bytes(n int, parts ...string) ([]byte, error) {
	f, err := os.OpenFile(t.path(parts...), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, n)
	read, err := f.Read(b)
	return b[:max(read, 0)], err
}
