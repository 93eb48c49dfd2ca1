package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/client"
	"github.com/gpuai/gpuai/fsm"
)

func newOperatorCmd(a *app) *cobra.Command {
	return group("operator", "Operate a region: consensus, policy, snapshots, history, audit, faults",
		newRaftCmd(a), newDigestCmd(a), newExportCmd(a), newBundleCmd(a),
		group("policy", "Look at the region's policy and set it", newPolicyGetCmd(a), newPolicySetCmd(a)),
		group("price", "Look at the price list and set it", newPriceListCmd(a), newPriceSetCmd(a)),
		group("demand", "Look at what the packing policy expects, and tell it", newDemandGetCmd(a), newDemandSetCmd(a), newDemandForgetCmd(a)),
		group("snapshot", "Save, inspect and restore snapshots", newSnapshotSaveCmd(a), newSnapshotInspectCmd(a), newSnapshotRestoreCmd(a)),
		newAuditCmd(a), newVerifyCmd(a), newReplayCmd(a), newReportCmd(a), newBootstrapCmd(a), newCACmd(a), newKeyCmd(a), newRevokeCmd(a),
		group("role", "What users who log in get, by claims of the identity provider", newRoleListCmd(a), newRoleSetCmd(a)))
}

func newDigestCmd(a *app) *cobra.Command {
	var index uint64
	var server string
	c := &cobra.Command{
		Use: "digest", Short: "Show a server's digest of the state at an index", Args: cobra.NoArgs,
		Long: "Show the digest that the server remembers for an index of the log. Servers that\napplied the same log have the same one. The last 8192 indexes are remembered.",
		Example: `  gpuai operator digest
  gpuai operator digest --index 48377 --server b`,
	}
	c.Flags().StringVar(&server, "server", "", "the server of the region whose digest is wanted (default: the one that is asked)")
	c.Flags().Uint64Var(&index, "index", 0, "the index; 0 for the last one applied")
	c.RunE = does(func(ctx context.Context, _ []string) error {
		d, err := ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.DigestAt, error) {
			if server != "" {
				return c.DigestOf(ctx, gpuai.ServerID(server), index)
			}
			return c.Digest(ctx, index)
		})
		if err != nil {
			return err
		}
		v := &view{head: []string{"INDEX", "DIGEST"}}
		v.row(d.Digest, num(d.Index), d.Digest)
		return a.show(ctx, v)
	})
	return a.talks(c)
}

func newPolicyGetCmd(a *app) *cobra.Command {
	return a.talks(&cobra.Command{
		Use: "get", Short: "Show the region's policy", Args: cobra.NoArgs,
		Example: `  gpuai operator policy get
  gpuai operator policy get -o json > policy.json`,
		RunE: does(func(ctx context.Context, _ []string) error {
			p, err := a.policy(ctx)
			if err != nil {
				return err
			}
			v, err := policyView(p)
			if err != nil {
				return err
			}
			return a.show(ctx, v)
		}),
	})
}

func (a *app) policy(ctx context.Context) (gpuai.Policy, error) {
	return ask(ctx, a, func(ctx context.Context, c *client.Client) (gpuai.Policy, error) { return c.Policy(ctx) })
}

// policyFields returns the fields of a policy in their order.
func policyFields(p gpuai.Policy) (names []string, values map[string]jsontext.Value, err error) {
	raw, err := json.Marshal(p)
	if err != nil {
		return nil, nil, err
	}
	dec := jsontext.NewDecoder(strings.NewReader(string(raw)))
	if _, err := dec.ReadToken(); err != nil {
		return nil, nil, err
	}
	values = map[string]jsontext.Value{}
	for dec.PeekKind() == '"' {
		t, err := dec.ReadToken()
		if err != nil {
			return nil, nil, err
		}
		name := t.String()
		v, err := dec.ReadValue()
		if err != nil {
			return nil, nil, err
		}
		names, values[name] = append(names, name), v.Clone()
	}
	return names, values, nil
}

