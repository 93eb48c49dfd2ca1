package gpuai

// A DiskUse says what a server's data directory holds, and what is left beside.
type DiskUse struct {
	Free          Bytes  `json:"free_bytes"` // of its file system
	Size          Bytes  `json:"size_bytes"` // of its file system
	LogBytes      Bytes  `json:"log_bytes"`
	SnapshotBytes Bytes  `json:"snapshot_bytes"`
	Snapshots     uint32 `json:"snapshots"`
}

// A ServerInfo is what a server says of its own process. It holds no secrets.
type ServerInfo struct {
	Server     ServerID `json:"server"`
	Version    string   `json:"version"`
	Go         string   `json:"go"` // "go1.26 linux/amd64"
	CPUs       uint32   `json:"cpus"`
	StartedAt  WallTime `json:"started_unix_ms"`
	Ready      bool     `json:"ready"`
	NotReady   string   `json:"not_ready,omitzero"` // why
	Sessions   uint32   `json:"agent_sessions"`
	Goroutines uint32   `json:"goroutines"`
	Heap       Bytes    `json:"heap_bytes"`
	Disk       DiskUse  `json:"disk"`
	// Config are the server's settings, by name.
	Config []Setting `json:"config"`
}

// A Setting is one setting of a server. The value of a secret is "[redacted]".
type Setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// What a server's debug route writes.
const (
	DebugLogs       = "logs"       // its newest log lines
	DebugGoroutines = "goroutines" // what its goroutines are doing
	DebugHeap       = "heap"       // who holds its memory
	DebugCPU        = "cpu"        // a CPU profile, for go tool pprof
	DebugMetrics    = "metrics"    // its /metrics page
)

// MaxDebugSeconds bounds a CPU profile.
const MaxDebugSeconds = 30
