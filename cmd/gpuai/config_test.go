package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/gpuai/gpuai"
	"github.com/gpuai/gpuai/agent"
	"github.com/gpuai/gpuai/internal/jobfile"
)

// TestEveryCommandHasAnExample walks the tree: whoever asks for --help gets
// something to copy.
func TestEveryCommandHasAnExample(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			walk(sub)
		}
		switch {
		case c.Hidden || c.Name() == "help" || c.Parent() != nil && c.Parent().Name() == "completion" || c.Name() == "completion":
		case c.Short == "":
			t.Errorf("%s has no summary", c.CommandPath())
		case !c.HasSubCommands() && !strings.Contains(c.Example, "gpuai "):
			t.Errorf("%s has no example", c.CommandPath())
		}
	}
	walk(newRoot(&app{}))
}

func TestTemplates(t *testing.T) {
	files, err := templates.ReadDir("templates")
	if err != nil || len(files) != len(templateNames) {
		t.Fatalf("%d files for %d names, %v", len(files), len(templateNames), err)
	}
	for _, kind := range templateNames {
		for _, name := range []string{"", "other"} {
			src, err := template(kind, name)
			if err != nil {
				t.Fatal(err)
			}
			spec, err := jobfile.Parse(kind, src)
			if err != nil {
				t.Fatal(err)
			}
			if want := max(name, kind); name != "" && spec.Name != name || name == "" && spec.Name != kind {
				t.Errorf("%s is called %s, want %s", kind, spec.Name, want)
			}
		}
	}
}

// TestCodesHaveExits checks that no code of the API is forgotten.
func TestCodesHaveExits(t *testing.T) {
	for c := gpuai.OK + 1; !strings.HasPrefix(c.String(), "unknown"); c++ {
		if codeExits[c] == 0 {
			t.Errorf("%v has no exit code", c)
		}
	}
}

func TestServerConfig(t *testing.T) {
	good := func() serverConfig {
		c := defaultServerConfig()
		c.ID, c.Data = "a", "/d"
		return c
	}
	c := good()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*serverConfig){
		`not "A"`:                       func(c *serverConfig) { c.ID = "A" },
		`--region must`:                 func(c *serverConfig) { c.Region = "" },
		"--data must":                   func(c *serverConfig) { c.Data = "" },
		`--http: "0.0.0.0:1" can be`:    func(c *serverConfig) { c.HTTP = "0.0.0.0:1" },
		`--raft: must be host:port`:     func(c *serverConfig) { c.Raft = "x" },
		"between 1 and 10, not 0":       func(c *serverConfig) { c.Multiplier = 0 },
		`form id=host:port, not "a"`:    func(c *serverConfig) { c.Peers = []string{"a"} },
		`form id=host:port, not "a=:1"`: func(c *serverConfig) { c.Peers = []string{"a=:1"} },
		`"a=h:2" twice`:                 func(c *serverConfig) { c.Peers = []string{"a=h:1", "a=h:2"} },
		`this server "a" too`:           func(c *serverConfig) { c.Peers = []string{"b=h:1"} },
		"give one of them":              func(c *serverConfig) { c.Bootstrap, c.Join = true, []string{"h:1"} },
		`as host:port, not "h"`:         func(c *serverConfig) { c.Join = []string{"h"} },
		"--advertise must be":           func(c *serverConfig) { c.Advertise = "0.0.0.0:7" },
		"told without --advertise":      func(c *serverConfig) { c.Join, c.Raft, c.Insecure = []string{"h:1"}, "0.0.0.0:7471", true },
		`not "loud"`:                    func(c *serverConfig) { c.Log.Level = "loud" },
		`"xml"`:                         func(c *serverConfig) { c.Log.Format = "xml" },
	} {
		c := good()
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want …%s…", err, want)
		}
	}
}

