package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A slurm is a controller of its own with its own munge, in a directory of its
// own. Its nodes never come up.
type slurm struct {
	dir   string
	name  string
	nodes int
	munge *exec.Cmd
	ctl   *exec.Cmd
}

// conf is the configuration. The tuned parameters are those of the guide for
// high throughput: no wait between attempts, deeper queues, submits that leave
// the placement to the main loop.
const conf = `ClusterName=peers
SlurmctldHost=%[1]s(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=%[2]s/munge.sock
CredType=cred/munge
StateSaveLocation=%[2]s/state
SlurmdSpoolDir=%[2]s/spool
SlurmctldPidFile=%[2]s/slurmctld.pid
SlurmctldLogFile=%[2]s/slurmctld.log
SlurmctldDebug=info
LogTimeFormat=iso8601_ms
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SchedulerType=sched/backfill
MpiDefault=none
ResumeProgram=/bin/true
SuspendProgram=/bin/true
SuspendTime=-1
ResumeTimeout=36000
ResumeRate=0
MaxJobCount=200000
MessageTimeout=100
MaxArraySize=100001
%[4]sNodeName=n[00001-%05[3]d] CPUs=96 RealMemory=900000 Gres=gpu:8 State=CLOUD
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
`

const tuned = "SchedulerParameters=defer,sched_min_interval=0,sched_interval=1,batch_sched_delay=0,default_queue_depth=10000,partition_job_depth=10000,bf_interval=1,bf_max_job_test=10000,bf_continue,max_rpc_cnt=150\n"

func startSlurm(ctx context.Context, nodes int, tune bool) (*slurm, error) {
	for _, tool := range []string{"munged", "slurmctld", "sbatch", "scontrol"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("there is no %s: apt-get install --no-install-recommends slurmctld slurm-client munge", tool)
		}
	}
	dir, err := os.MkdirTemp("", "peers-slurm-")
	if err != nil {
		return nil, err
	}
	s := &slurm{dir: dir, name: "slurm", nodes: nodes}
	extra := ""
	if tune {
		s.name, extra = "slurm-tuned", tuned
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	key := make([]byte, 1024)
	_, _ = rand.Read(key)
	err = errors.Join(
		os.Mkdir(filepath.Join(dir, "state"), 0o755), os.Mkdir(filepath.Join(dir, "spool"), 0o755),
		os.WriteFile(filepath.Join(dir, "munge.key"), key, 0o400),
		os.WriteFile(filepath.Join(dir, "gres.conf"), []byte("NodeName=n[00001-"+fmt.Sprintf("%05d", nodes)+"] Name=gpu Count=8\n"), 0o644),
		os.WriteFile(filepath.Join(dir, "job.sh"), []byte("#!/bin/sh\nexit 0\n"), 0o755),
		os.WriteFile(s.conf(), fmt.Appendf(nil, conf, host, dir, nodes, extra), 0o644),
		os.Chmod(dir, 0o755))
	if err == nil {
		err = s.start(ctx)
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

func (s *slurm) conf() string { return filepath.Join(s.dir, "slurm.conf") }

func (s *slurm) log() string { return filepath.Join(s.dir, "slurmctld.log") }

func (s *slurm) start(ctx context.Context) error {
	s.munge = exec.Command("munged", "--foreground", "--force", "--key-file="+s.dir+"/munge.key", "--socket="+s.dir+"/munge.sock",
		"--pid-file="+s.dir+"/munged.pid", "--log-file="+s.dir+"/munged.log", "--seed-file="+s.dir+"/munge.seed")
	if err := s.munge.Start(); err != nil {
		return err
	}
	if err := until(ctx, 10*time.Second, "munge's socket", func() bool { _, err := os.Stat(s.dir + "/munge.sock"); return err == nil }); err != nil {
		return err
	}
	s.ctl = exec.Command("slurmctld", "-D", "-f", s.conf())
	s.ctl.Env = s.env()
	if err := s.ctl.Start(); err != nil {
		return err
	}
	return until(ctx, time.Minute, "slurmctld to answer, see "+s.log(), func() bool {
		out, err := s.command(ctx, "scontrol", "ping").Output()
		return err == nil && strings.Contains(string(out), "UP")
	})
}

func (s *slurm) env() []string { return append(os.Environ(), "SLURM_CONF="+s.conf()) }

func (s *slurm) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.Env = s.env()
	return c
}

func (s *slurm) stop() {
	for _, c := range []*exec.Cmd{s.ctl, s.munge} {
		if c != nil && c.Process != nil {
			_ = c.Process.Signal(syscall.SIGKILL)
			_ = c.Wait()
		}
	}
	_ = os.RemoveAll(s.dir)
}

// submit submits one job, or an array of n, and returns its number.
func (s *slurm) submit(ctx context.Context, array int) (int, error) {
	args := []string{"--parsable", "--gres=gpu:1", "-c", "1", "--mem=1G", "-o", "/dev/null"}
	if array > 0 {
		args = append(args, "--array=0-"+strconv.Itoa(array-1))
	}
	out, err := s.command(ctx, "sbatch", append(args, s.dir+"/job.sh")...).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("sbatch: %w: %s", err, out)
	}
	return strconv.Atoi(strings.TrimSpace(string(out)))
}

// cpu is what the controller has used.
func (s *slurm) cpu() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.ctl.Process.Pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond, nil // USER_HZ is 100
}

// until waits for a condition.
func until(ctx context.Context, limit time.Duration, what string, ok func() bool) error {
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %v in vain for %s", limit, what)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
