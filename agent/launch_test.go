package agent

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/gpuai/gpuai"
)

// ranked is an assignment of a gang of three tasks with four GPUs each.
func ranked(rank uint32, change func(*gpuai.Assignment)) *gpuai.Assignment {
	a := &gpuai.Assignment{Lease: gpuai.Lease{ID: 77, Devices: []gpuai.DeviceID{"a", "b", "c", "d"}}, Attempt: 2}
	a.Gang = &gpuai.GangInfo{Rank: rank, Size: 3, Min: 3, Max: 3, MasterAddr: "10.0.0.1", MasterPort: 7000, Lead: 70}
	if change != nil {
		change(a)
	}
	return a
}

func TestTorchrunIsToldItsOptions(t *testing.T) {
	at := taskPlace{region: "r", dir: "/work", address: "10.0.0.2", ifname: "ib0"}
	torchrun := func(a *gpuai.Assignment) {
		a.Task.Launcher = gpuai.Launcher{Kind: gpuai.LauncherTorchrun, MaxRestarts: 5}
	}
	for name, test := range map[string]struct {
		rank   uint32
		change func(*gpuai.Assignment)
		want   string
	}{
		"rank 0":    {0, nil, "PET_MAX_RESTARTS=5 PET_NNODES=3 PET_NODE_RANK=0 PET_NPROC_PER_NODE=4 PET_RDZV_BACKEND=c10d PET_RDZV_CONF=is_host=1 PET_RDZV_ENDPOINT=10.0.0.1:7000"},
		"rank 2":    {2, nil, "NCCL_SOCKET_IFNAME=ib0 PET_NODE_RANK=2 PET_RDZV_CONF=is_host=0 PET_RDZV_ENDPOINT=10.0.0.1:7000 PET_LOCAL_ADDR=10.0.0.2 GLOO_SOCKET_IFNAME=ib0"},
		"elastic":   {1, func(a *gpuai.Assignment) { a.Gang.Min, a.Gang.Max = 2, 8 }, "PET_NNODES=2:8"},
		"processes": {1, func(a *gpuai.Assignment) { a.Task.Launcher.ProcsPerNode = 2 }, "PET_NPROC_PER_NODE=2"},
		"no GPUs":   {1, func(a *gpuai.Assignment) { a.Lease.Devices = nil }, "PET_NPROC_PER_NODE=1"},
		"no port":   {1, func(a *gpuai.Assignment) { a.Gang.MasterPort = 0 }, "PET_RDZV_ENDPOINT=10.0.0.1:29400"},
		"IPv6":      {1, func(a *gpuai.Assignment) { a.Gang.MasterAddr = "fd00::1" }, "PET_RDZV_ENDPOINT=[fd00::1]:7000"},
		"alone":     {0, func(a *gpuai.Assignment) { a.Gang = nil }, "PET_NNODES=1 PET_RDZV_ENDPOINT=localhost:0 PET_RDZV_ID=77 PET_NPROC_PER_NODE=4"},
		"user": {1, func(a *gpuai.Assignment) {
			a.Task.Env = map[string]string{"PET_NPROC_PER_NODE": "1", "NCCL_SOCKET_IFNAME": "eth7"}
		}, "PET_NPROC_PER_NODE=1 NCCL_SOCKET_IFNAME=eth7"},
	} {
		t.Run(name, func(t *testing.T) {
			a := ranked(test.rank, torchrun)
			if test.change != nil {
				test.change(a)
			}
			env := taskEnv(a, nil, at)
			for _, want := range strings.Fields(test.want) {
				if k, v, _ := strings.Cut(want, "="); env[k] != v {
					t.Errorf("%s=%s, want %s", k, env[k], v)
				}
			}
		})
	}
	plain := taskEnv(ranked(0, nil), nil, taskPlace{})
	for _, k := range slices.Sorted(maps.Keys(plain)) {
		if strings.HasPrefix(k, "PET_") || strings.HasSuffix(k, "_IFNAME") {
			t.Errorf("a task without a launcher is told %s", k)
		}
	}
}

// All members of one start of a gang meet, and nobody of another does.
func TestTorchrunMeetsOnlyItsOwnStart(t *testing.T) {
	id := func(rank uint32, change func(*gpuai.Assignment)) string {
		a := ranked(rank, change)
		a.Task.Launcher.Kind = gpuai.LauncherTorchrun
		a.Lease.ID += gpuai.Token(rank)
		return taskEnv(a, nil, taskPlace{})[gpuai.EnvTorchID]
	}
	first := id(0, nil)
	if second := id(2, nil); first == "" || first != second {
		t.Errorf("members meet at %q and %q", first, second)
	}
	for name, change := range map[string]func(*gpuai.Assignment){
		"another start": func(a *gpuai.Assignment) { a.Gang.Lead++ },
		"another group": func(a *gpuai.Assignment) { a.Lease.Group++ },
		"another job":   func(a *gpuai.Assignment) { a.Lease.Job[0]++ },
	} {
		if other := id(2, change); other == first {
			t.Errorf("%s meets at %s too", name, other)
		}
	}
}