func TestAgentConfig(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "binary")
	file := filepath.Join(dir, "sim.json")
	if err := os.WriteFile(binary, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(`{"seed":"x"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	c := defaultAgentConfig()
	c.ID, c.Data, c.Watchdog, c.AllowProcess = "n1", dir, binary, true
	c.CPU, c.Memory, c.Ports, c.Price = "1.5", "2GiB", "29500-29515", "2.5"
	c.Labels = []string{"rack=c", "empty="}
	c.Drivers = []string{"sim=" + binary + "," + file, "other=" + binary}
	c.Egress, c.DNS, c.HostNetwork = "allow,10.20.0.0/16", []string{"9.9.9.9"}, true
	got, err := c.resolve()
	if err != nil {
		t.Fatal(err)
	}
	if m := got.Sandbox.Network.Mesh; m.Program == "" || m.Ports.String() != agent.DefaultMeshPorts() || m.MTU != agent.DefaultMeshMTU {
		t.Errorf("got %+v", m)
	}
	if n := got.Sandbox.Network; !n.Host || !n.Egress.Internet || len(n.Egress.Listed) != 1 || len(n.DNS) != 1 {
		t.Errorf("got %+v", n)
	}
	if got.CPU != 1500 || got.Memory != 2*gib || got.PortMin != 29500 || got.PortCount != 16 || got.Price != 2_500_000 ||
		len(got.Labels) != 2 || got.Labels["rack"] != "c" || !got.AllowProcess || got.Servers[0] != defaultAddr {
		t.Errorf("got %+v", got)
	}
	if len(got.Drivers) != 2 || string(got.Drivers[0].Config) != `{"seed":"x"}` || got.Drivers[1].Path != binary {
		t.Errorf("got %+v", got.Drivers)
	}
	for _, change := range []func(*agentConfig){
		func(c *agentConfig) { c.Ports = "1-65" },
		func(c *agentConfig) { c.Ports = "29500" },
		func(c *agentConfig) { c.Ports = "0-1" },
		func(c *agentConfig) { c.Drivers = []string{"sim=" + binary, "sim=" + binary} },
		func(c *agentConfig) { c.Drivers = []string{"Sim=" + binary} },
		func(c *agentConfig) { c.Drivers = []string{"sim=" + file} },
		func(c *agentConfig) { c.Labels = []string{"rack"} },
		func(c *agentConfig) { c.Servers = nil },
		func(c *agentConfig) { c.Watchdog = dir },
		func(c *agentConfig) { c.Egress = "169.254.169.254" },
		func(c *agentConfig) { c.Mesh = "on" },
		func(c *agentConfig) { c.MeshPorts = "28000" },
		func(c *agentConfig) { c.MeshPorts = "9-1" },
		func(c *agentConfig) { c.MeshMTU = 500 },
		func(c *agentConfig) { c.DNS = []string{"resolver"} },
		func(c *agentConfig) { c.DNS = []string{"127.0.0.53"} },
		func(c *agentConfig) { c.OCIRuntime, c.HostNetwork = ociNone, true },
	} {
		bad := c
		change(&bad)
		if _, err := bad.resolve(); err == nil {
			t.Errorf("was taken: %+v", bad)
		}
	}
}

func TestChangePolicy(t *testing.T) {
	p, err := changePolicy(gpuai.DefaultPolicy(), []string{"lease_ttl_batch=15s", "lease_grace_ms=3000", "flap_limit=7", "packing=efw", "aging_every=5m"})
	want := gpuai.DefaultPolicy()
	want.TTLBatch, want.Grace, want.FlapLimit, want.Packing, want.AgingEvery = 15*gpuai.Second, 3*gpuai.Second, 7, gpuai.PackingEFW, 5*gpuai.Minute
	if err != nil || p != want {
		t.Errorf("got %+v, %v; want %+v", p, err, want)
	}
	for _, s := range []string{"flap_limit", "x=1", "flap_limit=-1", "flap_limit=1.5", "flap_limit=null", "lease_ttl_batch=5", "priority_batch=300", "flap_limit=1 2", "packing=best"} {
		if p, err := changePolicy(gpuai.DefaultPolicy(), []string{s}); err == nil {
			t.Errorf("%s was taken: %+v", s, p)
		}
	}
}

func TestFreePorts(t *testing.T) {
	base, err := freePorts(64)
	if err != nil || base < 1024 || base+64 > 32_768 {
		t.Errorf("got %d, %v", base, err)
	}
}

// --driver auto names what the host has; who is named already keeps his
// configuration.
func TestDriverAuto(t *testing.T) {
	root := t.TempDir()
	for addr, gpu := range map[string][2]string{"0000:03:00.0": {"0x1002", "amdgpu"}, "0000:04:00.0": {"0x10de", "nvidia"}} {
		dir := filepath.Join(root, "sys/bus/pci/devices", addr)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"vendor": gpu[0], "class": "0x120000"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink("/sys/bus/pci/drivers/"+gpu[1], filepath.Join(dir, "driver")); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ given, want []string }{
		{nil, nil},
		{[]string{"sim"}, []string{"sim"}},
		{[]string{"auto"}, []string{"amd", "nvidia"}},
		{[]string{"auto", "sim,x.json", "auto"}, []string{"sim,x.json", "amd", "nvidia"}},
		{[]string{"nvidia=/opt/d,n.json", "auto"}, []string{"nvidia=/opt/d,n.json", "amd"}},
		{[]string{"amd,a.json", "auto"}, []string{"amd,a.json", "nvidia"}},
	} {
		cfg := agentConfig{Drivers: c.given}
		if got := cfg.driverFlags(root); !slices.Equal(got, c.want) {
			t.Errorf("%q stands for %q, want %q", c.given, got, c.want)
		}
	}
	cfg := agentConfig{Drivers: []string{"auto"}}
	if got := cfg.driverFlags(t.TempDir()); len(got) > 0 {
		t.Errorf("on a host without GPUs auto is %q", got)
	}
}
