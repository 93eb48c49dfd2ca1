package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/fsm"
)

// divergeOnDisk gives a stopped server a snapshot, newer than its newest, of a
// state in which one record is another: the region's policy.
func divergeOnDisk(dir string) error {
	found, _ := filepath.Glob(filepath.Join(dir, "snapshots", "*", "meta.json"))
	if len(found) == 0 {
		return errors.New("there is no snapshot to begin with")
	}
	from := filepath.Dir(found[len(found)-1])
	head, err := os.ReadFile(filepath.Join(from, "meta.json"))
	if err != nil {
		return err
	}
	state, err := os.ReadFile(filepath.Join(from, "state.bin"))
	if err != nil {
		return err
	}
	var meta map[string]any
	if err := json.Unmarshal(head, &meta); err != nil {
		return err
	}
	index, term := uint64(meta["Index"].(float64))+1, uint64(meta["Term"].(float64))
	if state, err = otherState(state, index, term); err != nil {
		return err
	}
	id := fmt.Sprintf("%d-%d-9999999999999", term, index)
	sum := crc64.New(crc64.MakeTable(crc64.ECMA))
	sum.Write(state)
	meta["ID"], meta["Index"], meta["Size"], meta["CRC"] = id, index, len(state), sum.Sum(nil)
	if head, err = json.Marshal(meta); err != nil {
		return err
	}
	to := filepath.Join(dir, "snapshots", id)
	return errors.Join(os.Mkdir(to, 0o700),
		os.WriteFile(filepath.Join(to, "meta.json"), head, 0o600),
		os.WriteFile(filepath.Join(to, "state.bin"), state, 0o600))
}

// otherState applies another entry than the region's at an index.
func otherState(state []byte, index, term uint64) ([]byte, error) {
	m, err := fsm.Restore(bytes.NewReader(state), fsm.Options{})
	if err != nil {
		return nil, err
	}
	p := m.Policy()
	p.FlapLimit++
	cmd := (&fsm.SetPolicy{Policy: p}).Append(nil, fsm.Envelope{})
	var out fsm.Output
	err = m.Apply(index, term, fsm.AppendEntry(nil, fsm.Header{Time: m.Time(), Term: term}, cmd), &out)
	if err == nil && out.Results[0].Code != gpuai.OK {
		err = errors.New(out.Results[0].Detail)
	}
	var b bytes.Buffer
	err = errors.Join(err, m.WriteSnapshot(&b))
	return b.Bytes(), err
}

// metric reads one line of a server's metrics.
func (m *member) metric(name string) (string, error) {
	resp, err := http.Get("http://" + m.http + "/metrics")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, name) {
			return strings.TrimSpace(line), err
		}
	}
	return "", err
}

// TestCase19DivergedServer starts a server whose newest snapshot is of another
// state, under load. The next checkpoint finds it; it quarantines itself and
// comes back with the others' digest.
func TestCase19DivergedServer(t *testing.T) {
	t.Parallel()
	r := startRegion(t)
	r.register("n1")
	l := r.startLoad("case19")
	l.await(30)
	m := r.servers[0]
	if m == r.leader() {
		m = r.servers[1]
	}
	var saved bytes.Buffer
	eventually(t, patience, "snapshot on the server's disk", func(ctx context.Context) error {
		saved.Reset()
		resp, err := http.Get("http://" + m.http + "/v1/operator/snapshot?consistency=stale")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		_, err = io.Copy(&saved, resp.Body)
		return err
	})
	l.await(30)
	m.kill()
	if err := divergeOnDisk(m.dir); err != nil {
		t.Fatal(err)
	}
	r.start(m)
	eventually(t, 2*patience, "verdict of server "+m.id, func(context.Context) error {
		line, err := m.metric(`gpuai_fsm_divergence_total{server="` + m.id + `",verdict="wrong"}`)
		if err == nil && !strings.HasSuffix(line, " 1") {
			err = fmt.Errorf("the metric is %q", line)
		}
		return err
	})
	r.awaitReady()
	l.await(30)
	acked := l.halt()
	r.nothingLost(acked)
	r.equalDigests(newest(acked))
	if !strings.Contains(m.err.String(), "quarantined") || !strings.Contains(m.err.String(), "rebuilt") {
		t.Error("its log does not say what happened")
	}
}
