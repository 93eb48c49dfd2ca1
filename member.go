package gpuai

// A MemberStatus is one server of a region, as the server that answers sees it.
type MemberStatus struct {
	Server  ServerID `json:"server"`
	Address string   `json:"address"` // of its Raft port
	Voter   bool     `json:"voter"`   // false: it is sent the log, and nothing waits for it
	Leader  bool     `json:"leader,omitzero"`
	// Reachable says that it answered when it was asked just now.
	Reachable bool `json:"reachable"`
	// AppliedIndex is how far its state is; 0 when it did not answer.
	AppliedIndex uint64 `json:"applied_index,omitzero"`
	// Quarantined says why it serves nothing; "" when it is not quarantined.
	Quarantined string `json:"quarantined,omitzero"`
}

// A MemberList is the servers of a region.
type MemberList struct {
	Members []MemberStatus `json:"members"`
	// Removed are the servers that were members: their IDs are never used again.
	Removed []ServerID `json:"removed"`
	Cluster ClusterID  `json:"cluster"`
	Index   uint64     `json:"index"`
}

// A MemberRequest is the body of POST /v1/operator/members.
type MemberRequest struct {
	Server  ServerID `json:"server"`
	Address string   `json:"address"` // host:port of its Raft port
}
