//go:build cgo

package nvidia

import (
	"encoding/binary"
	"fmt"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/gpuai/gpuai/plugins"
)

// examine reads what a GPU says of its own health.
func (l *library) examine(g *gpu) {
	l.examineMemory(g)
	if l.has("nvmlDeviceGetComputeMode") {
		if mode, ret := g.handle.GetComputeMode(); g.ok(ret) && mode == nvml.COMPUTEMODE_PROHIBITED {
			g.note(fault{"mode:prohibited", "its compute mode is PROHIBITED: nvidia-smi -c 0 lets tasks use it", plugins.HealthUnhealthy, plugins.ActionWarn})
		}
	}
	if l.has("nvmlDeviceGetGpuFabricInfo") {
		info, ret := g.handle.GetGpuFabricInfo()
		if g.ok(ret) && (info.State == nvml.GPU_FABRIC_STATE_NOT_STARTED || info.State == nvml.GPU_FABRIC_STATE_IN_PROGRESS) {
			g.note(fault{"fabric:not_ready", "the NVSwitch fabric is not up, CUDA fails on this GPU: see nvidia-fabricmanager",
				plugins.HealthUnhealthy, plugins.ActionWarn})
		}
	}
	if f, ok := l.recovery(g); ok && f.Code != "" {
		g.note(f)
	}
}

// examineMemory reads errors of the memory, and what is being done about them.
func (l *library) examineMemory(g *gpu) {
	if l.has("nvmlDeviceGetTotalEccErrors") {
		n, ret := g.handle.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC)
		if g.ok(ret) && n > 0 {
			g.note(fault{"ecc:dbe", fmt.Sprintf("%d uncorrected memory errors since the GPU was reset", n), plugins.HealthDegraded, plugins.ActionWarn})
		}
	}
	if l.has("nvmlDeviceGetRemappedRows") {
		_, _, pending, failed, ret := g.handle.GetRemappedRows()
		if !g.ok(ret) {
			pending, failed = false, false
		}
		if failed {
			g.note(fault{"remap:failed", "rows of its memory could not be remapped: have it replaced", plugins.HealthUnhealthy, plugins.ActionReplace})
		}
		if pending {
			g.note(fault{"remap:pending", "rows of its memory are remapped when it is reset", plugins.HealthDegraded, plugins.ActionWarn})
		}
	}
	if l.has("nvmlDeviceGetRetiredPagesPendingStatus") {
		if pending, ret := g.handle.GetRetiredPagesPendingStatus(); g.ok(ret) && pending == nvml.FEATURE_ENABLED {
			g.note(fault{"retire:pending", "pages of its memory are retired when it is reset", plugins.HealthDegraded, plugins.ActionWarn})
		}
	}
}

// recoveries say what NVML's recovery actions mean. DRAIN_* ask for no new work.
var recoveries = map[nvml.DeviceGpuRecoveryAction]fault{
	nvml.GPU_RECOVERY_ACTION_NONE:                {},
	nvml.GPU_RECOVERY_ACTION_GPU_RESET:           {"recovery:reset", "NVML asks for a reset of the GPU", plugins.HealthUnhealthy, plugins.ActionResetDevice},
	nvml.GPU_RECOVERY_ACTION_NODE_REBOOT:         {"recovery:reboot", "NVML asks for a boot of the host", plugins.HealthUnhealthy, plugins.ActionRebootNode},
	nvml.GPU_RECOVERY_ACTION_DRAIN_P2P:           {"recovery:drain_p2p", "NVML asks to quiesce NVLink peers of the GPU", plugins.HealthUnhealthy, plugins.ActionWarn},
	nvml.GPU_RECOVERY_ACTION_DRAIN_AND_RESET:     {"recovery:drain_and_reset", "NVML asks for a reset once the GPU's tasks have ended", plugins.HealthUnhealthy, plugins.ActionWarn},
	nvml.GPU_RECOVERY_ACTION_RECOVER_IMEX_DOMAIN: {"recovery:imex", "NVML asks to recover the IMEX domain", plugins.HealthUnhealthy, plugins.ActionWarn},
	nvml.GPU_RECOVERY_ACTION_BUS_RESET:           {"recovery:bus_reset", "NVML asks for a reset of the GPU's bus", plugins.HealthUnhealthy, plugins.ActionResetDevice},
	nvml.GPU_RECOVERY_ACTION_SYSTEM_REBOOT:       {"recovery:reboot", "NVML asks for a boot of the host", plugins.HealthUnhealthy, plugins.ActionRebootNode},
}

// recovery reads what NVML would have done about a GPU (R560 and later); ok is
// false when it does not say. A GPU that needs nothing has the empty fault.
func (l *library) recovery(g *gpu) (f fault, ok bool) {
	v, ok := l.field(g.handle, nvml.FI_DEV_GET_GPU_RECOVERY_ACTION, 0)
	if !ok {
		return fault{}, false
	}
	f, ok = recoveries[nvml.DeviceGpuRecoveryAction(v)]
	return f, ok
}

// field reads one field value of an integer type.
func (l *library) field(h nvml.Device, id, scope uint32) (uint64, bool) {
	if !l.has("nvmlDeviceGetFieldValues") {
		return 0, false
	}
	v := []nvml.FieldValue{{FieldId: id, ScopeId: scope}}
	if ret := h.GetFieldValues(v); ret != nvml.SUCCESS || nvml.Return(v[0].NvmlReturn) != nvml.SUCCESS {
		return 0, false
	}
	switch nvml.ValueType(v[0].ValueType) {
	case nvml.VALUE_TYPE_UNSIGNED_INT:
		return uint64(binary.NativeEndian.Uint32(v[0].Value[:])), true
	case nvml.VALUE_TYPE_UNSIGNED_LONG, nvml.VALUE_TYPE_UNSIGNED_LONG_LONG:
		return binary.NativeEndian.Uint64(v[0].Value[:]), true
	}
	return 0, false
}