func TestTorchrunRunsAPythonFile(t *testing.T) {
	task := gpuai.TaskSpec{Launcher: gpuai.Launcher{Kind: gpuai.LauncherTorchrun}}
	for argv, want := range map[string]string{"train.py --lr 1": "torchrun train.py --lr 1", "torchrun train.py": "torchrun train.py", "sh x.py": "sh x.py"} {
		if got := strings.Join(torch(&task, strings.Fields(argv)), " "); got != want {
			t.Errorf("%s is run as %s", argv, got)
		}
	}
	if got := torch(&gpuai.TaskSpec{}, []string{"train.py"}); len(got) != 1 {
		t.Errorf("without the launcher %q is run", got)
	}
}

func TestProcessesHaveTheirOwnDevices(t *testing.T) {
	for name, test := range map[string]struct {
		procs   uint32
		granted map[string]string
		user    map[string]string
		want    map[string][]string // beside the ranks
	}{
		"one each":    {0, map[string]string{"CUDA_VISIBLE_DEVICES": "w,x,y,z"}, nil, map[string][]string{"CUDA_VISIBLE_DEVICES": {"w", "x", "y", "z"}}},
		"two each":    {2, map[string]string{"ROCR_VISIBLE_DEVICES": "w,x,y,z"}, nil, map[string][]string{"ROCR_VISIBLE_DEVICES": {"w,x", "y,z"}}},
		"all":         {1, map[string]string{"CUDA_VISIBLE_DEVICES": "w,x,y,z"}, nil, nil},
		"by number":   {2, nil, nil, map[string][]string{"CUDA_VISIBLE_DEVICES": {"0,1", "2,3"}}},
		"user's own":  {2, map[string]string{"CUDA_VISIBLE_DEVICES": "w,x,y,z"}, map[string]string{"CUDA_VISIBLE_DEVICES": "3"}, nil},
		"other count": {2, map[string]string{"CUDA_VISIBLE_DEVICES": "all"}, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			a := ranked(1, func(a *gpuai.Assignment) {
				a.Task.Launcher = gpuai.Launcher{Kind: gpuai.LauncherEnv, ProcsPerNode: test.procs}
				a.Task.Env = test.user
			})
			env := map[string]string{}
			maps.Copy(env, test.granted)
			maps.Copy(env, test.user)
			got := deviceShares(a, a.Task.Launcher.Procs(4), env)
			if !maps.EqualFunc(got, test.want, slices.Equal[[]string]) {
				t.Errorf("%v, want %v", got, test.want)
			}
		})
	}
}

func TestEnvLauncherRuns(t *testing.T) {
	f := newFixture(t)
	f.run(nil)
	for _, test := range []struct {
		name  string
		gang  *gpuai.GangInfo
		state gpuai.ReportState
		code  int32
		run   string
		want  []string
	}{
		{"gang", &gpuai.GangInfo{Rank: 2, Size: 3, MasterAddr: "10.0.0.1", MasterPort: 7000}, gpuai.ReportDone, 0,
			"echo $RANK/$WORLD_SIZE $LOCAL_RANK/$LOCAL_WORLD_SIZE $MASTER_ADDR:$MASTER_PORT", []string{"[0] 4/6 0/2 10.0.0.1:7000", "[1] 5/6 1/2 10.0.0.1:7000"}},
		{"alone", nil, gpuai.ReportFailed, 3, "echo $RANK/$WORLD_SIZE $MASTER_ADDR; if [ $RANK = 0 ]; then : >said; exit; fi; while [ ! -e said ]; do sleep 0.02; done; exit 3", []string{"[0] 0/2 127.0.0.1", "[1] 1/2 127.0.0.1"}},
	} {
		lease := f.grant(testNode, func(a *gpuai.Assignment) {
			a.Gang, a.Task.Script = test.gang, test.run
			a.Task.Launcher = gpuai.Launcher{Kind: gpuai.LauncherEnv, ProcsPerNode: 2}
		})
		if r := f.last(lease); r.State != test.state || r.ExitCode != test.code {
			t.Errorf("%s: reported %+v", test.name, r)
		}
		c := f.log(testNode, gpuai.LogRequest{Lease: lease, Stream: "stdout", Limit: 1000})
		lines := strings.Split(strings.TrimSpace(string(c.Data)), "\n")
		slices.Sort(lines)
		if !slices.Equal(lines, test.want) {
			t.Errorf("%s: they say %q", test.name, lines)
		}
	}
}
