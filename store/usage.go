package store

import (
	"errors"
	"io/fs"
	"path/filepath"
)

// A Usage says what a data directory holds, in bytes.
type Usage struct {
	Log       uint64 // the Raft log's file
	Snapshots uint64
	// Count is how many snapshots there are.
	Count uint32
}

// Usage looks at the directory's files. Those that come and go meanwhile are
// counted or not.
func (d *Dir) Usage() (Usage, error) {
	var u Usage
	u.Log, _ = treeSize(d.Path(logFile))
	snapshots := d.Path(snapshotDir)
	size, err := treeSize(snapshots)
	if err != nil {
		return u, err
	}
	u.Snapshots = size
	found, err := filepath.Glob(filepath.Join(snapshots, "*", "meta.json"))
	for _, f := range found {
		if filepath.Ext(filepath.Dir(f)) != ".tmp" { // being written
			u.Count++
		}
	}
	return u, err
}

// treeSize returns the size of the files of a tree; 0 where there is none.
func treeSize(root string) (size uint64, err error) {
	err = filepath.WalkDir(root, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			var info fs.FileInfo
			if info, err = e.Info(); err == nil {
				size += uint64(info.Size())
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return size, err
}
