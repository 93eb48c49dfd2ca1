package network

// Survey says what a host lacks for a policy: what keeps the gangs of sandboxes
// from having a network, and what keeps tasks from egress, nil where the policy
// lets them reach nothing. Nothing is loaded or left, so the host's agents go on.
func Survey(cfg Config) (gangs, egress error) {
	h, gangs := newHub()
	if gangs == nil {
		h.space.Close()
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
