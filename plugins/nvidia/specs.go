//go:build cgo

package nvidia

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/NVIDIA/nvidia-container-toolkit/pkg/nvcdi"
	"github.com/NVIDIA/nvidia-container-toolkit/pkg/nvcdi/spec"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	cdispec "tags.cncf.io/container-device-interface/specs-go"
)

// What a CDI name of NVIDIA's begins with, and the driver's own specification.
const (
	cdiKind  = "nvidia.com/gpu"
	ownSpecs = "cdi" // directory in the state directory, which the agent reads too
	ownSpec  = "gpuai-nvidia.json"
)

// Specs know the CDI names of devices: those of the host's specifications, and for
// devices without one those of a specification that is written. Safe for
// concurrent use.
type specs struct {
	config *Config
	path   string // of the own one
	log    *slog.Logger

	mu   sync.Mutex // guards below
	host *cdi.Cache
	own  map[string]bool // devices of the own one
	made string          // the devices that the own one was made for
}

// newSpecs prepares the state directory; a specification of an earlier process is
// removed, for it may name what is not there any more.
func newSpecs(c *Config, stateDir string, log *slog.Logger) (*specs, error) {
	s := &specs{config: c, path: filepath.Join(stateDir, ownSpecs, ownSpec), log: log}
	if err := os.MkdirAll(filepath.Dir(s.path), 0o755); err != nil {
		return nil, fmt.Errorf("making the directory of CDI specifications: %w", err)
	}
	return s, s.remove()
}

func (s *specs) remove() error {
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing an old CDI specification: %w", err)
	}
	return nil
}

// name is the CDI name of a device, "" if there is none.
func (s *specs) name(g *gpu) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.config.CDI == cdiOff || g.Partitioned {
		return ""
	}
	byID := cdiKind + "=" + string(g.ID)
	if s.host != nil && s.host.GetDevice(byID) != nil {
		return byID
	}
	if name := fmt.Sprintf("%s=%d", cdiKind, g.Index); g.mig == nil && s.opens(name, g.minor) {
		return name
	}
	if s.own[string(g.ID)] {
		return byID
	}
	return ""
}

// opens reports whether a name of the host, which says a place and not a device,
// gives the device file of a GPU: the host's specification may be older than the
// order of its GPUs. The caller locks.
func (s *specs) opens(name string, minor int) bool {
	if s.host == nil {
		return false
	}
	d := s.host.GetDevice(name)
	return d != nil && slices.ContainsFunc(d.ContainerEdits.DeviceNodes, func(n *cdispec.DeviceNode) bool {
		return n.Path == fmt.Sprintf("/dev/nvidia%d", minor)
	})
}

// update reads the host's specifications, and writes the own one when the devices
// have changed and the host has not all of them.
func (s *specs) update(lib *library, gpus []gpu, w *watch) {
	if s.config.CDI == cdiOff {
		return
	}
	host, err := cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(s.config.CDIDirs...))
	if err != nil { // documented as impossible
		host = nil
	}
	s.mu.Lock()
	s.host = host
	s.mu.Unlock()
	var need, lack []string
	for i := range gpus {
		if gpus[i].Partitioned || gpus[i].lost() {
			continue
		}
		need = append(need, string(gpus[i].ID))
		if s.name(&gpus[i]) == "" {
			lack = append(lack, string(gpus[i].ID))
		}
	}
	devices := strings.Join(need, " ")
	if len(lack) == 0 || devices == s.made {
		return
	}
	s.made = devices
	defer w.enter("writing a CDI specification")()
	own, err := s.write(lib, need)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.own = own
	if err != nil {
		s.log.Warn("no CDI specification: tasks get device files, and no libraries of the driver", "err", err)
		if err := s.remove(); err != nil {
			s.log.Error("CDI", "err", err)
		}
	}
}

// write makes the own specification of devices by NVIDIA's generator, without its
// hooks, and returns those that are in it.
func (s *specs) write(lib *library, ids []string) (map[string]bool, error) {
	if missing := lacking(lib.has, forCDI); len(missing) > 0 {
		return nil, fmt.Errorf("NVML lacks %s", strings.Join(missing, ", "))
	}
	namer, err := nvcdi.NewDeviceNamer(nvcdi.DeviceNameStrategyUUID)
	if err != nil {
		return nil, err
	}
	made, err := nvcdi.New(
		nvcdi.WithNvmlLib(lib), nvcdi.WithMode(nvcdi.ModeNvml), nvcdi.WithLogger(quiet{s.log}),
		nvcdi.WithDriverRoot(s.config.DriverRoot), nvcdi.WithDevRoot(s.config.DevRoot),
		nvcdi.WithDeviceNamers(namer), nvcdi.WithDisabledHooks(nvcdi.AllHooks),
		nvcdi.WithFeatureFlags(nvcdi.FeatureDisableNvsandboxUtils), // one more library that may end the process
	)
	if err != nil {
		return nil, err
	}
	common, err := made.GetCommonEdits()
	if err != nil {
		return nil, err
	}
	strip(common.ContainerEdits)
	own := map[string]bool{}
	var devices []cdispec.Device
	for _, id := range ids { // one by one: a GPU in trouble must not take the others with it
		ds, err := made.GetDeviceSpecsByID(id)
		if err != nil || len(ds) != 1 {
			s.log.Warn("no CDI specification of a device: its tasks get device files, and no libraries of the driver", "device", id, "err", err)
			continue
		}
		strip(&ds[0].ContainerEdits)
		devices = append(devices, ds[0])
		own[id] = true
	}
	if len(devices) == 0 {
		return nil, errors.New("no device can be described")
	}
	vendor, class, _ := strings.Cut(cdiKind, "/")
	file, err := spec.New(spec.WithDeviceSpecs(devices), spec.WithEdits(*common.ContainerEdits), spec.WithVendor(vendor), spec.WithClass(class))
	if err != nil {
		return nil, err
	}
	return own, file.Save(s.path)
}

// strip takes out of edits what a task must not have: hooks, which run programs of
// the host, sockets of the host's daemons, and the variable that would have
// NVIDIA's own runtime add devices.
func strip(e *cdispec.ContainerEdits) {
	e.Hooks = nil
	e.Mounts = slices.DeleteFunc(e.Mounts, func(m *cdispec.Mount) bool {
		st, err := os.Stat(m.HostPath)
		return err != nil || st.Mode().Type() == fs.ModeSocket || strings.HasSuffix(m.ContainerPath, "/nvidia-mps")
	})
	e.Env = slices.DeleteFunc(e.Env, func(v string) bool { return strings.HasPrefix(v, EnvVisible+"=") })
}

// quiet is a logger for nvcdi, which tells of each file that a host lacks.
type quiet struct{ log *slog.Logger }

func (q quiet) Debugf(string, ...any)     {}
func (q quiet) Tracef(string, ...any)     {}
func (q quiet) Info(...any)               {}
func (q quiet) Infof(string, ...any)      {}
func (q quiet) Warning(...any)            {}
func (q quiet) Warningf(string, ...any)   {}
func (q quiet) Errorf(f string, a ...any) { q.log.Warn(fmt.Sprintf(f, a...)) }
