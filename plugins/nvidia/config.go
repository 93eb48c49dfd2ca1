package nvidia

import (
	_ "embed"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// A Config is the driver's configuration. Every field may be left out.
type Config struct {
	// Library is the path of libnvidia-ml.so.1; "" has the loader find it.
	Library string `json:"library_path,omitzero"`
	// DriverRoot is where the vendor's libraries are looked for when a CDI
	// specification is written, DevRoot where the device files are; "/" when left out.
	DriverRoot string `json:"driver_root,omitzero"`
	DevRoot    string `json:"dev_root,omitzero"`
	// CDI is "auto" (also when left out): the host's specification, else one
	// of the driver's own, else device files; or "off" for device files only.
	CDI string `json:"cdi,omitzero"`
	// CDIDirs are the host's directories of specifications; /etc/cdi and
	// /var/run/cdi when left out.
	CDIDirs []string `json:"cdi_dirs,omitzero"`
	// MPSPipe is the pipe directory of the node's MPS control daemon; shares are
	// refused while none runs there. /tmp/nvidia-mps when left out, as CUDA has it.
	MPSPipe string `json:"mps_pipe_directory,omitzero"`
	// MPSShm is the daemon's /dev/shm, which a sandboxed client of it must see
	// as its own; "" for none.
	MPSShm string `json:"mps_shm_directory,omitzero"`
	// ComputeMode is "manage" (also when left out): a GPU that is shared is set
	// to EXCLUSIVE_PROCESS, which only the MPS server then opens, and one that is
	// handed out whole to DEFAULT; or "keep".
	ComputeMode string `json:"compute_mode,omitzero"`
	// Scrub is a program with its arguments that wipes the memory of the GPU in
	// CUDA_VISIBLE_DEVICES when it is released; none when left out.
	Scrub []string `json:"scrub_command,omitzero"`
	// AllowGraphics lets processes of a display hold a GPU that is released.
	AllowGraphics bool `json:"allow_graphics,omitzero"`
	// IgnoreXids are Xids that do not change the health of a device.
	IgnoreXids []uint64 `json:"ignore_xids,omitzero"`
	// ReleaseWait is how long the processes of a task that has ended may take to
	// let go of its devices; 3 s when left out.
	ReleaseWait gpuai.Duration `json:"release_wait_ms,omitzero"`
	// Scan is how often inventory and health are read; 5 s when left out.
	Scan gpuai.Duration `json:"scan_ms,omitzero"`
	// HangAfter is how long NVML may take for an answer; 20 s when left out.
	HangAfter gpuai.Duration `json:"hang_after_ms,omitzero"`
}

// Values of Config.
const (
	cdiAuto = "auto"
	cdiOff  = "off"

	modeManage = "manage"
	modeKeep   = "keep"
)

//go:embed schema.json
var schema string

// parse reads and checks a configuration and fills its defaults. Errors wrap
// plugins.ErrInvalid and name the field.
func parse(src []byte) (*Config, error) {
	c := new(Config)
	if len(src) > 0 {
		if err := plugins.DecodeConfig(src, c); err != nil {
			return nil, err
		}
	}
	c.fill()
	return c, c.check()
}

func (c *Config) fill() {
	set := func(to *string, value string) {
		if *to == "" {
			*to = value
		}
	}
	set(&c.DriverRoot, "/")
	set(&c.DevRoot, "/")
	set(&c.CDI, cdiAuto)
	set(&c.ComputeMode, modeManage)
	set(&c.MPSPipe, "/tmp/nvidia-mps")
	if c.CDIDirs == nil {
		c.CDIDirs = []string{"/etc/cdi", "/var/run/cdi"}
	}
	if c.Scan == 0 {
		c.Scan = 5 * gpuai.Second
	}
	if c.ReleaseWait == 0 {
		c.ReleaseWait = 3 * gpuai.Second
	}
	if c.HangAfter == 0 {
		c.HangAfter = 20 * gpuai.Second
	}
}

func (c *Config) check() error {
	paths := map[string]string{
		"/library_path": c.Library, "/driver_root": c.DriverRoot, "/dev_root": c.DevRoot,
		"/mps_pipe_directory": c.MPSPipe, "/mps_shm_directory": c.MPSShm,
	}
	for i, dir := range c.CDIDirs {
		paths[fmt.Sprintf("/cdi_dirs/%d", i)] = dir
	}
	if len(c.Scrub) > 0 {
		paths["/scrub_command/0"] = c.Scrub[0]
	}
	for at, path := range paths {
		if path != "" && !filepath.IsAbs(path) || path == "" && at == "/scrub_command/0" {
			return invalid(at, "must be an absolute path, not %q", path)
		}
	}
	switch {
	case !slices.Contains([]string{cdiAuto, cdiOff}, c.CDI):
		return invalid("/cdi", "must be %s or %s, not %q", cdiAuto, cdiOff, c.CDI)
	case !slices.Contains([]string{modeManage, modeKeep}, c.ComputeMode):
		return invalid("/compute_mode", "must be %s or %s, not %q", modeManage, modeKeep, c.ComputeMode)
	case c.Scan < 100 || c.Scan > gpuai.Minute:
		return invalid("/scan_ms", "must be between 100 and 60000, not %d", c.Scan)
	case c.ReleaseWait < 0 || c.ReleaseWait > gpuai.Minute:
		return invalid("/release_wait_ms", "must be between 1 and 60000, not %d", c.ReleaseWait)
	case c.HangAfter < gpuai.Second || c.HangAfter > 10*gpuai.Minute:
		return invalid("/hang_after_ms", "must be between 1000 and 600000, not %d", c.HangAfter)
	}
	return nil
}

func invalid(pointer, format string, args ...any) error {
	return fmt.Errorf("%w: configuration: %s %s", plugins.ErrInvalid, pointer, fmt.Sprintf(format, args...))
}
