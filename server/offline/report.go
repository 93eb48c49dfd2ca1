package offline

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

// A report is a compressed tar file: snapshot and log, each in pieces, and then
// what says what they are, with their checksums. So it is written as it is made,
// however long it is. The log is frames of index, term and length, each 8 bytes and
// little-endian, an entry, and the 16 bytes of the digest behind it.
const (
	memberSnapshot = "snapshot/"
	memberLog      = "log/"
	memberInfo     = "report.json"

	reportFormat = 2
	pieceBytes   = 1 << 20
	maxReport    = 8 << 30 // uncompressed
	frameHead    = 24
)

// A ReportInfo says what a report holds.
type ReportInfo struct {
	Format  int            `json:"format"`
	Version string         `json:"version"` // of the build that wrote it
	Region  gpuai.RegionID `json:"region"`
	// From is the index of the snapshot, To the last of the log.
	From       uint64 `json:"from_index"`
	To         uint64 `json:"to_index"`
	Entries    uint64 `json:"entries"`
	FromDigest string `json:"from_digest"`
	Digest     string `json:"digest"` // of the redacted state after To
	Redacted   string `json:"redacted"`
	// Checksums of the other members, SHA-256.
	SnapshotSum string `json:"snapshot_sha256"`
	LogSum      string `json:"log_sha256"`

	digests map[uint64]string // behind each entry
}

const whatIsRedacted = "commands, scripts, environments, directories, names of jobs, groups, racks and NVLink domains, labels, idempotency keys, actors, addresses, boot IDs, reasons of reports and health, hashes and descriptions of access tokens, claims of roles"

// WriteReport writes a redacted report of a range of a recording: its state at
// From and the entries behind it up to To. What it records are the digests of
// the redacted states, which the same commands lead to in every build. It has two
// states in memory at most; what is written goes to w at once. progress may be nil.
func (r *Recording) WriteReport(ctx context.Context, w io.Writer, span gpuai.IndexRange, progress func(string, uint64, uint64)) (ReportInfo, error) {
	info := ReportInfo{Format: reportFormat, Version: gpuai.Version, Region: r.Region, From: span.From, To: span.To, Redacted: whatIsRedacted}
	if span.To > r.Last || span.From > span.To {
		return info, r.errRange(span.To)
	}
	var salt [8]byte
	if _, err := rand.Read(salt[:]); err != nil {
		return info, fmt.Errorf("draw a salt: %w", err)
	}
	x := fsm.Redaction{Salt: binary.LittleEndian.Uint64(salt[:])}
	m, err := r.MachineAt(ctx, span.From, progress)
	if err != nil {
		return info, err
	}
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	x.RedactState(m)
	snap, log := newPieces(t, memberSnapshot), newPieces(t, memberLog)
	if m, err = r.copyOf(m, snap); err != nil {
		return info, err
	}
	info.FromDigest = m.Digest().String()
	for i := span.From + 1; i <= span.To; i++ {
		if progress != nil && i%1024 == 0 {
			progress("writing the log", i-span.From, span.To-span.From)
		}
		if err := r.reportEntry(ctx, &x, m, i, log, &info); err != nil {
			return info, err
		}
	}
	info.Digest = m.Digest().String()
	if info.SnapshotSum, err = snap.end(); err == nil {
		info.LogSum, err = log.end()
	}
	if err == nil {
		err = writeInfo(t, &info)
	}
	if err = errors.Join(err, t.Close(), z.Close()); err != nil {
		return info, fmt.Errorf("write the report: %w", err)
	}
	return info, nil
}

// copyOf writes a machine's snapshot and returns the machine that it is restored
// to, as whoever reads the report does.
func (r *Recording) copyOf(m *fsm.Machine, snap *pieces) (*fsm.Machine, error) {
	read, write := io.Pipe()
	wrote := make(chan error, 1)
	go func() {
		err := m.WriteSnapshot(io.MultiWriter(snap, write))
		write.CloseWithError(err) // nil: the end
		wrote <- err
	}()
	out, err := fsm.Restore(bufio.NewReaderSize(read, pieceBytes), fsm.Options{Region: r.Region})
	if err == nil {
		_, err = io.Copy(io.Discard, read)
	}
	read.CloseWithError(err)
	if failed := <-wrote; failed != nil {
		return nil, fmt.Errorf("write the snapshot of the report: %w", failed)
	}
	if err != nil {
		return nil, fmt.Errorf("the redacted state cannot be restored: %w", err)
	}
	return out, nil
}

// A pieces writes one part of a report as members of at most pieceBytes.
type pieces struct {
	t    *tar.Writer
	name string
	n    int
	buf  []byte
	sum  hash.Hash
}

func newPieces(t *tar.Writer, name string) *pieces {
	return &pieces{t: t, name: name, sum: sha256.New()}
}

// Write implements io.Writer.
func (p *pieces) Write(b []byte) (int, error) {
	p.sum.Write(b)
	for n := 0; n < len(b); {
		k := min(pieceBytes-len(p.buf), len(b)-n)
		p.buf = append(p.buf, b[n:n+k]...)
		if n += k; len(p.buf) == pieceBytes {
			if err := p.flush(); err != nil {
				return n, err
			}
		}
	}
	return len(b), nil
}

func (p *pieces) flush() error {
	if len(p.buf) == 0 {
		return nil
	}
	if err := writeMember(p.t, fmt.Sprintf("%s%06d", p.name, p.n), p.buf); err != nil {
		return err
	}
	p.n, p.buf = p.n+1, p.buf[:0]
	return nil
}

