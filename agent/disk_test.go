package agent

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/store"
)

// fill takes all the room of a file system, until what it returns is called.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "fill")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; size /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// onSmallDisk is a fixture on a file system of 8 MiB. It skips where none can be
// mounted: tests must not fill the disk that everything else is on.
func onSmallDisk(t *testing.T) *fixture {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a small file system needs root")
	}
	f := newFixture(t)
	if err := unix.Mount("none", f.dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Skip("no tmpfs can be mounted: ", err)
	}
	t.Cleanup(func() { unix.Unmount(f.dir, unix.MNT_DETACH) })
	return f
}

// A disk that is really full: the node drains itself and says why, what runs goes
// on to its own end, and the next life of the agent takes leases again.
func TestCase24DiskFull(t *testing.T) {
	f := onSmallDisk(t)
	gone := filepath.Join(t.TempDir(), "go")
	d := newDriver("GPU-1")
	a := f.runWith(d, nil)
	lease := f.grant(testNode, func(a *gpuai.Assignment) {
		a.Task.Script, a.Lease.TTL = "echo $$ > pid; while [ ! -e "+gone+" ]; do sleep 0.02; done; exit 6", gpuai.Minute
	})
	pid := f.pidOf(lease)
	f.running(lease)
	free := fill(t, f.dir)
	if r := f.last(f.grant(testNode, script("exit 0"))); r.State != gpuai.ReportLost || !strings.Contains(r.Reason, "no space left on device") {
		t.Errorf("a new lease is reported %+v", r)
	}
	eventually(t, "the devices to be taken out", func() bool {
		return f.health("GPU-1") == gpuai.DeviceUnhealthy && strings.Contains(f.code("GPU-1"), "agent:drained: ") && strings.Contains(f.code("GPU-1"), "no space left on device")
	})
	eventually(t, "the node to refuse tasks without GPUs too", func() bool {
		r := f.refusal()
		return r.Code == gpuai.DiskFull && strings.Contains(r.Detail, "restart the agent")
	})
	if r := f.last(f.grant(testNode, script("exit 0"))); r.State != gpuai.ReportLost || !strings.Contains(r.Reason, "cannot take leases") {
		t.Errorf("the next one is reported %+v", r)
	}
	if !alive(pid) {
		t.Fatal("the running task died")
	}
	if err := os.WriteFile(gone, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := f.last(lease); r.State != gpuai.ReportFailed || r.ExitCode != 6 {
		t.Errorf("the running task is reported %+v", r)
	}
	free()
	a.stop(t)
	f.runWith(d, nil)
	if r := f.last(f.grant(testNode, script("exit 0"))); r.State != gpuai.ReportDone {
		t.Errorf("with room again: %+v", r)
	}
}

// refusal is what the region was told last of new tasks.
func (f *fixture) refusal() gpuai.Refusal {
	f.region.mu.Lock()
	defer f.region.mu.Unlock()
	if r := f.region.node[testNode].refuses; r != nil {
		return *r
	}
	return gpuai.Refusal{}
}

// A node whose disk fills up takes no new task, also none without GPUs, says why,
// and takes them again by itself once there is room; what runs goes on.
func TestCase24DiskPressure(t *testing.T) {
	f := onSmallDisk(t)
	gone := filepath.Join(t.TempDir(), "go")
	f.runWith(newDriver("GPU-1"), nil)
	lease := f.grant(testNode, func(a *gpuai.Assignment) {
		a.Task.Script, a.Lease.TTL = "while [ ! -e "+gone+" ]; do sleep 0.02; done; exit 6", gpuai.Minute
	})
	f.running(lease)
	if r := f.refusal(); r.Code != gpuai.ReasonNone {
		t.Fatalf("with room it says %+v", r)
	}
	free := fill(t, f.dir)
	eventually(t, "the node to take no new task", func() bool {
		r := f.refusal()
		return r.Code == gpuai.DiskFull && strings.Contains(r.Detail, "make room") && f.health("GPU-1") == gpuai.DeviceHealthy
	})
	free()
	eventually(t, "the node to take tasks again", func() bool { return f.refusal().Code == gpuai.ReasonNone })
	if err := os.WriteFile(gone, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := f.last(lease); r.State != gpuai.ReportFailed || r.ExitCode != 6 {
		t.Errorf("the running task is reported %+v", r)
	}
}

// A damaged journal is left alone and said so; what runs ends by its deadline, and
// the node starts anew when its operator says so.
func TestCase24DamagedJournal(t *testing.T) {
	f := newFixture(t)
	p := f.runProcess()
	file := filepath.Join(t.TempDir(), "beats")
	lease := f.grant(testNode, beating(file))
	pid := f.pidOf(lease)
	f.running(lease)
	p.kill()
	path := filepath.Join(f.dir, journalFile)
	damaged := bytes.Repeat([]byte("x"), 4096)
	if err := os.WriteFile(path, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(f.dir, f.addr(), discard())
	a, err := Open(cfg)
	if err == nil {
		a.Close()
	}
	if !errors.Is(err, store.ErrJournalDamaged) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "--take-over") {
		t.Fatalf("opened: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, damaged) {
		t.Error("the evidence was changed")
	}
	if !alive(pid) {
		t.Error("the task died with the journal")
	}
	heard := f.silent(testNode, lease)
	if _, last := span(t, file, lease); alive(pid) || last*1e7-heard > int64(shortTTL)*1e6 {
		t.Error("the task outlived its lease")
	}
	if err := os.Rename(path, path+".damaged"); err != nil {
		t.Fatal(err)
	}
	f.run(func(c *Config) { c.TakeOver = true })
	eventually(t, "the node to be taken over", func() bool {
		f.region.mu.Lock()
		defer f.region.mu.Unlock()
		return f.region.node[testNode].incarnation == 2
	})
	f.registered(testNode)
	if r := f.last(f.grant(testNode, script("exit 0"))); r.State != gpuai.ReportDone {
		t.Errorf("reported %+v", r)
	}
}
