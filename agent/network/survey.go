package network

import (
	"fmt"
	"os"

	"github.com/gpuai/gpuai/agent/network/mesh"
	"github.com/gpuai/gpuai/agent/network/netspace"
)

// Survey says what a host lacks for a policy: what keeps the gangs of sandboxes
// from having a network, and what keeps tasks from egress, nil where the policy
// lets them reach nothing. Nothing is loaded or left, so the host's agents go on.
func Survey(cfg Config) (gangs, egress error) {
	h, gangs := newHub()
	if gangs == nil {
		h.leave()
	}
	if !cfg.Egress.any() {
		return gangs, nil
	}
	n := &Node{cfg: cfg, owner: "survey"}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.prepareEgress(); err != nil {
		return gangs, err
	}
	return gangs, n.inHost(func() error {
		text, _, err := n.rules()
		if err != nil {
			return err
		}
		return nft(text, "-c")
	})
}

// SurveyMesh says what a host lacks to link gangs with their members on other nodes,
// and how many of the ports for that are free.
func SurveyMesh(cfg *Config) (free int, err error) {
	h, err := newHub()
	if err != nil {
		return 0, err
	}
	defer h.leave()
	if _, err := os.Stat(cfg.Mesh.Program); err != nil {
		return 0, fmt.Errorf("gpuai-mesh: %w", err)
	}
	if err := mesh.Probe(h.space); err != nil {
		return 0, err
	}
	err = netspace.Within(cfg.Space, func() error {
		free = cfg.Mesh.Ports.Free()
		return nil
	})
	return free, err
}
