package agent

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gpuai/gpuai"
)

// The oldest attempts that have ended make way when the output of all is too
// much; what runs is kept.
func TestOldAttemptsMakeWay(t *testing.T) {
	f := newFixture(t)
	a := f.run(func(c *Config) { c.LogSpace = 150 << 10 })
	big := script(`head -c 65536 /dev/zero`)
	var leases []gpuai.Token
	for range 3 {
		lease := f.grant(testNode, big)
		if r := f.last(lease); r.State != gpuai.ReportDone {
			t.Fatalf("reported %+v", r)
		}
		leases = append(leases, lease)
		age := time.Now().Add(time.Duration(len(leases)-10) * time.Hour)
		if err := os.Chtimes(a.taskDir(lease), age, age); err != nil {
			t.Fatal(err)
		}
	}
	live := f.grant(testNode, script(`head -c 65536 /dev/zero; sleep 60`))
	f.running(live)
	// The end of another has the agent look: 3 and the one that runs are too many.
	f.last(f.grant(testNode, script("exit 0")))
	eventually(t, "the oldest to go", func() bool {
		_, first := os.Stat(a.taskDir(leases[0]))
		_, second := os.Stat(a.taskDir(leases[1]))
		return os.IsNotExist(first) && os.IsNotExist(second)
	})
	for _, t1 := range []gpuai.Token{leases[2], live} {
		if _, err := os.Stat(filepath.Join(a.taskDir(t1), "stdout.0.log")); err != nil {
			t.Error(err)
		}
	}
	if c := f.log(testNode, gpuai.LogRequest{Lease: live, Stream: "stdout", Limit: 10, Times: true}); len(c.Data) != 10 || len(c.Times) == 0 {
		t.Errorf("the one that runs has %+v", c)
	}
	if c := f.log(testNode, gpuai.LogRequest{Lease: leases[0], Stream: "stdout"}); c.Error == "" {
		t.Errorf("the first has %+v", c)
	}
}
