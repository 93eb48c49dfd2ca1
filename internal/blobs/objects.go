package blobs

import (
	"context"
	"encoding/hex"
	"iter"
	"strconv"
	"strings"
)

// Objects are what trees and logs are made of. A Store has them itself; Granted
// has them by leave of the region's servers. They are safe for concurrent use.
type Objects interface {
	// Prepare says what is about to be put and got, so that leave for it is asked
	// for at once: at most MaxOps. What was not prepared is asked for by itself.
	Prepare(ctx context.Context, ops []Op) error
	// Put stores a blob: durable, and whole, when it returns nil.
	Put(ctx context.Context, key string, data []byte) error
	// Get returns a blob of at most limit bytes; a larger one is ErrCorrupt, one
	// that is not there ErrNotFound.
	Get(ctx context.Context, key string, limit int64) ([]byte, error)
	// List returns the blobs whose keys begin with prefix, in the order of their
	// keys. After an error it ends.
	List(ctx context.Context, prefix string) iter.Seq2[Entry, error]
	// Delete removes blobs. One that is not there is no error.
	Delete(ctx context.Context, keys ...string) error
}

// MaxOps bounds the operations that are prepared at once, maxAhead the bytes of
// those that get.
const (
	MaxOps   = 256
	maxAhead = 256 << 20
)

// An Op is one use of one blob.
type Op struct {
	Put   bool // else it is got
	Key   string
	Bytes int64 // exactly, of what is put
}

// Trees keeps directories, and the output of attempts, as objects.
type Trees struct {
	objects Objects
	chunk   int64 // bytes of the chunks that are written
}

// OfTree reports whether a key, without the prefix of its tree, is one that a tree
// has, and how many bytes the blob may have.
func OfTree(name string) (most int64, ok bool) {
	most = chunkBytes
	digits, ok := strings.CutPrefix(name, chunkDir)
	if !ok {
		most = maxManifest
		digits, ok = strings.CutPrefix(name, manifestDir)
	}
	d, err := hex.DecodeString(digits)
	return most, ok && err == nil && len(d) == len(Digest{}) && hex.EncodeToString(d) == digits
}

// OfLog is OfTree for the output of an attempt. once says that the blob is written
// once: by it the output is complete.
func OfLog(name string) (most int64, once, ok bool) {
	if name == indexKey {
		return packedMost(maxLogIndex), true, true
	}
	stream, at, _ := strings.Cut(name, "/")
	n, err := strconv.ParseInt(at, 10, 64)
	ok = (stream == "stdout" || stream == "stderr") && err == nil && n >= 0 && strconv.FormatInt(n, 10) == at
	return packedMost(maxRawPiece), false, ok
}

// LogIndex is the name, below the prefix of an attempt's output, of what is stored
// last of it.
const LogIndex = indexKey

// maxRawPiece is what a piece of output unpacks to at most.
const maxRawPiece = 4 + MaxPieceTimes*pieceTime + MaxLogPiece

// packedMost is what so many bytes may take when they are packed.
func packedMost(raw int64) int64 { return raw + raw/100 + 1024 }
