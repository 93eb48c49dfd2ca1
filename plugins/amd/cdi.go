package amd

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"tags.cncf.io/container-device-interface/pkg/cdi"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

const (
	cdiKind = "amd.com/gpu"
	cdiDir  = "cdi" // of the state directory; the agent reads it
	cdiFile = "amd.com-gpu.json"
	kfdNode = "dev/kfd"
)

// nameCDI gives every device its CDI name: the host's, where a specification of
// the host gives just this device to a container; else ours. It returns the
// specification for the latter, nil if there is none.
func (t tree) nameCDI(gpus []gpu, hostDirs []string) *specs.Spec {
	host := t.hostNames(hostDirs)
	var ours []gpu
	for i := range gpus {
		g := &gpus[i]
		if g.Partitioned {
			continue
		}
		// ROCm finds an indexed device by its place, which is another one in a
		// container: only our specification puts that right.
		if name := host["/"+g.renderNode()]; name != "" && !g.indexed() {
			g.CDIName = name
			continue
		}
		g.CDIName = cdiKind + "=" + string(g.ID)
		ours = append(ours, *g)
	}
	if len(ours) == 0 {
		return nil
	}
	return t.spec(ours)
}

// hostNames maps render nodes to the host's names for them. A device that brings
// hooks, other render nodes or no /dev/kfd is not one of those.
func (t tree) hostNames(hostDirs []string) map[string]string {
	var dirs []string
	for _, d := range hostDirs {
		dirs = append(dirs, t.path(d))
	}
	cache, err := cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(dirs...))
	if err != nil {
		return nil
	}
	out := map[string]string{}
	for _, name := range cache.ListDevices() {
		d := cache.GetDevice(name)
		if d == nil || !strings.HasPrefix(name, cdiKind+"=") {
			continue
		}
		all := []*specs.ContainerEdits{&d.ContainerEdits, &d.GetSpec().ContainerEdits}
		if node := onlyRender(all); node != "" && out[node] == "" {
			out[node] = name
		}
	}
	return out
}

// onlyRender returns the one render node of a device, or "".
func onlyRender(all []*specs.ContainerEdits) string {
	var renders []string
	kfd := false
	for _, e := range all {
		if len(e.Hooks) > 0 {
			return ""
		}
		for _, n := range e.DeviceNodes {
			from := n.HostPath
			if from == "" {
				from = n.Path
			}
			kfd = kfd || from == "/"+kfdNode
			if strings.HasPrefix(filepath.Base(from), "renderD") {
				renders = append(renders, from)
			}
		}
	}
	if renders = slices.Compact(renders); !kfd || len(renders) != 1 {
		return ""
	}
	return renders[0]
}

// writeCDI writes our specification to the state directory, or removes it.
func writeCDI(s *specs.Spec, stateDir string) error {
	dir := filepath.Join(stateDir, cdiDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("writing the CDI specification: %w", err)
	}
	cache, err := cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(dir))
	if err != nil {
		return fmt.Errorf("writing the CDI specification: %w", err)
	}
	if s == nil {
		err = cache.RemoveSpec(cdiFile)
	} else {
		err = cache.WriteSpec(s, cdiFile)
	}
	if err != nil {
		return fmt.Errorf("writing the CDI specification: %w", err)
	}
	return nil
}

// spec describes devices to a container: /dev/kfd, which is the same for all, and
// the render node of each. It has no hooks.
func (t tree) spec(gpus []gpu) *specs.Spec {
	s := &specs.Spec{Kind: cdiKind}
	s.ContainerEdits.DeviceNodes = []*specs.DeviceNode{t.deviceNode(kfdNode)}
	var places []string
	for i := range gpus {
		g := &gpus[i]
		s.Devices = append(s.Devices, specs.Device{
			Name:           string(g.ID),
			ContainerEdits: specs.ContainerEdits{DeviceNodes: []*specs.DeviceNode{t.deviceNode(g.renderNode())}},
		})
		places = append(places, strconv.Itoa(len(places)))
	}
	if slices.ContainsFunc(gpus, func(g gpu) bool { return g.indexed() }) {
		// A container sees only its own devices, counted anew: all of them, since
		// ROCm passes over what is beyond their number.
		s.ContainerEdits.Env = []string{gpuai.EnvROCRDevices + "=" + strings.Join(places, ",")}
	}
	version, err := specs.MinimumRequiredVersion(s)
	if err != nil {
		version = specs.CurrentVersion
	}
	s.Version = version
	return s
}

func (t tree) deviceNode(node string) *specs.DeviceNode {
	n := &specs.DeviceNode{Path: "/" + node, Permissions: "rw"}
	if from := t.path(node); from != n.Path {
		n.HostPath = from
	}
	return n
}

// grant is what a task needs for its devices.
func (t tree) grant(gpus []*gpu) plugins.Grant {
	out := plugins.Grant{Env: map[string]string{}}
	var tokens []string
	for _, g := range gpus {
		tokens = append(tokens, g.Token)
		out.CDI = append(out.CDI, g.CDIName)
	}
	out.Env[gpuai.EnvROCRDevices] = strings.Join(tokens, ",")
	out.CPUSet, out.MemSet = t.near(gpus)
	return out
}

// near returns the CPUs and the memory near all of the devices, or nothing when
// they are on several NUMA nodes, or none is known.
func (t tree) near(gpus []*gpu) (cpus, mems string) {
	numa := gpus[0].NUMANode
	for _, g := range gpus {
		if g.NUMANode != numa {
			return "", ""
		}
	}
	if numa < 0 {
		return "", ""
	}
	mems = strconv.Itoa(int(numa))
	cpus = t.word("sys/devices/system/node/node"+mems, "cpulist")
	if cpus == "" || strings.Trim(cpus, "0123456789,-") != "" {
		return "", ""
	}
	return cpus, mems
}
