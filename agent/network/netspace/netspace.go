// Package netspace works in network namespaces: it makes them, and links, addresses
// and settings in them. A namespace is an open file, which keeps it.
package netspace

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Within runs f on a thread that is in a network namespace; nil is the process's
// own.
func Within(space *os.File, f func() error) error {
	if space == nil {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if onMain() {
			defer runtime.UnlockOSThread()
			done <- Within(space, f) // on another thread, as this one is held
			return
		}
		before, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer before.Close()
		if err = unix.Setns(int(space.Fd()), unix.CLONE_NEWNET); err == nil {
			err = f()
		}
		if unix.Setns(int(before.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		} // else the thread ends with this goroutine
		done <- err
	}()
	return <-done
}

// onMain reports whether this is the main thread, which stays where it is: what it
// is in is what /proc/net shows of the process, and it does not end with a goroutine.
func onMain() bool { return unix.Gettid() == unix.Getpid() }

// New makes a network namespace, which lives as long as a file or a process
// holds it.
func New() (space *os.File, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends here
		if onMain() {
			defer runtime.UnlockOSThread()
			space, err = New()
			return
		}
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("make a network namespace: %w", err)
			return
		}
		space, err = os.Open("/proc/thread-self/ns/net")
	}()
	<-done
	return space, err
}

// Settle makes a task's namespace ready for links: it reaches itself, and links
// have no IPv6, by which they would have addresses that no filter was told of.
func Settle(space *os.File) error {
	return Within(space, func() error {
		if err := Set("ipv6/conf/default/disable_ipv6", "1"); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("the loopback: %w", err)
		}
		return netlink.LinkSetUp(lo)
	})
}

// Set writes a setting of the thread's network namespace. A kernel without it
// has nothing to be set.
func Set(name, value string) error {
	err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Bring gives a link of the thread's namespace an address and turns it on.
func Bring(name string, at netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("the link %s: %w", name, err)
	}
	addr, err := netlink.ParseAddr(at.String())
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("the address %s of %s: %w", at, name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("turn %s on: %w", name, err)
	}
	return nil
}

// upWithin bounds how long a link is waited for.
const upWithin = 2 * time.Second

// Await waits until a link of the thread's namespace, whose other end has just been
// turned on, takes packets: those that come before are lost, and their senders try
// again only a second later.
func Await(name string) error {
	for end := time.Now().Add(upWithin); ; time.Sleep(time.Millisecond) {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("the link %s: %w", name, err)
		}
		if link.Attrs().OperState == netlink.OperUp || time.Now().After(end) {
			return nil // a slow host is no reason to end the task
		}
	}
}

// Unlink removes a link of the thread's namespace, if it is there.
func Unlink(name string) error {
	link, err := netlink.LinkByName(name)
	var gone netlink.LinkNotFoundError
	if errors.As(err, &gone) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("remove the link %s: %w", name, err)
	}
	return nil
}
