//go:build cgo

package nvidia

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/dl"
	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// defaultLibrary is what the loader is asked for.
const defaultLibrary = "libnvidia-ml.so.1"

// required are the symbols without which the driver cannot work, each with those
// that do as well: go-nvml takes the newest that there is.
var required = []string{
	"nvmlInit_v2 nvmlInit",
	"nvmlShutdown",
	"nvmlErrorString",
	"nvmlSystemGetDriverVersion",
	"nvmlDeviceGetCount_v2 nvmlDeviceGetCount",
	"nvmlDeviceGetHandleByIndex_v2 nvmlDeviceGetHandleByIndex",
	"nvmlDeviceGetUUID",
	"nvmlDeviceGetName",
	"nvmlDeviceGetMemoryInfo",
	"nvmlDeviceGetMinorNumber",
	"nvmlDeviceGetPciInfo_v3 nvmlDeviceGetPciInfo_v2 nvmlDeviceGetPciInfo",
	"nvmlDeviceGetComputeRunningProcesses_v3 nvmlDeviceGetComputeRunningProcesses_v2 nvmlDeviceGetComputeRunningProcesses",
}

// forCDI are the symbols that writing a CDI specification calls beyond those.
var forCDI = []string{
	"nvmlDeviceGetHandleByUUID", "nvmlDeviceGetIndex", "nvmlDeviceGetMigMode", "nvmlDeviceGetMaxMigDeviceCount",
	"nvmlDeviceGetMigDeviceHandleByIndex", "nvmlDeviceIsMigDeviceHandle", "nvmlDeviceGetGpuInstanceId",
	"nvmlDeviceGetComputeInstanceId", "nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
}

// A library is NVML, initialised.
type library struct {
	nvml.Interface
	// has reports whether a symbol is there. What is not must not be called:
	// the process would exit with 127.
	has func(symbol string) bool
}

// hints say what an error of nvmlInit means for the operator.
var hints = map[nvml.Return]string{
	nvml.ERROR_DRIVER_NOT_LOADED:       "load the kernel module (modprobe nvidia)",
	nvml.ERROR_NO_PERMISSION:           "the driver's user may not open /dev/nvidiactl",
	nvml.ERROR_LIB_RM_VERSION_MISMATCH: "the library and the kernel module are of different versions: reload the module or boot the host",
	nvml.ERROR_LIBRARY_NOT_FOUND:       "install the NVIDIA driver",
}

// openLibrary loads NVML and initialises it. Its error says what to do.
func openLibrary(path string) (*library, error) {
	name := cmp.Or(path, defaultLibrary)
	d := dl.New(name, dl.RTLD_LAZY|dl.RTLD_GLOBAL)
	if err := d.Open(); err != nil {
		return nil, fmt.Errorf("NVML cannot be loaded: %w: install the NVIDIA driver, or name its library in library_path", err)
	}
	has := func(symbol string) bool { return d.Lookup(symbol) == nil }
	if missing := lacking(has, required); len(missing) > 0 {
		return nil, fmt.Errorf("NVML (%s) lacks %s: this driver needs R450 or later", name, strings.Join(missing, ", "))
	}
	l := &library{Interface: nvml.New(nvml.WithLibraryPath(name)), has: has}
	if ret := l.Init(); ret != nvml.SUCCESS {
		return nil, fmt.Errorf("NVML cannot be initialised: %w: %s", ret, cmp.Or(hints[ret], "see the kernel's log (dmesg)"))
	}
	return l, nil
}

// lacking returns those of the symbols that are there by none of their names.
func lacking(has func(string) bool, symbols []string) (missing []string) {
	for _, alternatives := range symbols {
		found := false
		names := strings.Fields(alternatives)
		for _, name := range names {
			found = found || has(name)
		}
		if !found {
			missing = append(missing, names[0])
		}
	}
	return missing
}
