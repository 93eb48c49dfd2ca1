package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/server/offline"
	"github.com/gpuai/gpuai/store"
)

// A restoreConfig is the configuration of "operator snapshot restore".
type restoreConfig struct {
	Data       []string // directories, each DIR or id=DIR
	Peers      []string // as of "server run"
	Epoch      uint8    // of a restore that was begun elsewhere; 0 begins one
	RestoreID  string   // the same
	LongestTTL string   // of the leases of the region that was lost
	DryRun     bool
}

// offline returns the configuration of the work.
func (c *restoreConfig) offline(file string) (offline.RestoreConfig, error) {
	out := offline.RestoreConfig{File: file, Epoch: c.Epoch, RestoreID: c.RestoreID, DryRun: c.DryRun}
	peers, err := (&serverConfig{Peers: c.Peers}).peers()
	if err != nil {
		return out, err
	}
	if len(peers) == 0 || len(c.Data) == 0 {
		return out, errors.New("--peers must name every server of the restored region, and --data at least one directory")
	}
	for _, p := range peers {
		out.Members = append(out.Members, store.Member{Server: p.ID, Addr: p.Addr})
	}
	for _, d := range c.Data {
		t := offline.Target{Dir: d}
		if id, dir, ok := strings.Cut(d, "="); ok && gpuai.ValidName(id) {
			t = offline.Target{Server: gpuai.ServerID(id), Dir: dir}
		}
		out.Targets = append(out.Targets, t)
	}
	out.MaxTTL, err = gpuai.ParseDuration(c.LongestTTL)
	if err != nil || out.MaxTTL < gpuai.MinLeaseTTL || out.MaxTTL > gpuai.MaxLeaseTTL {
		return out, fmt.Errorf("--longest-ttl must be %s to %s, not %q", gpuai.MinLeaseTTL, gpuai.MaxLeaseTTL, c.LongestTTL)
	}
	return out, nil
}

func newSnapshotRestoreCmd(a *app) *cobra.Command {
	cfg := restoreConfig{LongestTTL: gpuai.MaxLeaseTTL.String()}
	c := &cobra.Command{
		Use: "restore FILE", Short: "Restore a saved snapshot into stopped servers", Args: cobra.ExactArgs(1),
		Long: `Restore a saved snapshot into the data directories of stopped servers. The
restored region begins a new epoch, later than any that the snapshot or one of
the directories knows: every lease ends and its task waits again, every agent
registers anew, and tokens go on growing. Nothing is granted until tasks of the
lost region must have ended: the longest TTL that a lease may have and its grace,
counted from the first election. What a directory held is moved aside in it. Its
history archive is kept up to the snapshot's index, where it is of the same past.

On each machine: stop the server, restore its directory, start it again. Restore
all servers of the region, each from the same FILE. The first call begins the
restore; it prints the call for the machines that are left, with the epoch and
the restore ID. Do not begin a second one there: its servers would not agree.`,
		Example: `  gpuai operator snapshot inspect region.snap
  gpuai operator snapshot restore region.snap --dry-run --data /var/lib/gpuai \
      --peers a=10.0.0.1:7471,b=10.0.0.2:7471,c=10.0.0.3:7471
  # a server that is new, or whose disk is: its directory has no identity
  gpuai operator snapshot restore region.snap --data a=/var/lib/gpuai --peers a=10.0.0.1:7471,...
  # all servers of one machine
  gpuai operator snapshot restore region.snap --data /srv/a --data /srv/b --data /srv/c --peers ...`,
	}
	f := c.Flags()
	f.StringSliceVar(&cfg.Data, "data", nil, "data directory of a stopped server, or ID=DIR for one that has no identity yet (required; may be repeated)")
	f.StringSliceVar(&cfg.Peers, "peers", nil, "all servers of the restored region as id=host:port of --raft, comma-separated (required)")
	f.Uint8Var(&cfg.Epoch, "epoch", 0, "epoch of the restore that was begun on another machine; 0 begins one")
	f.StringVar(&cfg.RestoreID, "restore-id", "", "ID of the restore that was begun on another machine")
	f.StringVar(&cfg.LongestTTL, "longest-ttl", cfg.LongestTTL, "the longest TTL that a lease may have; shorter only when you know that no policy and no job asked for more since the snapshot")
	f.BoolVar(&cfg.DryRun, "dry-run", false, "check everything and change nothing")
	c.RunE = does(func(ctx context.Context, args []string) error {
		if err := a.checkFormat(); err != nil {
			return err
		}
		oc, err := cfg.offline(args[0])
		if err != nil {
			return usageError{err}
		}
		r, err := offline.Restore(&oc)
		if err != nil {
			return err
		}
		v := &view{text: func(w io.Writer) error { return cfg.text(w, args[0], &r) }}
		for _, s := range r.Servers {
			v.names = append(v.names, string(s.Server))
		}
		return a.showObject(ctx, r, v)
	})
	return a.prints(c)
}

