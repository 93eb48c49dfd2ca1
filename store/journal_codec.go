package store

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/gpuai/gpuai"
)

// A journal's record is a version byte, the CRC32C of what follows, and JSON:
// bbolt has no checksums of its own, and an operator can read it.

const journalVersion = 1

var journalTable = crc32.MakeTable(crc32.Castagnoli)

func journalKey(t gpuai.Token) []byte { return binary.BigEndian.AppendUint64(nil, uint64(t)) }

func journalEncode(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode a journal record: %w", err)
	}
	b := make([]byte, 0, len(body)+5)
	b = append(b, journalVersion)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(body, journalTable))
	return append(b, body...), nil
}

func journalDecode(b []byte, into any) error {
	switch {
	case len(b) < 5:
		return errors.New("a record is cut short")
	case b[0] != journalVersion:
		return fmt.Errorf("a record has version %d, this agent knows %d", b[0], journalVersion)
	case binary.BigEndian.Uint32(b[1:5]) != crc32.Checksum(b[5:], journalTable):
		return errors.New("a record fails its checksum")
	}
	if err := json.Unmarshal(b[5:], into); err != nil {
		return fmt.Errorf("decode a record: %w", err)
	}
	return nil
}
