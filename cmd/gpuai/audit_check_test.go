package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// An auditedRegion has an audit, and serves it as servers do.
type auditedRegion struct {
	id      gpuai.RegionID
	m       *fsm.Machine
	index   uint64
	entries []gpuai.AuditEntry
	dropped uint64
	edit    func(lines []string) []string // of what is asked for; nil: none
}

// newAudited is a region whose audit has n entries from index 1 on: of 1 record each,
// the third of 2.
func newAudited(t *testing.T, id gpuai.RegionID, n int) *auditedRegion {
	r := &auditedRegion{id: id, m: fsm.New(fsm.Options{Region: id})}
	r.apply(t, &fsm.SetFeatureLevel{Level: fsm.MaxLevel})
	for i := 1; i < n; i++ {
		cmds := []fsm.Command{&fsm.CreateTenant{Tenant: gpuai.TenantID(fmt.Sprintf("%s-%d", id, i))}}
		if i == 2 {
			cmds = append(cmds, &fsm.CreateTenant{Tenant: "second"})
		}
		r.apply(t, cmds...)
	}
	return r
}

func (r *auditedRegion) apply(t *testing.T, cmds ...fsm.Command) {
	t.Helper()
	var raw [][]byte
	for _, c := range cmds {
		raw = append(raw, c.Append(nil, fsm.Envelope{Actor: "token/A@10.0.0.7"}))
	}
	r.index++
	var out fsm.Output
	if err := r.m.Apply(r.index, 1, fsm.AppendEntry(nil, fsm.Header{Time: gpuai.Instant(r.index), Term: 1}, raw...), &out); err != nil {
		t.Fatal(err)
	}
	e, err := fsm.ReadAudit(out.Audit)
	if err != nil {
		t.Fatal(err)
	}
	r.entries = append(r.entries, e)
}

// lines are an export.
func (r *auditedRegion) lines(since uint64) (out []string) {
	line := func(l gpuai.AuditLine) {
		raw, err := json.Marshal(l)
		if err != nil {
			panic(err)
		}
		out = append(out, string(raw))
	}
	line(gpuai.AuditLine{Begin: &gpuai.AuditBegin{Server: "a", Region: r.id, Since: since, Dropped: r.dropped}})
	for i := range r.entries {
		if e := &r.entries[i]; e.Index > max(since, r.dropped) {
			line(gpuai.AuditLine{Entry: e})
		}
	}
	head := r.m.AuditHead()
	line(gpuai.AuditLine{Head: &head})
	return out
}

func (r *auditedRegion) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	since, _ := strconv.ParseUint(q.URL.Query().Get("since"), 10, 64)
	w.Header().Set("Content-Type", "application/x-ndjson")
	lines := r.lines(since)
	if r.edit != nil {
		lines = r.edit(lines)
	}
	fmt.Fprintln(w, strings.Join(lines, "\n"))
}

// verify runs "gpuai operator audit verify" on a file's text, with the region to
// ask or, for nil, without.
func verify(t *testing.T, file string, r *auditedRegion, args ...string) (out, said string, code int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.jsonl")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	all := append([]string{"operator", "audit", "verify"}, args...)
	if file != "" || r == nil {
		all = append(all, "--file", path)
	}
	if r == nil {
		all = append(all, "--offline")
	} else {
		srv := httptest.NewServer(r)
		defer srv.Close()
		all = append(all, "--addr", srv.URL)
	}
	var stdout, stderr bytes.Buffer
	a := &app{in: strings.NewReader(""), out: &stdout, err: &stderr, name: "gpuai", getenv: func(string) string { return "" }}
	code = a.run(context.Background(), all)
	return stdout.String(), strings.ReplaceAll(stderr.String(), path, "a.jsonl"), code
}

func text(lines ...string) string { return strings.Join(lines, "\n") + "\n" }