func policyView(p gpuai.Policy) (*view, error) {
	names, values, err := policyFields(p)
	if err != nil {
		return nil, fmt.Errorf("reading the policy: %w", err)
	}
	v := &view{head: []string{"SETTING", "VALUE"}}
	for _, name := range names {
		text := strings.Trim(string(values[name]), `"`)
		if plain, ok := strings.CutSuffix(name, "_ms"); ok {
			var d gpuai.Duration
			if err := json.Unmarshal(values[name], &d); err != nil {
				return nil, err
			}
			name, text = plain, d.String()
		}
		v.row(name, name, text)
	}
	return v, nil
}

func newPolicySetCmd(a *app) *cobra.Command {
	var file string
	var dryRun bool
	c := &cobra.Command{
		Use: "set [SETTING=VALUE...]", Short: "Change settings of the region's policy",
		Long: `Change settings of the region's policy; the others stay as they are. Leases that
were granted keep the TTL that they have. --file sets the whole policy from the
JSON of "policy get -o json".`,
		Example: `  gpuai operator policy set lease_ttl_batch=15s lease_ttl_training=15s
  gpuai operator policy set flap_limit=5
  gpuai operator policy set preemption_gap=10 preemptible_training=false
  gpuai operator policy set exec=deny
  gpuai operator policy set packing=efw aging_every=1h usage_half_life=12h
  gpuai operator policy set preemption_gap=10 --dry-run     # which tasks would move, wait or end
  gpuai operator policy set --file policy.json`,
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "show what would follow and change nothing")
	c.Flags().StringVar(&file, "file", "", "the whole policy as JSON, - for standard input")
	c.RunE = does(func(ctx context.Context, args []string) error {
		if (file == "") == (len(args) == 0) {
			return usageError{errors.New("give settings as NAME=VALUE, or a --file, and not both")}
		}
		p, err := a.policy(ctx)
		if err != nil {
			return err
		}
		if file != "" {
			p, err = a.readPolicy(file)
		} else {
			p, err = changePolicy(p, args)
		}
		if err != nil {
			return err
		}
		if fields := p.Validate(); fields != nil {
			return &gpuai.Error{Code: gpuai.InvalidSpec, Detail: "the policy would be invalid", Fields: fields}
		}
		if dryRun {
			_, values, err := policyFields(p)
			if err != nil {
				return err
			}
			req := &client.PlanRequest{Policy: map[string]any{}}
			for name, value := range values {
				req.Policy[name] = value
			}
			return a.suppose(ctx, req)
		}
		_, err = ask(ctx, a, func(ctx context.Context, c *client.Client) (struct{}, error) {
			return struct{}{}, c.SetPolicy(ctx, p)
		})
		if err != nil {
			return err
		}
		v, err := policyView(p)
		if err != nil {
			return err
		}
		return a.showObject(ctx, p, v)
	})
	return a.talks(c)
}

func (a *app) readPolicy(path string) (p gpuai.Policy, err error) {
	src, err := a.readAll(path)
	if err != nil {
		return p, err
	}
	// The answer of "policy get -o json" may have the policy inside an object.
	var wrapped struct {
		Policy gpuai.Policy `json:"policy"`
		Index  uint64       `json:"index"`
	}
	p = gpuai.PolicyUnsaid()
	wrapped.Policy = p
	strict := json.RejectUnknownMembers(true)
	if json.Unmarshal(src, &wrapped, strict) == nil {
		return wrapped.Policy, nil
	}
	if err := json.Unmarshal(src, &p, strict); err != nil {
		return p, usageError{fmt.Errorf("%s is no policy: %w", path, err)}
	}
	return p, nil
}

func (a *app) readAll(path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(io.LimitReader(a.in, maxJobFile))
	}
	src, err := os.ReadFile(path)
	if err != nil {
		return nil, usageError{err}
	}
	return src, nil
}

