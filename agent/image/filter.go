package image

import (
	"archive/tar"
	"fmt"
	"path"
	"strings"
)

// Limits bound one image. A zero field means its default.
type Limits struct {
	Layers   int   // layers of an image; 127 by default, as overlay file systems allow
	Entries  int64 // files, directories and links over all layers; 1,000,000
	Unpacked int64 // bytes over all layers, each entry counted in blocks; 64 GiB
	Download int64 // bytes of all layers as they are sent; 32 GiB
}

const (
	defaultLayers   = 127
	defaultEntries  = 1_000_000
	defaultUnpacked = 64 << 30
	defaultDownload = 32 << 30

	// block is what an entry takes at least, for its inode and first bytes.
	block = 4096
	// maxPath and maxDepth bound an entry's name as Linux bounds a path.
	maxPath, maxDepth = 4095, 256
	// maxAttributes bounds an entry's extended attributes, in bytes.
	maxAttributes = 64 << 10
	// maxID is the last user and group that a task's namespace has; files of
	// others are given to nobody.
	maxID, nobody = 65_535, 65_534
)

func (l Limits) filled() Limits {
	if l.Layers <= 0 {
		l.Layers = defaultLayers
	}
	if l.Entries <= 0 {
		l.Entries = defaultEntries
	}
	if l.Unpacked <= 0 {
		l.Unpacked = defaultUnpacked
	}
	if l.Download <= 0 {
		l.Download = defaultDownload
	}
	return l
}

// A RefusedError says why an image must not be run. Trying again does not help.
type RefusedError struct {
	Layer  int    // from 1; 0 when it is not about a layer
	Entry  string // of the layer, as the archive names it; "" for all of it
	Reason string
}

// Error says it in one sentence.
func (e *RefusedError) Error() string {
	switch {
	case e.Layer == 0:
		return "image refused: " + e.Reason
	case e.Entry == "":
		return fmt.Sprintf("image refused: layer %d %s", e.Layer, e.Reason)
	}
	return fmt.Sprintf("image refused: layer %d, entry %q %s", e.Layer, clip(e.Entry), e.Reason)
}

// clip shortens a name that a stranger chose.
func clip(s string) string {
	const most = 200
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}

// A filter judges the entries of an image's layers before they are written.
// One filter sees all layers, in order.
type filter struct {
	limits Limits
	layer  int // the current one, from 1
	// entries and bytes are what was let through so far.
	entries, bytes int64
}

const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// judge is containerd's archive.Filter: it refuses an entry by an error, and
// leaves one out by false. It takes away from an entry what a task must not
// get: set-ID bits, attributes that mean something to the kernel, owners
// outside of the task's range.
func (f *filter) judge(h *tar.Header) (bool, error) {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return false, nil
	}
	if why := f.wrong(h); why != "" {
		return false, &RefusedError{Layer: f.layer, Entry: h.Name, Reason: why}
	}
	base := path.Base(h.Name)
	if strings.HasPrefix(base, whiteout+whiteout) && base != opaque {
		return false, nil // bookkeeping of AUFS, not of the image
	}
	f.entries++
	f.bytes += block + (h.Size+block-1)/block*block
	h.Mode &^= 0o7000 &^ 0o1000 // set-ID bits; the sticky bit stays
	if h.Uid < 0 || h.Uid > maxID {
		h.Uid = nobody
	}
	if h.Gid < 0 || h.Gid > maxID {
		h.Gid = nobody
	}
	for k := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok && !strings.HasPrefix(name, "user.") {
			delete(h.PAXRecords, k)
		}
	}
	return true, nil
}

// parents charges the n directories that are made on the way to h, as if the
// archive had them.
func (f *filter) parents(h *tar.Header, n int64) error {
	why := ""
	switch {
	case n > f.limits.Entries-f.entries:
		why = fmt.Sprintf("is one too many with its %d directories: an image may have %d files", n, f.limits.Entries)
	case n*block > f.limits.Unpacked-f.bytes:
		why = fmt.Sprintf("is too much with its %d directories: the image may unpack to %d bytes in all", n, f.limits.Unpacked)
	default:
		f.entries += n
		f.bytes += n * block
		return nil
	}
	return &RefusedError{Layer: f.layer, Entry: h.Name, Reason: why}
}

// wrong says why an entry is refused, or "".
func (f *filter) wrong(h *tar.Header) string {
	if why := wrongPath(h.Name); why != "" {
		return why
	}
	if why := wrongWhiteout(h.Name); why != "" {
		return why
	}
	if why := wrongType(h); why != "" {
		return why
	}
	attributes := 0
	for k, v := range h.PAXRecords {
		attributes += len(k) + len(v)
	}
	switch {
	case attributes > maxAttributes:
		return fmt.Sprintf("has more than %d bytes of attributes", maxAttributes)
	case f.entries >= f.limits.Entries:
		return fmt.Sprintf("is one too many: an image may have %d files", f.limits.Entries)
	case h.Size < 0:
		return "has a negative size"
	case h.Size > f.limits.Unpacked-f.bytes-2*block:
		return fmt.Sprintf("says that it has %d bytes, and the image may unpack to %d in all", h.Size, f.limits.Unpacked)
	}
	return ""
}

// wrongPath says why a cleaned name cannot be in an image, or "".
func wrongPath(name string) string {
	switch {
	case name == "..", strings.HasPrefix(name, "../"):
		return "leads out of the image's root"
	case strings.ContainsRune(name, 0):
		return "has a NUL byte in its name"
	case len(name) > maxPath:
		return fmt.Sprintf("has a name of more than %d bytes", maxPath)
	case strings.Count(name, "/") >= maxDepth:
		return fmt.Sprintf("is more than %d directories deep", maxDepth)
	}
	return ""
}

// wrongWhiteout says why a name that removes another is refused, or "". A
// whiteout of ".." would remove the directory that it is in, one of "" too.
func wrongWhiteout(name string) string {
	parts := strings.Split(strings.Trim(name, "/"), "/")
	for i, p := range parts {
		target, ok := strings.CutPrefix(p, whiteout)
		switch {
		case !ok:
		case i < len(parts)-1:
			return "has a whiteout for a directory of its path"
		case target == "" || target == "." || target == "..":
			return "is a whiteout of its own directory or of the one above"
		}
	}
	return ""
}

// wrongType says why an entry's type is refused, or "".
func wrongType(h *tar.Header) string {
	if h.Typeflag != tar.TypeDir && (h.Name == "." || h.Name == "/") {
		return "is the root of the image, which can only be a directory"
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeFifo, '\x00':
		return ""
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > maxPath {
			return "is a symbolic link to nothing, or to a name that is too long"
		}
		return ""
	case tar.TypeLink:
		if h.Linkname == "" || wrongPath(path.Clean(h.Linkname)) != "" {
			return fmt.Sprintf("is a hard link to %q, which is not in the image", clip(h.Linkname))
		}
		return ""
	case tar.TypeChar, tar.TypeBlock:
		return fmt.Sprintf("is a device node (%d:%d): a task's devices come from its lease", h.Devmajor, h.Devminor)
	case tar.TypeGNUSparse:
		return fmt.Sprintf("is a sparse file of %d bytes: images hold plain files", h.Size)
	}
	return fmt.Sprintf("is of an unknown type %q", h.Typeflag)
}