// An exported file that somebody has edited: each time the error says which record,
// what was done to it, and what to do next. lines[0] is the begin, lines[i] the entry
// of index i, lines[7] the head.
func TestAuditVerifySaysWhatIsWrongWithAFile(t *testing.T) {
	r := newAudited(t, "east", 6)
	other := newAudited(t, "west", 6)
	without := func(from, to int) func([]string) string {
		return func(l []string) string { return text(slices.Delete(slices.Clone(l), from, to)...) }
	}
	changed := func(at int, old, new string) func([]string) string {
		return func(l []string) string {
			l = slices.Clone(l)
			if !strings.Contains(l[at], old) {
				t.Fatalf("line %d has no %s: %s", at, old, l[at])
			}
			l[at] = strings.Replace(l[at], old, new, 1)
			return text(l...)
		}
	}
	for name, c := range map[string]struct {
		edit func(lines []string) string
		says string
		next string
	}{
		"cut at its head": {without(0, 3), "a.jsonl, line 1: the audit is broken: it does not begin as an export does, with a line that names its region: its head was cut off", "nothing of this file is proven: export again, with"},
		"cut behind its first line": {without(1, 3),
			"a.jsonl, line 2: the audit is broken: it begins with record 3 (index 3), and the export had all from record 1 on: records 1 to 2 were cut off its head", "nothing of this file is proven"},
		"cut in its middle": {without(3, 5), "a.jsonl, line 4: the audit is broken: records 3 to 5 are missing, between index 2 and index 5: they were left out, or moved",
			"records 1 to 2, up to index 2, hold among themselves, what is behind proves nothing: compare with gpuai operator audit export --since 2 -o json"},
		"cut before its head line": {without(5, 7), "a.jsonl, line 6: the audit is broken: it ends with record 5 (index 4), and the head is at record 7 (index 6): records 6 to 7 were cut off its end", "records 1 to 5"},
		"cut at its tail":          {without(6, 8), "a.jsonl ends without the head that ends an export: its tail was cut off, or the export broke off", "records 1 to 6, up to index 5, hold among themselves"},
		"reordered": {func(l []string) string { return text(l[0], l[1], l[3], l[2], l[4], l[5], l[6], l[7]) },
			"a.jsonl, line 3: the audit is broken: records 2 to 2 are missing, between index 1 and index 3: they were left out, or moved; line 4 has record 2: lines are not in their order", "--since 1"},
		"the last moved up":       {func(l []string) string { return text(l[0], l[6], l[1], l[2], l[7]) }, "line 2: the audit is broken: it begins with record 7 (index 6)", "nothing"},
		"a line twice":            {func(l []string) string { return text(slices.Insert(slices.Clone(l), 3, l[3])...) }, "line 5: the audit is broken: records 3 to 4 (index 3) were repeated: the entry is there twice", "--since 3"},
		"a line moved down":       {func(l []string) string { return text(l[0], l[1], l[2], l[3], l[4], l[2], l[5], l[6], l[7]) }, "line 6: the audit is broken: record 2 (index 2) was moved or put in: before it is record 5 (index 4)", "--since 4"},
		"a field changed":         {changed(4, "token/A@10.0.0.7", "token/B@10.0.0.7"), "line 6: the audit is broken: record 5 (index 4) was changed after being recorded, or the hash in the entry of record 6 (index 5) was", "compare with"},
		"two records' field":      {changed(3, `"second"`, `"third"`), "line 5: the audit is broken: records 3 to 4 (index 3) were changed", "compare with"},
		"the last field changed":  {changed(6, "token/A", "token/B"), "line 8: the audit is broken: record 7 (index 6), its last, has hash", "records 1 to 7"},
		"a command renamed":       {changed(4, "create_tenant", "make_tenant"), `line 5: the audit is broken: the audit at index 4 has a command "make_tenant", which this version does not know`, "--since 3"},
		"a field that is unknown": {changed(4, `"command"`, `"comand"`), `line 5: the audit is broken: this is no line of an audit as this version knows it`, "--since 3"},
		"a line of another region": {func(l []string) string { l = slices.Clone(l); l[4] = other.lines(0)[4]; return text(l...) },
			"line 5: the audit is broken: records 3 to 4 (index 3) were changed after being recorded, or the hash in the entry of record 5 (index 4) was", "--since 3"},
		"an export of another region behind it": {func(l []string) string { return text(append(slices.Clone(l), other.lines(6)...)...) },
			"line 9: the audit is broken: an export of region east goes on with one of region west: they are not one audit", "records 1 to 7"},
		"an entry behind the head":  {func(l []string) string { return text(append(slices.Clone(l), l[6])...) }, "line 9: the audit is broken: something stands behind the head that ends an export", "records 1 to 7"},
		"half a line at the end":    {func(l []string) string { return text(l[:6]...) + l[6][:40] }, "line 7: the audit is broken: the last line ends in its middle: it was cut off, or the export broke off there", "--since 5"},
		"half a line in the middle": {func(l []string) string { return text(l[0], l[1][:40], l[2], l[7]) }, "line 2: the audit is broken: this is no line of an audit", "nothing"},
		"no JSON":                   {func([]string) string { return "TIME INDEX WHO\n" }, "line 1: the audit is broken: this is no line of an audit", "with gpuai operator audit export -o json"},
		"empty":                     {func([]string) string { return "" }, "a.jsonl is empty: the export wrote nothing, or all of it was cut off", "export again"},
		"an empty object":           {func([]string) string { return "{}\n" }, "line 1: the audit is broken: it does not begin", "nothing"},
		"the head alone":            {func(l []string) string { return text(l[0], l[7]) }, "line 2: the audit is broken: there are no entries, and the head is at record 7 (index 6): all of them were left out", "nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			out, said, code := verify(t, c.edit(r.lines(0)), nil)
			if code != exitOther || out != "" || !strings.Contains(said, c.says) || !strings.Contains(said, "  next: ") || !strings.Contains(said, c.next) {
				t.Errorf("exit %d, %q\n%swant %q\nnext %q", code, out, said, c.says, c.next)
			}
		})
	}
}

