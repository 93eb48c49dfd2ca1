// Package telemetry holds what the binaries say about themselves: loggers,
// the metrics registry, the shim that lets libraries written for hclog log
// through slog, and the bridge that shows hashicorp/raft's own metrics beside
// ours.
//
// Every metric of this project begins with gpuai_ and uses base units; a test
// runs Prometheus' linter over the registry.
package telemetry
