package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai"
)

// restoreFile is in a directory while a backup is being restored into it: what
// it holds meanwhile is neither the old state nor the new.
const restoreFile = "RESTORING"

// AsidePrefix begins the names of the directories that Install moves old state
// to.
const AsidePrefix = "before-restore-"

// ErrRestoring is returned, wrapped, for a directory whose restore was cut off.
var ErrRestoring = errors.New("holds half of a restore: run the same 'gpuai operator snapshot restore' again")

// A Member is a server of a restored region, with its Raft address.
type Member struct {
	Server gpuai.ServerID
	Addr   string
}

// An Image is the first state of a restored region, as one server gets it.
type Image struct {
	Identity Identity // Cluster, Server, Region, Epoch and Level
	Members  []Member // of the Raft group, all voters
	Index    uint64   // that the state ends at, and its term: the log begins behind
	Term     uint64
	Write    func(io.Writer) error // writes the state
	History  History
}

// Install makes dir the data directory of a server that has img and nothing
// else: a snapshot, an empty log, an identity, and the history that img keeps.
// What was there is moved into the directory aside in it, unless that exists. A crash at any point leaves a
// directory that no server starts on until Install has run again.
func Install(dir, aside string, img *Image) (err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("restore into %s: %w", dir, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("restore into %s: %w", dir, err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := checkEmptyOrOurs(dir); err != nil {
		return err
	}
	if err := writeAtomic(filepath.Join(dir, restoreFile), []byte(img.Identity.Cluster+"\n")); err != nil {
		return err
	}
	if err := setAside(dir, filepath.Join(dir, aside)); err != nil {
		return fmt.Errorf("set aside what %s held: %w", dir, err)
	}
	if err := img.install(&Dir{path: dir, lock: lock}); err != nil {
		return err
	}
	if err := keepHistory(&Dir{path: dir, lock: lock}, &img.History); err != nil {
		return fmt.Errorf("restore into %s: %w", dir, err)
	}
	if err := os.Remove(filepath.Join(dir, restoreFile)); err != nil {
		return fmt.Errorf("restore into %s: %w", dir, err)
	}
	return syncDir(dir)
}

// checkEmptyOrOurs refuses a directory with files of somebody else.
func checkEmptyOrOurs(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("restore into %s: %w", dir, err)
	}
	for _, e := range entries {
		if e.Name() == formatFile || e.Name() == restoreFile {
			return nil
		}
	}
	for _, e := range entries {
		if e.Name() != lockFile {
			return fmt.Errorf("%s %w: it holds %s but no file %s; restore into a server's directory or an empty one", dir, ErrFormat, e.Name(), formatFile)
		}
	}
	return nil
}

// setAside moves everything that a server had away: a history archive, too, may
// tell of a past that the restored region has not. What a restore that was cut
// off has left is no old state: it is removed.
func setAside(dir, aside string) error {
	_, err := os.Stat(aside)
	again := err == nil
	if !again {
		if err := os.MkdirAll(aside+".tmp", 0o700); err != nil {
			return err
		}
	}
	names, err := oldFiles(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if again {
			err = os.RemoveAll(filepath.Join(dir, name))
		} else {
			err = os.Rename(filepath.Join(dir, name), filepath.Join(aside+".tmp", name))
		}
		if err != nil {
			return err
		}
	}
	if !again {
		if err := os.Rename(aside+".tmp", aside); err != nil {
			return err
		}
	}
	return syncDir(dir)
}

// oldFiles lists what is a server's state, its identity last: as long as that
// is there, the epoch can be read.
func oldFiles(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	identity := false
	for _, e := range entries {
		switch name := e.Name(); {
		case name == identityFile:
			identity = true
		case name != lockFile && name != formatFile && name != restoreFile && !strings.HasPrefix(name, AsidePrefix):
			names = append(names, name)
		}
	}
	if identity {
		names = append(names, identityFile)
	}
	return names, nil
}

// Owner reads who a directory belongs to, and the newest epoch that its
// identity, or one that a restore has set aside in it, knows. id.Server is ""
// when it belongs to nobody. The directory need not be there.
func Owner(dir string) (id Identity, epoch uint8, err error) {
	id, err = readIdentity(filepath.Join(dir, identityFile))
	if errors.Is(err, fs.ErrNotExist) {
		id, err = Identity{}, nil
	}
	if err != nil {
		return id, 0, err
	}
	epoch = id.Epoch
	aside, err := filepath.Glob(filepath.Join(dir, AsidePrefix+"*", identityFile))
	if err != nil {
		return id, 0, err
	}
	for _, path := range aside {
		old, err := readIdentity(path)
		if err != nil {
			return id, 0, err
		}
		if epoch = max(epoch, old.Epoch); id.Server == "" {
			id = old
		}
	}
	return id, epoch, nil
}

// install writes the snapshot, the log and the identity.
func (img *Image) install(d *Dir) error {
	if err := writeAtomic(d.Path(formatFile), fmt.Appendf(nil, "%d\n", FormatVersion)); err != nil {
		return err
	}
	if err := img.writeSnapshot(d); err != nil {
		return fmt.Errorf("restore into %s: %w", d.path, err)
	}
	l, err := OpenLog(d)
	if err != nil {
		return err
	}
	// Raft's term may not be below the snapshot's.
	err = l.SetUint64(keyCurrentTerm, img.Term)
	if err := errors.Join(err, l.Close()); err != nil {
		return fmt.Errorf("restore into %s: %w", d.path, err)
	}
	id := img.Identity
	id.FormatVersion, id.Formed, id.Applied, id.AppliedTerm = FormatVersion, true, img.Index, img.Term
	return d.SetIdentity(id)
}

func (img *Image) writeSnapshot(d *Dir) error {
	snaps, err := OpenSnapshots(d, io.Discard)
	if err != nil {
		return err
	}
	var conf hraft.Configuration
	for _, m := range img.Members {
		conf.Servers = append(conf.Servers, hraft.Server{
			Suffrage: hraft.Voter, ID: hraft.ServerID(m.Server), Address: hraft.ServerAddress(m.Addr),
		})
	}
	_, trans := hraft.NewInmemTransport("") // it only encodes addresses, for versions before ours
	sink, err := snaps.Create(hraft.SnapshotVersionMax, img.Index, img.Term, conf, img.Index, trans)
	if err != nil {
		return err
	}
	if err := img.Write(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}
