package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/gpuai/gpuai"
)

// A checkpoint is a training after so many steps.
type checkpoint struct {
	step  int
	state []float64 // as in trainer
}

// A vault keeps the newest checkpoint of a training in one file, for the runner
// with the greatest token: one that was replaced, and does not know it yet, is
// refused. The zero vault keeps nothing.
//
// With publish, GPUAI keeps them: each is a directory there, and the last one is
// in from when the task runs again. Then it is GPUAI that refuses an old runner.
type vault struct {
	path    string
	publish string
	from    string      // "": the training begins
	token   gpuai.Token // of this runner
}

// published is the file of a checkpoint's directory.
const published = "state"

// errReplaced is wrapped by save and claim when a newer runner has the file.
var errReplaced = errors.New("a newer runner has taken over")

const checkpointMagic = "GPUAICK1"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// claim returns the last checkpoint, nil when there is none, and makes the file
// this runner's: no save of an older one succeeds afterwards. It fails when the
// checkpoint is damaged or its state is not of the given length.
func (v *vault) claim(length int) (*checkpoint, error) {
	if v.publish != "" {
		if v.from == "" {
			return nil, nil
		}
		last := vault{path: filepath.Join(v.from, published), token: v.token}
		c, _, err := last.read()
		if err == nil && len(c.state) != length {
			err = fmt.Errorf("the checkpoint %s has %d numbers, not %d: was it written with other flags?", last.path, len(c.state), length)
		}
		return c, err
	}
	if v.path == "" {
		return nil, nil
	}
	unlock, err := v.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	c, _, err := v.read()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case len(c.state) != length:
		return nil, fmt.Errorf("the checkpoint %s has %d numbers, not %d: was it written with other flags?", v.path, len(c.state), length)
	}
	return c, v.write(c)
}

// save replaces the checkpoint. After a crash the file is the old or the new
// one, whole.
func (v *vault) save(c *checkpoint) error {
	if v.publish != "" {
		return v.rename(c)
	}
	if v.path == "" {
		return nil
	}
	unlock, err := v.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if _, _, err := v.read(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return v.write(c)
}

// rename publishes a checkpoint: the agent stores the directory that gets its
// name. One that was saved again at the same step takes the place of the first.
func (v *vault) rename(c *checkpoint) error {
	name := filepath.Join(v.publish, fmt.Sprintf("step-%d", c.step))
	draft := vault{path: filepath.Join(name+".tmp", published), token: v.token}
	if err := os.MkdirAll(name+".tmp", 0o700); err != nil {
		return fmt.Errorf("write a checkpoint: %w", err)
	}
	if err := draft.write(c); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(name), os.Rename(name+".tmp", name)); err != nil {
		return fmt.Errorf("publish a checkpoint: %w", err)
	}
	return nil
}

// lock keeps other runners of the training out, until unlock or death.
func (v *vault) lock() (unlock func(), err error) {
	f, err := os.OpenFile(v.path+".lock", os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the checkpoint: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock the checkpoint %s: %w", v.path, err)
	}
	return func() { f.Close() }, nil
}

// read returns the checkpoint and its writer's token, which must not be newer
// than this runner's.
func (v *vault) read() (*checkpoint, gpuai.Token, error) {
	b, err := os.ReadFile(v.path)
	if err != nil {
		return nil, 0, fmt.Errorf("read the checkpoint: %w", err)
	}
	const head = len(checkpointMagic) + 16
	body := len(b) - crc32.Size
	if body < head || (body-head)%8 != 0 || string(b[:len(checkpointMagic)]) != checkpointMagic ||
		crc32.Checksum(b[:body], castagnoli) != binary.LittleEndian.Uint32(b[body:]) {
		return nil, 0, fmt.Errorf("the checkpoint %s is damaged: remove it to start from the beginning", v.path)
	}
	token := gpuai.Token(binary.LittleEndian.Uint64(b[len(checkpointMagic):]))
	if token > v.token {
		return nil, 0, fmt.Errorf("the checkpoint %s has token %s, this runner %s: %w", v.path, token, v.token, errReplaced)
	}
	step := binary.LittleEndian.Uint64(b[len(checkpointMagic)+8:])
	return &checkpoint{step: int(step), state: floats(b[head:body])}, token, nil
}

// write puts the checkpoint beside the old one, on disk, and then in its place.
func (v *vault) write(c *checkpoint) (err error) {
	b := append(make([]byte, 0, 64+8*len(c.state)), checkpointMagic...)
	b = binary.LittleEndian.AppendUint64(b, uint64(v.token))
	b = binary.LittleEndian.AppendUint64(b, uint64(c.step))
	b = appendFloats(b, c.state)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	next := v.path + ".new"
	f, err := os.Create(next)
	if err != nil {
		return fmt.Errorf("write a checkpoint: %w", err)
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write a checkpoint: %w", err)
	}
	if err := os.Rename(next, v.path); err != nil {
		return fmt.Errorf("write a checkpoint: %w", err)
	}
	dir, err := os.Open(filepath.Dir(v.path))
	if err != nil {
		return fmt.Errorf("write a checkpoint: %w", err)
	}
	return errors.Join(dir.Sync(), dir.Close())
}