// text says what was done, and what is to be done next, server by server.
func (c *restoreConfig) text(w io.Writer, file string, r *offline.Restored) error {
	err := columns(w, [][]string{
		{"file", file}, {"region", string(r.Backup.Region)}, {"backup index", num(r.Backup.Index)}, {"backup epoch", num(r.Backup.Epoch)},
		{"epoch", num(r.Epoch)}, {"restore ID", r.RestoreID}, {"index", num(r.Index)}, {"digest", r.Digest},
		{"feature level", num(r.Level)}, {"leases ended", num(r.Ended)}, {"quiet for", r.Quiet.String()},
	})
	if err != nil {
		return err
	}
	did := "restored"
	if r.DryRun {
		did = "would restore"
	}
	var b strings.Builder
	for _, s := range r.Servers {
		fmt.Fprintf(&b, "%s server %s in %s; what it held is in %s\n", did, s.Server, s.Dir, s.Aside)
		if h := &s.History; h.From != "" {
			fmt.Fprintf(&b, "  history: %d log indexes up to %d, from %s\n", h.Indexes, h.Upto, h.From)
		} else {
			fmt.Fprintf(&b, "  history: none of before, since %s\n", h.Why)
		}
	}
	if r.DryRun {
		b.WriteString("nothing was changed: leave --dry-run out to do it, with another restore ID\n")
	} else {
		c.next(&b, file, r)
	}
	_, err = io.WriteString(w, b.String())
	return err
}

func (c *restoreConfig) next(b *strings.Builder, file string, r *offline.Restored) {
	peers := strings.Join(c.Peers, ",")
	b.WriteString("\nnext:\n")
	for _, id := range r.Missing {
		fmt.Fprintf(b, "  on the machine of server %s, stopped, with the same file (digest %s):\n"+
			"    gpuai operator snapshot restore %s --data %s=DIR --peers %s --epoch %d --restore-id %s --longest-ttl %s\n",
			id, r.Digest, file, id, peers, r.Epoch, r.RestoreID, c.LongestTTL)
	}
	for _, s := range r.Servers {
		keys := filepath.Join(s.Aside, store.KeyringFile)
		if _, err := os.Stat(keys); err == nil { // a region with authentication, which is not told its peers
			fmt.Fprintf(b, "  give server %s the region's keys, those of the time of the backup, and start it with the flags that it had:\n"+
				"    cp -p %s %s\n    gpuai server run --id %s --region %s --data %s ...\n",
				s.Server, keys, filepath.Join(s.Dir, store.KeyringFile), s.Server, r.Backup.Region, s.Dir)
			continue
		}
		fmt.Fprintf(b, "  start server %s again, with the flags that it had:\n    gpuai server run --id %s --region %s --data %s --peers %s ...\n",
			s.Server, s.Server, r.Backup.Region, s.Dir, peers)
	}
	fmt.Fprintf(b, "  agents come back by themselves; nothing is granted for %s after the first election:\n    gpuai operator raft      # \"grants begin in\"\n", r.Quiet)
}