// end writes what is left and returns the checksum of all.
func (p *pieces) end() (string, error) {
	return hex.EncodeToString(p.sum.Sum(nil)), p.flush()
}

func writeInfo(t *tar.Writer, info *ReportInfo) error {
	b, err := json.Marshal(info, json.Deterministic(true))
	if err != nil {
		return err
	}
	return writeMember(t, memberInfo, b)
}

func writeMember(t *tar.Writer, name string, data []byte) error {
	if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := t.Write(data)
	return err
}

// reportEntry redacts one entry, applies it and appends it to the log.
func (r *Recording) reportEntry(ctx context.Context, x *fsm.Redaction, m *fsm.Machine, index uint64, log *pieces, info *ReportInfo) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e, err := r.read(index)
	if err != nil {
		return fmt.Errorf("read entry %d: %w", index, err)
	}
	if !e.Command {
		return nil
	}
	data, err := x.RedactEntry(e.Data, m)
	if err != nil {
		return fmt.Errorf("redact entry %d: %w", index, err)
	}
	var out fsm.Output
	if err := m.Apply(e.Index, e.Term, data, &out); err != nil {
		return fmt.Errorf("apply the redacted entry: %w", err)
	}
	var head [frameHead]byte
	binary.LittleEndian.PutUint64(head[:], e.Index)
	binary.LittleEndian.PutUint64(head[8:], e.Term)
	binary.LittleEndian.PutUint64(head[16:], uint64(len(data)))
	d := m.Digest()
	info.Entries++
	for _, b := range [][]byte{head[:], data, d[:]} {
		if _, err := log.Write(b); err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
	}
	return nil
}

// damaged is the error of a report that is not whole.
func damaged(path string, err error) error {
	return fmt.Errorf("%s is no whole report, ask for it again: %w", path, err)
}

// openReport opens the report in a file.
func openReport(path string) (*Recording, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ReadReport(path, f)
}

// ReadReport reads a report whole and checks its sums. Errors call it name.
func ReadReport(name string, in io.Reader) (*Recording, error) {
	z, err := gzip.NewReader(bufio.NewReader(in))
	if err != nil {
		return nil, damaged(name, err)
	}
	parts := map[string][]byte{}
	t := tar.NewReader(z)
	for size := int64(0); parts[memberInfo] == nil; {
		h, err := t.Next()
		if err == nil {
			size += h.Size
			err = readMember(t, h, parts, size)
		}
		if err != nil {
			return nil, damaged(name, err)
		}
	}
	if _, err := io.Copy(io.Discard, io.LimitReader(z, 1<<20)); err != nil { // the trailer's checksum
		return nil, damaged(name, err)
	}
	var info ReportInfo
	if err := json.Unmarshal(parts[memberInfo], &info); err != nil {
		return nil, damaged(name, err)
	}
	switch {
	case info.Format != reportFormat:
		return nil, fmt.Errorf("%s has format %d, and this build knows %d", name, info.Format, reportFormat)
	case sum(parts[memberSnapshot]) != info.SnapshotSum || sum(parts[memberLog]) != info.LogSum:
		return nil, damaged(name, errors.New("its checksums are of something else"))
	}
	return reportRecording(name, &info, parts[memberSnapshot], parts[memberLog])
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// readMember appends a member to its part.
func readMember(t *tar.Reader, h *tar.Header, parts map[string][]byte, size int64) error {
	part := memberInfo
	for _, p := range []string{memberSnapshot, memberLog} {
		if strings.HasPrefix(h.Name, p) {
			part = p
		}
	}
	if part == memberInfo && h.Name != memberInfo || h.Size > pieceBytes || size > maxReport {
		return fmt.Errorf("it has %q of %d bytes where none belongs", h.Name, h.Size)
	}
	b, err := io.ReadAll(t)
	parts[part] = append(parts[part], b...)
	return err
}

// reportRecording indexes the log of a report.
func reportRecording(path string, info *ReportInfo, snap, log []byte) (*Recording, error) {
	entries := map[uint64]store.Entry{}
	info.digests = map[uint64]string{}
	for len(log) > 0 {
		if len(log) < frameHead {
			return nil, damaged(path, io.ErrUnexpectedEOF)
		}
		index, term, n := binary.LittleEndian.Uint64(log), binary.LittleEndian.Uint64(log[8:]), binary.LittleEndian.Uint64(log[16:])
		if log = log[frameHead:]; n > fsm.MaxEntryBytes || uint64(len(log)) < n+16 {
			return nil, damaged(path, io.ErrUnexpectedEOF)
		}
		entries[index] = store.Entry{Index: index, Term: term, Data: log[:n], Command: true}
		info.digests[index] = fsm.Digest(log[n : n+16]).String()
		log = log[n+16:]
	}
	r := &Recording{Source: path, Region: info.Region, First: info.From, Last: info.To, Report: info, close: func() error { return nil }}
	r.read = func(index uint64) (store.Entry, error) { return entries[index], nil } // others were of Raft's own
	r.base = func(context.Context, uint64) (*fsm.Machine, uint64, error) {
		m, err := fsm.Restore(bytes.NewReader(snap), fsm.Options{Region: info.Region})
		if err != nil {
			return nil, 0, damaged(path, err)
		}
		if m.Digest().String() != info.FromDigest {
			return nil, 0, fmt.Errorf("%w: its first state", ErrDiverged)
		}
		return m, info.From, nil
	}
	return r, nil
}
