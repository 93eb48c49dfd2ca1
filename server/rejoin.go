package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/internal/identity"
	"github.com/gpuai/gpuai/raft"
	"github.com/gpuai/gpuai/store"
)

// A RejoinConfig says which stopped server is to be rebuilt from the others.
type RejoinConfig struct {
	DataDir string
	// Join are Raft addresses of other members.
	Join []string
	// KeyFile holds the region's keys, for a region with authentication; "" is the
	// file keyring in DataDir.
	KeyFile string
	// Server is the old server's ID; "" where the directory can tell it.
	Server gpuai.ServerID
	// NewID is the new one's; "" mints one.
	NewID gpuai.ServerID
	// Region is asked for only where the directory cannot tell it.
	Region gpuai.RegionID
	// Say is told what is being done; nil tells nobody.
	Say func(string)
}

// A Rejoined says what a rejoin did.
type Rejoined struct {
	Old     gpuai.ServerID  `json:"old_server"`
	New     gpuai.ServerID  `json:"server"`
	Cluster gpuai.ClusterID `json:"cluster"`
	Region  gpuai.RegionID  `json:"region"`
	// Secure says that the region has authentication: the new server needs a join
	// token, with which it gets its certificate and the region's keys.
	Secure bool `json:"needs_join_token,omitzero"`
	// Kept is where the old server's files are until the new one votes.
	Kept string `json:"kept"`
}

// Rejoin removes a stopped server from its region and makes its data directory
// that of a new one, with a new ID, which joins when it is started. It changes
// nothing unless the other servers have a majority and a leader: this directory
// may hold the last copy of what they lack.
func Rejoin(ctx context.Context, cfg RejoinConfig) (Rejoined, error) {
	if cfg.Say == nil {
		cfg.Say = func(string) {}
	}
	dir, damaged, err := store.OpenDirToWipe(cfg.DataDir)
	if err != nil {
		return Rejoined{}, err
	}
	defer dir.Close()
	out, err := cfg.who(dir, damaged)
	if err != nil {
		return out, err
	}
	r := newRejoin(&cfg, &out)
	if err := r.showCertificate(dir); err != nil {
		return out, err
	}
	list, err := r.others(ctx)
	if err != nil {
		return out, fmt.Errorf("nothing was changed: %v", err) // the whole sentence, not the API's error in it
	}
	out.Cluster = list.Cluster
	if out.New, err = cfg.newID(out.Old, &list); err != nil {
		return out, err
	}
	if err := r.remove(ctx, &list); err != nil {
		return out, fmt.Errorf("the data directory was not touched: %v", err)
	}
	out.Kept, err = dir.Wipe(store.Identity{Cluster: out.Cluster, Server: out.New, Region: out.Region})
	if err != nil {
		return out, fmt.Errorf("server %s is removed; its files could not be put aside, run the command again: %w", out.Old, err)
	}
	cfg.Say(fmt.Sprintf("put the files of server %s aside in %s; the new server deletes them once it votes", out.Old, out.Kept))
	return out, nil
}

// who finds out whose directory it is.
func (cfg *RejoinConfig) who(dir *store.Dir, damaged error) (Rejoined, error) {
	id, known := dir.Identity()
	out := Rejoined{Old: id.Server, Cluster: id.Cluster, Region: id.Region}
	switch {
	case !known && (cfg.Server == "" || cfg.Region == ""):
		return out, fmt.Errorf("%w: say whose directory it is with --id and --region", damaged)
	case !known:
		out.Old, out.Region = cfg.Server, cfg.Region
	case cfg.Server != "" && cfg.Server != id.Server:
		return out, fmt.Errorf("data directory %s belongs to server %s, not to %s: name the other directory, or leave --id out", dir.Path(), id.Server, cfg.Server)
	}
	return out, nil
}

// newID returns the new server's ID, which nobody had.
func (cfg *RejoinConfig) newID(old gpuai.ServerID, list *gpuai.MemberList) (gpuai.ServerID, error) {
	used := func(id gpuai.ServerID) bool {
		return id == old || slices.Contains(list.Removed, id) ||
			slices.ContainsFunc(list.Members, func(m gpuai.MemberStatus) bool { return m.Server == id })
	}
	if id := cfg.NewID; id != "" {
		switch {
		case !gpuai.ValidName(string(id)):
			return "", fmt.Errorf("--new-id must be 1 to 63 characters of a-z, 0-9 and '-', not %q", id)
		case used(id):
			return "", fmt.Errorf("server %s is or was a member of this region: an ID is never used again; choose another, or leave --new-id out", id)
		}
		return id, nil
	}
	for {
		if id := mintServerID(old); !used(id) {
			return id, nil
		}
	}
}

const (
	mintedLen = 6 // characters behind the name
	maxName   = 63
)

// mintServerID returns the name of a server with a new end: "a" becomes
// "a-k3x7qd", and that one "a-9fm2ze".
func mintServerID(old gpuai.ServerID) gpuai.ServerID {
	base := string(old)
	if i := strings.LastIndexByte(base, '-'); i > 0 && len(base)-i-1 == mintedLen {
		base = base[:i]
	}
	base = base[:min(len(base), maxName-mintedLen-1)]
	return gpuai.ServerID(base + "-" + strings.ToLower(rand.Text()[:mintedLen]))
}

