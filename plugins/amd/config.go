package amd

import (
	_ "embed"
	"fmt"
	"path/filepath"
	"regexp"
	"time"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/plugins"
)

// A Config says where to look and what not to offer. The zero Config is that of a
// plain host.
type Config struct {
	// Root is the directory that stands for "/", which it is when left out.
	Root string `json:"root,omitzero"`
	// Exclude lists PCI addresses of GPUs that are not offered.
	Exclude []string `json:"exclude,omitzero"`
	// CDIDirs are the host's directories of CDI specifications, below Root; nil
	// means those of the CDI specification. The agent must look there too.
	CDIDirs []string `json:"cdi_dirs,omitzero"`
	// Period is how often devices and health are looked at; 2 s when left out.
	Period gpuai.Duration `json:"period_ms,omitzero"`
}

//go:embed schema.json
var schema string

const (
	defaultPeriod = 2_000
	minPeriod     = 100
	maxPeriod     = 60_000
)

var pciAddress = regexp.MustCompile(`^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)

// parse reads and checks a configuration. Errors wrap plugins.ErrInvalid and name
// the field.
func parse(src []byte) (*Config, error) {
	c := &Config{Root: "/", Period: defaultPeriod, CDIDirs: []string{"/etc/cdi", "/var/run/cdi"}}
	if err := plugins.DecodeConfig(src, c); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(c.Root) {
		return nil, invalid("/root", "must be an absolute path, not %q", c.Root)
	}
	if len(c.Exclude) > gpuai.MaxGPUs {
		return nil, invalid("/exclude", "has %d entries, a node has at most %d devices", len(c.Exclude), gpuai.MaxGPUs)
	}
	for i, addr := range c.Exclude {
		if !pciAddress.MatchString(addr) {
			return nil, invalid(fmt.Sprintf("/exclude/%d", i), "must be a PCI address such as 0000:03:00.0, not %q", addr)
		}
	}
	for i, dir := range c.CDIDirs {
		if !filepath.IsAbs(dir) {
			return nil, invalid(fmt.Sprintf("/cdi_dirs/%d", i), "must be an absolute path, not %q", dir)
		}
	}
	if c.Period < minPeriod || c.Period > maxPeriod {
		return nil, invalid("/period_ms", "must be between %d and %d, not %d", minPeriod, maxPeriod, c.Period)
	}
	return c, nil
}

func invalid(pointer, format string, args ...any) error {
	return fmt.Errorf("%w: configuration: %s %s", plugins.ErrInvalid, pointer, fmt.Sprintf(format, args...))
}

func (c *Config) period() time.Duration { return time.Duration(c.Period) * time.Millisecond }