// changePolicy returns p with settings of the form NAME=VALUE changed. A span
// of time may be given as "15s" under its name without "_ms".
func changePolicy(p gpuai.Policy, settings []string) (gpuai.Policy, error) {
	names, values, err := policyFields(p)
	if err != nil {
		return p, fmt.Errorf("reading the policy: %w", err)
	}
	for _, s := range settings {
		one, err := policySetting(s)
		if err != nil {
			return p, err
		}
		for name, v := range one {
			if _, known := values[name]; !known {
				var plain []string
				for _, n := range names {
					plain = append(plain, strings.TrimSuffix(n, "_ms"))
				}
				return p, usageError{fmt.Errorf("there is no setting %q; there are %s", name, strings.Join(plain, ", "))}
			}
			if values[name], err = json.Marshal(v); err != nil {
				return p, err
			}
		}
	}
	raw, err := json.Marshal(values, json.Deterministic(true))
	if err == nil {
		err = json.Unmarshal(raw, &p, json.RejectUnknownMembers(true))
	}
	if err != nil {
		return p, usageError{fmt.Errorf("the settings do not fit: %w", err)}
	}
	return p, nil
}

func newSnapshotSaveCmd(a *app) *cobra.Command {
	return a.talks(&cobra.Command{
		Use: "save FILE", Short: "Save a snapshot of the region's state", Args: cobra.ExactArgs(1),
		Long:    "Save a snapshot of the region's state, check it, and put it in place at FILE in\none step.",
		Example: `  gpuai operator snapshot save region.snap`,
		RunE: does(func(ctx context.Context, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			info, err := saveSnapshot(ctx, c, args[0])
			if err != nil {
				return err
			}
			return a.showObject(ctx, info, snapshotView(args[0], &info))
		}),
	})
}

// saveSnapshot writes beside path, checks, syncs, and renames: path holds a
// whole snapshot or what it held before.
func saveSnapshot(ctx context.Context, c *client.Client, path string) (info fsm.SnapshotInfo, err error) {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return info, fmt.Errorf("saving the snapshot: %w", err)
	}
	defer os.Remove(tmp)
	defer f.Close()
	if err := c.Snapshot(ctx, f); err != nil {
		return info, err
	}
	if info, err = proveSnapshot(f); err != nil {
		return info, fmt.Errorf("the snapshot that came is damaged, ask again: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return info, fmt.Errorf("saving the snapshot: %w", err)
	}
	return info, os.Rename(tmp, path)
}

// proveSnapshot reads a snapshot, and restores it into memory: a backup that was
// never restored is none.
func proveSnapshot(f io.ReadSeeker) (info fsm.SnapshotInfo, err error) {
	if _, err = f.Seek(0, io.SeekStart); err == nil {
		info, err = fsm.InspectSnapshot(bufio.NewReader(f))
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err == nil {
		_, err = fsm.Restore(bufio.NewReader(f), fsm.Options{})
	}
	return info, err
}

func newSnapshotInspectCmd(a *app) *cobra.Command {
	return a.prints(&cobra.Command{
		Use: "inspect FILE", Short: "Check a snapshot and show what is in it", Args: cobra.ExactArgs(1),
		Long:    "Check a snapshot by restoring it into memory, and show what is in it.",
		Example: `  gpuai operator snapshot inspect region.snap -o json`,
		RunE: does(func(ctx context.Context, args []string) error {
			if err := a.checkFormat(); err != nil {
				return err
			}
			f, err := os.Open(args[0])
			if err != nil {
				return usageError{err}
			}
			defer f.Close()
			info, err := proveSnapshot(f)
			if err != nil {
				return fmt.Errorf("%s is not a whole snapshot: %w", args[0], err)
			}
			return a.showObject(ctx, info, snapshotView(args[0], &info))
		}),
	})
}

func snapshotView(path string, s *fsm.SnapshotInfo) *view {
	v := &view{names: []string{path}}
	v.text = func(w io.Writer) error {
		return columns(w, [][]string{
			{"file", path}, {"bytes", num(s.Bytes)}, {"format", num(s.Format)}, {"feature level", num(s.Level)},
			{"region", string(s.Region)}, {"index", num(s.Index)}, {"term", num(s.Term)}, {"epoch", num(s.Epoch)},
			{"restore ID", s.RestoreID}, {"region time", gpuai.Duration(s.Time).String()}, {"digest", s.Digest},
			{"nodes", num(s.Nodes)}, {"jobs", num(s.Jobs)}, {"leases", num(s.Leases)},
		})
	}
	return v
}