// rejoin talks to the other servers.
type rejoin struct {
	cfg    *RejoinConfig
	out    *Rejoined
	http   *http.Transport
	caller *raft.Caller
}

// showCertificate has the old server's certificate be shown, where it has one.
func (r *rejoin) showCertificate(dir *store.Dir) error {
	text, err := store.ReadPrivate(dir.Path(store.CredentialFile))
	if text == nil || err != nil {
		return err
	}
	r.out.Secure = true
	path := r.cfg.KeyFile
	if path == "" {
		path = dir.Path(store.KeyringFile)
	}
	keys, err := store.ReadPrivate(path)
	switch {
	case err != nil:
		return err
	case keys == nil:
		return fmt.Errorf("the key file %s is missing, without which this server cannot prove to the others who it is: name it with --key-file; where it is lost, have another server remove this one with 'gpuai server members remove', and start a new one in an empty directory with --join and --join-token", path)
	}
	ring, err := identity.ReadKeyring(keys)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	c, err := identity.ReadCredential(text, ring)
	if err != nil {
		return fmt.Errorf("%s: %w", dir.Path(store.CredentialFile), err)
	}
	r.caller.Identity = identity.NewSource(identity.SourceConfig{})
	r.caller.Identity.Set(c)
	return nil
}

func newRejoin(cfg *RejoinConfig, out *Rejoined) *rejoin {
	caller := &raft.Caller{Server: out.Old, Cluster: out.Cluster}
	return &rejoin{cfg: cfg, out: out, caller: caller, http: &http.Transport{
		DialContext:       func(ctx context.Context, _, addr string) (net.Conn, error) { return caller.Dial(ctx, addr) },
		DisableKeepAlives: true, DisableCompression: true,
	}}
}

const (
	// leaderWait is how long a rejoin waits for the others to have a leader:
	// the server that is rebuilt may have led until a moment ago.
	leaderWait  = 5 * time.Second
	leaderRetry = 250 * time.Millisecond
)

// ask asks the servers of --join until one has an answer of its own.
func (r *rejoin) ask(ctx context.Context, path string, body []byte) ([]byte, error) {
	for deadline := time.Now().Add(leaderWait); ; {
		answer, err := r.askOnce(ctx, path, body)
		if err == nil || !isCode(err, gpuai.OutcomeUnknown) && !isCode(err, gpuai.NoLeader) || time.Now().After(deadline) {
			return answer, err
		}
		select {
		case <-time.After(leaderRetry):
		case <-ctx.Done():
			return nil, err
		}
	}
}

func (r *rejoin) askOnce(ctx context.Context, path string, body []byte) ([]byte, error) {
	var all []error
	for _, addr := range r.cfg.Join {
		answer, err := post(ctx, r.http, addr, "the server at "+addr, path, body)
		if err == nil || !isCode(err, gpuai.OutcomeUnknown) && !isCode(err, gpuai.NoLeader) {
			return answer, err
		}
		all = append(all, err)
	}
	return nil, errors.Join(all...)
}

// others reads who the members are, and sees that they can do without this one.
func (r *rejoin) others(ctx context.Context) (list gpuai.MemberList, err error) {
	answer, err := r.ask(ctx, pathMembers, nil)
	if err != nil {
		return list, fmt.Errorf("the other servers have no leader that answers, so they may be no majority, and this directory may hold the last copy of what they lack: bring them back first (%w)", err)
	}
	if err := json.Unmarshal(answer, &list); err != nil {
		return list, errWire
	}
	voters, up := 0, 0
	for _, m := range list.Members {
		switch {
		case m.Server == r.out.Old && m.Reachable:
			return list, fmt.Errorf("a server %s runs at %s, with another data directory than this one: stop it first", m.Server, m.Address)
		case m.Server == r.out.Old || !m.Voter:
			continue
		}
		voters++
		if m.Reachable {
			up++
		}
	}
	if 2*up <= voters {
		return list, fmt.Errorf("of the %d other voters %d can be reached, no majority: this directory may hold the last copy of what they lack; bring them back first", voters, up)
	}
	return list, nil
}

// remove takes the old server out of the region, where it still is a member.
func (r *rejoin) remove(ctx context.Context, list *gpuai.MemberList) error {
	old := r.out.Old
	if !slices.ContainsFunc(list.Members, func(m gpuai.MemberStatus) bool { return m.Server == old }) {
		if slices.Contains(list.Removed, old) {
			r.cfg.Say(fmt.Sprintf("server %s is removed from the region already", old))
			return nil
		}
		return fmt.Errorf("server %s is not, and never was, a member of cluster %s: is --join right?", old, list.Cluster)
	}
	body, err := json.Marshal(&memberChange{Op: opRemove, Server: old})
	if err != nil {
		return err
	}
	if _, err := r.ask(ctx, pathMember, body); err != nil && !isCode(err, gpuai.NotFound) {
		return err
	}
	r.cfg.Say(fmt.Sprintf("removed server %s from the region; its ID is never used again", old))
	return nil
}

// discardAside deletes what a rejoin has kept, once this server votes.
func (s *Server) discardAside() error {
	gone, err := s.dir.DiscardAside()
	for _, path := range gone {
		s.log.Info("this server votes: deleted the files of the server that it replaces", "path", path)
	}
	return err
}
