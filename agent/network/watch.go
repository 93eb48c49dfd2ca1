package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// watchEvery is how long a task's egress goes on by its link's baseline alone when
// somebody flushes the host's rules, or by old rules when the host's networks change.
const watchEvery = 5 * time.Second

// Watch keeps the rules of tasks loaded until ctx ends.
func (n *Node) Watch(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			n.look()
		}
	}
}

// look loads the rules if they are not there as they were loaded, or the host's
// networks or addresses are others. Where they cannot be loaded tasks are cut off
// until they can.
func (n *Node) look() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.tasks) == 0 {
		return
	}
	same := false
	err := n.inHost(func() (err error) {
		if same, err = n.same(); err != nil {
			return err
		}
		return n.whole()
	})
	if err == nil && same {
		return
	}
	if err != nil {
		n.log.Error("the filter of the tasks' network is not as it was loaded: somebody has flushed or changed the host's rules; loading it again", "table", n.table(), "error", err)
	}
	if err := n.load(); err != nil {
		n.listing = "" // so that the next look loads it, whatever there is
		n.log.Error("there is no filter for tasks with egress: they are cut off until there is", "error", err, "cut", n.inHost(n.sever))
	}
}

// sever turns the tasks' links off. It runs in the host's network; mu is held.
func (n *Node) sever() error { return n.eachLink(netlink.LinkSetDown) }

// errNotWhole is returned for a table that is there, but is not what was loaded.
var errNotWhole = errors.New("the table is not as it was loaded")

// whole reports whether the whole table is there, with its chains, rules and sets.
// It runs in the host's network; mu is held.
func (n *Node) whole() error {
	text, err := n.list()
	if err != nil {
		return err
	}
	if settled(text) != n.listing {
		return errNotWhole
	}
	for lease, e := range n.tasks {
		if !strings.Contains(text, e.String()) {
			return fmt.Errorf("%w: it has not the task of lease %s", errNotWhole, lease)
		}
	}
	return nil
}

// list is the table as nft shows it, without what counters count.
func (n *Node) list() (string, error) {
	out, err := nftOut("list table inet "+n.table()+"\n", "-s")
	return string(out), err
}

// changing are the sets whose elements come and go while the table is loaded.
var changing = []string{"tasks", "flows"}

// settled is a listing without the elements of the sets that change.
func settled(listing string) string {
	var b strings.Builder
	skip := false
	for line := range strings.Lines(listing) {
		text := strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(text, "set "); ok {
			skip = slices.Contains(changing, strings.TrimSuffix(name, " {"))
		}
		if !skip {
			b.WriteString(line)
		}
		skip = skip && text != "}"
	}
	return b.String()
}

// baselines puts the baseline, with the host's addresses as they are now, on the
// links that there are. It runs in the host's network; mu is held.
func (n *Node) baselines() (err error) {
	if n.own, err = own(); err != nil {
		return err
	}
	for _, e := range n.tasks {
		link, err := netlink.LinkByName(e.link)
		if err == nil {
			err = guard(link, e.addr, n.own)
		}
		if err != nil && !gone(err) {
			return fmt.Errorf("the link %s: %w", e.link, err)
		}
	}
	return nil
}

// eachLink does f to the tasks' links that there are. It runs in the host's network;
// mu is held.
func (n *Node) eachLink(f func(netlink.Link) error) (err error) {
	for _, e := range n.tasks {
		link, failed := netlink.LinkByName(e.link)
		if failed == nil {
			failed = f(link)
		}
		if failed != nil && !gone(failed) {
			err = errors.Join(err, fmt.Errorf("the link %s: %w", e.link, failed))
		}
	}
	return err
}

// gone says of an error that the link went away: with its task, at any time.
func gone(err error) bool {
	var none netlink.LinkNotFoundError
	return errors.As(err, &none) || errors.Is(err, unix.ENODEV)
}
