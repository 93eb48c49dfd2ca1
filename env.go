package gpuai

import (
	"maps"
	"slices"
)

// EnvNames returns the keys of m in order: the only way the core walks a map.
func EnvNames(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

// Names of the variables that a task finds in its environment.
const (
	EnvJob          = "GPUAI_JOB"
	EnvLease        = "GPUAI_LEASE_ID"
	EnvToken        = "GPUAI_FENCING_TOKEN" // the lease's ID too
	EnvRegion       = "GPUAI_REGION"
	EnvArrayIndex   = "GPUAI_ARRAY_INDEX"
	EnvArraySize    = "GPUAI_ARRAY_SIZE"
	EnvRestart      = "GPUAI_RESTART" // restarts used before this run
	EnvGPUs         = "GPUAI_GPUS"    // devices of this task
	EnvNodeRank     = "GPUAI_NODE_RANK"
	EnvNodes        = "GPUAI_NODES"
	EnvNodesMin     = "GPUAI_NODES_MIN" // of an elastic gang
	EnvNodesMax     = "GPUAI_NODES_MAX"
	EnvNodeIPs      = "GPUAI_NODE_IPS" // comma-separated, by rank
	EnvMasterAddr   = "MASTER_ADDR"
	EnvMasterPort   = "MASTER_PORT"
	EnvCUDADevices  = "CUDA_VISIBLE_DEVICES"
	EnvROCRDevices  = "ROCR_VISIBLE_DEVICES"
	EnvSimDevices   = "GPUAI_SIM_DEVICES" // devices of the simulation driver
	EnvTaskDir      = "GPUAI_TASK_DIR"    // the task's own directory
	EnvTaskGroup    = "GPUAI_GROUP"       // the group's name
	EnvTaskIndex    = "GPUAI_TASK_INDEX"  // the task's place in its group
	EnvStopDeadline = "GPUAI_STOP_GRACE_MS"

	EnvCheckpointDir = "GPUAI_CHECKPOINT_DIR" // where the task publishes checkpoints
	EnvResumeFrom    = "RESUME_FROM"          // the newest one, when there is one
	EnvResumeOwn     = "GPUAI_RESUME_FROM"    // the same, which a user's value does not hide
	EnvResumeStep    = "GPUAI_RESUME_STEP"    // how far it says that it was
)

// What a launcher tells a task's processes.
const (
	EnvRank           = "RANK" // of a process
	EnvLocalRank      = "LOCAL_RANK"
	EnvWorldSize      = "WORLD_SIZE"
	EnvLocalWorldSize = "LOCAL_WORLD_SIZE"

	// Options of torchrun.
	EnvTorchNodes       = "PET_NNODES" // N, or MIN:MAX of an elastic gang
	EnvTorchProcs       = "PET_NPROC_PER_NODE"
	EnvTorchBackend     = "PET_RDZV_BACKEND"
	EnvTorchEndpoint    = "PET_RDZV_ENDPOINT"
	EnvTorchID          = "PET_RDZV_ID" // of this start of the gang
	EnvTorchConf        = "PET_RDZV_CONF"
	EnvTorchNodeRank    = "PET_NODE_RANK"
	EnvTorchMaxRestarts = "PET_MAX_RESTARTS"
	EnvTorchLocalAddr   = "PET_LOCAL_ADDR" // read by PyTorch 2

	// The network interface that a gang's members talk by.
	EnvNCCLInterface = "NCCL_SOCKET_IFNAME"
	EnvGlooInterface = "GLOO_SOCKET_IFNAME"
)
