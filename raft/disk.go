package raft

import (
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/gpuai/gpuai"
)

// diskLevel says how much room the data directory has.
type diskLevel int32

const (
	diskAmple diskLevel = iota
	diskLow             // client commands are refused
	diskHard            // nothing more is proposed
)

const (
	maxDiskLow = 1 << 30 // the default low mark: this, or a tenth of the disk
	lowShare   = 10
	hardShare  = 4 // the default hard mark is this part of the low one
	// diskRetry is how soon a client should ask again.
	diskRetry = 5 * gpuai.Second
	// handOverEvery bounds how often a leader on a full disk tries to hand
	// over: while it tries, nothing is taken.
	handOverEvery = 10 * time.Second
)

// noSpaceMark is what a server whose disk is low gives as its address in the
// answers to heartbeats, where hraft does not read it.
const noSpaceMark = "no space"

// disk is what is known of the room on this server's disk.
type disk struct {
	id         gpuai.ServerID
	path       string
	low, hard  atomic.Uint64 // marks in bytes; 0 until the disk was read
	free       atomic.Uint64
	now        atomic.Int32                // the diskLevel
	crowded    atomic.Pointer[gpuai.Error] // why clients' commands are refused; nil while they are taken
	warned     bool                        // that it cannot be read; the watchdog's, as the next
	handedOver time.Time
}

func newDisk(c *Config) *disk {
	d := &disk{id: c.ID, path: c.Dir.Path()}
	d.low.Store(c.DiskLow)
	d.hard.Store(c.DiskHard)
	return d
}

func (d *disk) level() diskLevel { return diskLevel(d.now.Load()) }

// sentence says where how much room is.
func (d *disk) sentence() string {
	free, low := d.free.Load(), d.low.Load()
	return fmt.Sprintf("server %s has %d MiB (%d bytes) free at %s, and its mark is %d MiB", d.id, free>>20, free, d.path, low>>20)
}

// marks fills the defaults in, from the size of the disk.
func (d *disk) marks(total uint64) {
	d.low.CompareAndSwap(0, min(maxDiskLow, total/lowShare))
	d.hard.CompareAndSwap(0, d.low.Load()/hardShare)
}

// set takes a reading and returns the level before and after. What is over
// ends an eighth above its mark: commands are not refused every other second.
func (d *disk) set(free, total uint64) (before, after diskLevel) {
	d.marks(total)
	d.free.Store(free)
	low, hard := d.low.Load(), d.hard.Load()
	before = d.level()
	if before >= diskLow {
		low += low / 8
	}
	if before >= diskHard {
		hard += hard / 8
	}
	switch {
	case free < hard:
		after = diskHard
	case free < low:
		after = diskLow
	}
	d.now.Store(int32(after))
	return before, after
}

// checkDisk reads the disk and acts on a change.
func (n *Node) checkDisk() {
	free, total, err := n.cfg.DiskFree(n.disk.path)
	if err != nil {
		if !n.disk.warned {
			n.disk.warned = true
			n.cfg.Logger.Error("the room on the disk is not known: a full disk is noticed only when a write fails", "error", err)
		}
		return
	}
	n.disk.warned = false
	defer func() { n.disk.crowded.Store(n.crowded()) }()
	switch before, after := n.disk.set(free, total); {
	case after > before:
		n.cfg.Logger.Error("the disk is filling up", "state", n.disk.sentence(), "refused", refusedAt[after])
	case after < before:
		n.cfg.Logger.Warn("there is room on the disk again", "state", n.disk.sentence(), "refused", refusedAt[after])
	}
	if n.disk.level() != diskAmple && time.Since(n.disk.handedOver) >= handOverEvery && n.roomElsewhere() {
		n.disk.handedOver = time.Now()
		n.handOver("its disk is filling up: " + n.disk.sentence())
	}
}

var refusedAt = map[diskLevel]string{diskAmple: "nothing", diskLow: "commands of clients", diskHard: "all commands"}

// roomElsewhere reports whether this server leads and one that could has room.
func (n *Node) roomElsewhere() bool {
	if n.raft.State() != hraft.Leader {
		return false
	}
	_, ok := n.heir()
	return ok
}

// noSpaceLeft says that a write waits for room.
func (n *Node) noSpaceLeft(err error) {
	n.metrics.fullWrites.Inc()
	n.cfg.Logger.Error("a write of the Raft log waits for room on the disk", "error", err)
}

// noteSpace marks the answer to a heartbeat while this server's disk is low.
func (n *Node) noteSpace(resp *hraft.AppendEntriesResponse) {
	if n.disk.level() != diskAmple {
		resp.Addr = []byte(noSpaceMark)
	}
}

// AdmitClient reports why a client's command must not be proposed now: this
// server's disk, or those of so many voters that no majority has room, are
// below the low mark. The region's own commands (Tick, ExpireLeases, reports,
// confirmations) go on to the hard mark and do not ask. The error is a
// *gpuai.Error DiskLow, or nil.
func (n *Node) AdmitClient() error {
	if e := n.disk.crowded.Load(); e != nil {
		return e
	}
	return nil
}

// crowded is AdmitClient's answer until the next look at the disk.
func (n *Node) crowded() *gpuai.Error {
	if n.disk.level() != diskAmple {
		return n.diskError("commands of clients are refused, reads, leases and running tasks go on: free space there")
	}
	if n.raft.State() != hraft.Leader {
		return nil
	}
	var full []string
	voters := n.voters()
	for _, s := range voters {
		if n.views.get(s.ID).noSpace {
			full = append(full, string(s.ID))
		}
	}
	if len(full) == 0 || 2*(len(voters)-len(full)) > len(voters) {
		return nil
	}
	return &gpuai.Error{
		Code: gpuai.DiskLow, RetryAfter: diskRetry,
		Detail: fmt.Sprintf("the disks of servers %s are nearly full, and no majority has room: commands of clients are refused until there is space on them",
			strings.Join(full, ", ")),
	}
}

// admitAny reports why no command at all may be proposed, or read behind, now.
func (n *Node) admitAny() error {
	if n.disk.level() == diskHard {
		return n.diskError("nothing is written any more: free space there")
	}
	if err := n.stuck.Load(); err != nil {
		return err
	}
	return nil
}

func (n *Node) diskError(then string) *gpuai.Error {
	return &gpuai.Error{Code: gpuai.DiskLow, RetryAfter: diskRetry, Detail: n.disk.sentence() + ": " + then}
}
