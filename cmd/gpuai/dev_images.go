package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"syscall"
	"time"

	"github.com/gpuai/gpuai/agent"
	"github.com/gpuai/gpuai/agent/image"
)

const (
	// devSandboxed is the value of --sandbox that takes no excuse.
	devSandboxed = "oci"
	// devImageCache bounds each host's images, and devRegistryBytes the registry.
	devImageCache    = 10 << 30
	devRegistryBytes = 16 << 30
)

// sandboxConfig is what the hosts' agents need to run tasks with images.
func (d *devRegion) sandboxConfig() *agent.SandboxConfig {
	if d.sandbox == ociNone {
		return nil
	}
	out := &agent.SandboxConfig{
		Runtime: "runc", Optional: d.sandbox == ociAuto,
		Images: agent.ImageConfig{MaxBytes: devImageCache, LocalRegistry: true},
	}
	out.Network.Mesh.Program = beside(meshBinary)
	if err := agent.ReadMeshPorts(&out.Network.Mesh, agent.DefaultMeshPorts()); err != nil {
		panic(err) // a constant
	}
	return out
}

// sandboxed notes whether a host runs tasks with images: all do, or none.
func (d *devRegion) sandboxed(g *agent.Agent) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.runtime, d.lacks = g.Sandboxes()
}

// sandboxText says whether tasks with images run here, and if not, what to do.
func (d *devRegion) sandboxText() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.runtime != "":
		return "Tasks with an image run in OCI sandboxes by " + d.runtime + "."
	case d.sandbox == ociNone:
		return "Tasks with an image do not run: --sandbox none was given."
	}
	return fmt.Sprintf("Tasks with an image do not run: %v.\nTo run them, start gpuai dev as root with runc installed (apt install runc).", d.lacks)
}

// startRegistry serves the registry. Another port than the default one is taken
// when that is in use, since a second region has its own.
func (d *devRegion) startRegistry(addr string) error {
	if addr == ociNone {
		return nil
	}
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) && addr == defaultRegistry {
		l, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		return fmt.Errorf("the registry: %w: choose another address with --registry, or none", err)
	}
	h, err := image.NewRegistry(filepath.Join(d.data, "registry"), devRegistryBytes)
	if err != nil {
		l.Close()
		return err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	d.registry, d.stopRegistry = l.Addr().String(), func() { srv.Close() }
	d.run(&d.serving, "the registry", func() error {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	return nil
}

// registryText says how to bring images to the registry.
func (d *devRegion) registryText(name string) string {
	if d.registry == "" {
		return ""
	}
	export := ""
	if d.registry != defaultRegistry {
		export = "  export GPUAI_REGISTRY=" + d.registry + "\n"
	}
	return fmt.Sprintf(`
Images: the registry is %[1]s; job files name them %[1]s/NAME.
%[3]s  %[2]s image push PATH app:v1
`, d.registry, name, export)
}
