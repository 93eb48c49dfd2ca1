package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/gpuai/gpuai"
)

// bookFile holds where the other servers were last known to be.
const bookFile = "servers"

// An AddressBook is the addresses of servers that Raft's configuration does not
// have. A server that starts needs them before it has applied anything.
type AddressBook map[gpuai.ServerID]string

// SetAddresses makes book durable.
func (d *Dir) SetAddresses(book AddressBook) error {
	var b []byte
	for id, addr := range book {
		b = fmt.Appendf(b, "%s %s\n", id, addr)
	}
	return writeAtomic(d.Path(bookFile), b)
}

// Addresses returns the last book. It is a hint: a line that cannot be read is
// left out.
func (d *Dir) Addresses() (AddressBook, error) {
	b, err := os.ReadFile(d.Path(bookFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the servers' addresses: %w", err)
	}
	book := make(AddressBook)
	for line := range strings.Lines(string(b)) {
		id, addr, ok := strings.Cut(strings.TrimSpace(line), " ")
		if ok && gpuai.ValidName(id) && addr != "" {
			book[gpuai.ServerID(id)] = addr
		}
	}
	return book, nil
}