// What a file alone cannot show is seen by the region's head, or by one that was
// noted elsewhere.
func TestAuditVerifyComparesWithTheHead(t *testing.T) {
	r := newAudited(t, "east", 6)
	older := newAudited(t, "east", 4) // an export of before, which is a good one
	noted := r.m.AuditHead().Hash.String()
	late := r.lines(2)
	dropping := newAudited(t, "east", 6)
	dropping.dropped = 5
	for name, c := range map[string]struct {
		file string
		ask  *auditedRegion
		args []string
		code int
		says string // by the command's output or error
	}{
		"whole":                          {text(r.lines(0)...), r, nil, 0, "the chain holds: records 1 to 7, of log indexes 1 to 6, end as the region's state does\nhead " + noted},
		"without its last newline":       {strings.TrimSpace(text(r.lines(0)...)), nil, nil, 0, "end as the file says\nwhat was cut off together with the file's last line would not be seen"},
		"older":                          {text(older.lines(0)...), r, nil, 0, "records 1 to 7"},
		"two, one behind the other":      {text(append(older.lines(0), r.lines(4)...)...), nil, nil, 0, "records 1 to 7"},
		"of which one broke off":         {text(append(older.lines(0)[:4], r.lines(3)...)...), r, nil, 0, "records 1 to 7"},
		"of nothing new":                 {text(r.lines(6)...), r, nil, 0, "the audit has no entries there"},
		"cut with its head line":         {text(older.lines(0)...), nil, []string{"--head", noted}, 1, "no entry of records 1 to 5, up to index 4, has the hash " + noted + ": what led to that head was cut off"},
		"up to a noted head":             {text(r.lines(0)...), nil, []string{"--head", older.m.AuditHead().Hash.String()}, 0, "records 1 to 7, of log indexes 1 to 6, end as the file says\nhead"},
		"cut behind a noted head":        {text(r.lines(0)[:5]...), nil, []string{"--head", older.m.AuditHead().Hash.String()}, 0, "records 1 to 5"},
		"a noted head that is no hash":   {text(r.lines(0)...), nil, []string{"--head", "xyz"}, 2, "64 hexadecimal digits"},
		"cut at its tail":                {text(r.lines(0)[:5]...), r, nil, 1, "a.jsonl ends without the head that ends an export: its tail was cut off, or the export broke off; what it does have is what the region recorded\n  next: gpuai operator audit export --since 4 -o json >> a.jsonl completes it"},
		"cut at its head, with --since":  {text(append([]string{late[0]}, late[3:]...)...), r, nil, 1, "the file begins with record 6 (index 5), and the region has record 3 (index 3) before it, which the file's export asked for: records 3 to 5 were cut off its head\n  next: gpuai operator audit export --since 2"},
		"with --since":                   {text(late...), r, nil, 0, "records 3 to 7"},
		"another region's":               {text(newAudited(t, "west", 4).lines(0)...), r, nil, 1, "the file and what server a has behind it do not fit: the audit is broken: an export of region west goes on with one of region east"},
		"another's that was renamed":     {strings.ReplaceAll(text(newAudited(t, "west", 4).lines(0)...), `"region":"west"`, `"region":"east"`), r, nil, 1, "do not fit: the audit is broken: record 5 (index 4) was changed after being recorded, or the hash in the entry of record 6 (index 5) was"},
		"newer than the region":          {text(r.lines(0)...), older, nil, 1, "it goes on to record 7 (index 6), and the head is at record 5 (index 4): the head is that of an older state"},
		"of before what has made way":    {text(older.lines(0)...), dropping, nil, 1, "this archive dropped its entries up to index 5"},
		"another region as long, at end": {strings.ReplaceAll(text(newAudited(t, "west", 6).lines(0)...), `"region":"west"`, `"region":"east"`), r, nil, 1, "and the head at record 7 (index 6) has " + noted + ": it was changed, or did not happen"},
	} {
		t.Run(name, func(t *testing.T) {
			out, said, code := verify(t, c.file, c.ask, c.args...)
			if code != c.code || !strings.Contains(out+said, c.says) {
				t.Errorf("exit %d, want %d\n%s%swant %q", code, c.code, out, said, c.says)
			}
		})
	}
}

// A server whose archive was changed, or whose answer breaks off.
func TestAuditVerifySaysWhatIsWrongWithAnArchive(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(lines []string) []string
		says string
	}{
		"an entry left out": {func(l []string) []string { return slices.Delete(l, 3, 4) },
			"server a: the audit is broken: records 3 to 4 are missing, between index 2 and index 4: they were left out, or moved\n  next: verify the archives of the others with --server"},
		"the oldest left out": {func(l []string) []string { return slices.Delete(l, 1, 2) }, "records 1 to 1 were cut off its head"},
		"an answer cut off":   {func(l []string) []string { return l[:4] }, "the export of the audit broke off: ask again"},
	} {
		r := newAudited(t, "east", 6)
		r.edit = c.edit
		if out, said, code := verify(t, "", r); code != exitOther || !strings.Contains(said, c.says) {
			t.Errorf("%s: exit %d\n%s%swant %q", name, code, out, said, c.says)
		}
	}
}
