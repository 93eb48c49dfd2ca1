package store

import (
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"strconv"
	"strings"

	"github.com/gpuai/gpuai"
)

// ErrIdentity is returned, wrapped, for an identity file that is damaged and
// for a change of identity that is refused.
var ErrIdentity = errors.New("identity")

// An Identity says who owns a data directory and what it must contain.
type Identity struct {
	Cluster       gpuai.ClusterID // "" until this server has met its cluster
	Server        gpuai.ServerID
	Region        gpuai.RegionID
	FormatVersion int
	// Formed is set once the Raft log has held its first entry. From then on
	// a missing or empty log is a loss, not a beginning.
	Formed bool
	// Applied and AppliedTerm are the index and term of an entry that this
	// server has applied; the newest one of a few seconds ago at the latest.
	// History that ends before it has lost committed entries, and possibly a
	// vote.
	Applied, AppliedTerm uint64
	// Epoch is the newest restore epoch that this server has lived in, Level
	// the newest feature level of its state. They only grow.
	Epoch uint8
	Level uint32
}

// allows reports why the directory of i cannot become that of next.
func (i Identity) allows(next Identity) error {
	switch {
	case i.Cluster != "" && i.Cluster != next.Cluster:
		return fmt.Errorf("%w: it belongs to cluster %s and not to %s; use the directory of this cluster, or an empty one", ErrIdentity, i.Cluster, next.Cluster)
	case i.Server != next.Server:
		return fmt.Errorf("%w: it belongs to server %s and not to %s; use this server's own directory, or an empty one", ErrIdentity, i.Server, next.Server)
	case i.Region != next.Region:
		return fmt.Errorf("%w: it belongs to region %s and not to %s; use a directory of this region, or an empty one", ErrIdentity, i.Region, next.Region)
	case next.Applied < i.Applied || i.Formed && !next.Formed:
		return fmt.Errorf("%w: it has applied index %d and cannot go back to %d", ErrIdentity, i.Applied, next.Applied)
	case next.Epoch < i.Epoch || next.Level < i.Level:
		return fmt.Errorf("%w: it has lived in epoch %d at feature level %d and cannot go back to epoch %d at level %d", ErrIdentity, i.Epoch, i.Level, next.Epoch, next.Level)
	}
	return nil
}

// The file is lines of "name value", the last of them a CRC32C over those
// before it.
const crcName = "crc32c "

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (i Identity) encode() []byte {
	var b []byte
	line := func(name, value string) { b = append(append(append(append(b, name...), ' '), value...), '\n') }
	line("format", strconv.Itoa(i.FormatVersion))
	line("cluster", string(i.Cluster))
	line("server", string(i.Server))
	line("region", string(i.Region))
	line("formed", strconv.FormatBool(i.Formed))
	line("applied", strconv.FormatUint(i.Applied, 10))
	line("term", strconv.FormatUint(i.AppliedTerm, 10))
	line("epoch", strconv.FormatUint(uint64(i.Epoch), 10))
	line("level", strconv.FormatUint(uint64(i.Level), 10))
	return fmt.Appendf(b, "%s%08x\n", crcName, crc32.Checksum(b, castagnoli))
}

func readIdentity(path string) (Identity, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Identity{}, fmt.Errorf("read identity: %w", err)
	}
	id, err := decodeIdentity(string(b))
	if err != nil {
		return Identity{}, fmt.Errorf("%w: %s is damaged (%w): rebuild this server with 'gpuai server rejoin --wipe'", ErrIdentity, path, err)
	}
	return id, nil
}

func decodeIdentity(text string) (Identity, error) {
	at := strings.LastIndex(text, crcName)
	if at < 0 {
		return Identity{}, errors.New("it has no checksum")
	}
	if want := fmt.Sprintf("%s%08x\n", crcName, crc32.Checksum([]byte(text[:at]), castagnoli)); text[at:] != want {
		return Identity{}, errors.New("its checksum is wrong")
	}
	fields := make(map[string]string)
	for line := range strings.Lines(text[:at]) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		fields[name] = value
	}
	id := Identity{
		Cluster: gpuai.ClusterID(fields["cluster"]),
		Server:  gpuai.ServerID(fields["server"]),
		Region:  gpuai.RegionID(fields["region"]),
	}
	var errs [6]error
	id.FormatVersion, errs[0] = strconv.Atoi(fields["format"])
	id.Formed, errs[1] = strconv.ParseBool(fields["formed"])
	id.Applied, errs[2] = strconv.ParseUint(fields["applied"], 10, 64)
	id.AppliedTerm, errs[3] = strconv.ParseUint(fields["term"], 10, 64)
	var epoch, level uint64
	epoch, errs[4] = optional(fields["epoch"], 8)
	level, errs[5] = optional(fields["level"], 32)
	id.Epoch, id.Level = uint8(epoch), uint32(level)
	return id, errors.Join(errs[:]...)
}

// optional reads a number that files of older versions do not have.
func optional(text string, bits int) (uint64, error) {
	if text == "" {
		return 0, nil
	}
	return strconv.ParseUint(text, 10, bits)
}
