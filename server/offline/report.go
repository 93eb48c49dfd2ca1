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
	"io"
	"os"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
	"github.com/gpuai/gpuai/store"
)

// A report is a compressed tar file of three members, in this order. The log is
// frames of index, term and length, each 8 bytes and little-endian, an entry, and
// the 16 bytes of the digest behind it.
const (
	memberInfo     = "report.json"
	memberSnapshot = "snapshot"
	memberLog      = "log"

	reportFormat = 1
	maxReport    = 8 << 30 // of a member, uncompressed
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

const whatIsRedacted = "commands, scripts, environments, directories, names of jobs, groups, racks and NVLink domains, labels, idempotency keys, actors, addresses, boot IDs, reasons of reports and health"

// WriteReport writes a redacted report of a range of a recording: its state at
// From and the entries behind it up to To. What it records are the digests of
// the redacted states, which the same commands lead to in every build.
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
	x.RedactState(m)
	var snap, log bytes.Buffer
	if err := m.WriteSnapshot(&snap); err != nil {
		return info, fmt.Errorf("write the snapshot of the report: %w", err)
	}
	if m, err = fsm.Restore(bytes.NewReader(snap.Bytes()), fsm.Options{Region: r.Region}); err != nil {
		return info, fmt.Errorf("the redacted state cannot be restored: %w", err)
	}
	info.FromDigest = m.Digest().String()
	for i := span.From + 1; i <= span.To; i++ {
		if err := r.reportEntry(ctx, &x, m, i, &log, &info); err != nil {
			return info, err
		}
	}
	info.Digest = m.Digest().String()
	info.SnapshotSum, info.LogSum = sum(snap.Bytes()), sum(log.Bytes())
	return info, writeMembers(w, &info, snap.Bytes(), log.Bytes())
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// reportEntry redacts one entry, applies it and appends it to the log.
func (r *Recording) reportEntry(ctx context.Context, x *fsm.Redaction, m *fsm.Machine, index uint64, log *bytes.Buffer, info *ReportInfo) error {
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
	log.Write(head[:])
	log.Write(data)
	log.Write(d[:])
	info.Entries++
	return nil
}

func writeMembers(w io.Writer, info *ReportInfo, snap, log []byte) error {
	head, err := json.Marshal(info, json.Deterministic(true))
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	for _, m := range []struct {
		name string
		data []byte
	}{{memberInfo, head}, {memberSnapshot, snap}, {memberLog, log}} {
		if err := t.WriteHeader(&tar.Header{Name: m.name, Mode: 0o600, Size: int64(len(m.data))}); err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
		if _, err := t.Write(m.data); err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
	}
	return errors.Join(t.Close(), z.Close())
}

// damaged is the error of a report that is not whole.
func damaged(path string, err error) error {
	return fmt.Errorf("%s is no whole report, ask for it again: %w", path, err)
}

// openReport reads a report and checks its sums.
func openReport(path string) (*Recording, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(bufio.NewReader(f))
	if err != nil {
		return nil, damaged(path, err)
	}
	t := tar.NewReader(z)
	var parts [3][]byte
	for i, name := range []string{memberInfo, memberSnapshot, memberLog} {
		if parts[i], err = readMember(t, name); err != nil {
			return nil, damaged(path, err)
		}
	}
	if _, err := io.Copy(io.Discard, io.LimitReader(z, 1<<20)); err != nil { // the trailer's checksum
		return nil, damaged(path, err)
	}
	var info ReportInfo
	if err := json.Unmarshal(parts[0], &info); err != nil {
		return nil, damaged(path, err)
	}
	switch {
	case info.Format != reportFormat:
		return nil, fmt.Errorf("%s has format %d, and this build knows %d", path, info.Format, reportFormat)
	case sum(parts[1]) != info.SnapshotSum || sum(parts[2]) != info.LogSum:
		return nil, damaged(path, errors.New("its checksums are of something else"))
	}
	return reportRecording(path, &info, parts[1], parts[2])
}

func readMember(t *tar.Reader, name string) ([]byte, error) {
	h, err := t.Next()
	if err != nil {
		return nil, err
	}
	if h.Name != name || h.Size > maxReport {
		return nil, fmt.Errorf("it has %s of %d bytes where %s belongs", h.Name, h.Size, name)
	}
	return io.ReadAll(t)
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
	r.base = func(uint64) (*fsm.Machine, uint64, error) {
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
