// A libnvidia-ml.so.1 for tests, with the devices and the misbehaviour of a file:
// nvml.conf beside the library, read again with each call. Its lines:
//
//   driver VERSION            of the driver
//   cuda NUMBER               12040 is 12.4
//   gpu I KEY=VALUE …         a GPU; '_' in a value is a blank; keys are at get()
//   mig I J KEY=VALUE …       MIG device J of GPU I
//   link I L J                NVLink L of GPU I goes to GPU J; -1 is a switch
//   topo I J LEVEL            what two GPUs have in common
//   proc I PID BYTES [KIND]   a process on GPU I; KIND is graphics, or a MIG device
//   event I TYPE DATA GI      an event; those there at nvmlInit are old
//   fail SYMBOL CODE [I]      the function returns an error, for one GPU or all
//   hang SYMBOL               it does not return
//   crash SYMBOL              it crashes
//   lookup SYMBOL             it calls a function that does not exist: exit 127
//
// Symbols are taken away by the linker, with a version script.
#define _GNU_SOURCE
#define NVML_NO_UNVERSIONED_FUNC_DEFS 1
#include "nvml.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { GPUS = 16, MIGS = 8 };

struct nvmlDevice_st {
	int gpu, mig; // mig is -1 for the GPU
};
struct nvmlEventSet_st {
	unsigned gpus; // registered
};

static struct nvmlDevice_st devices[GPUS][MIGS + 1];
static struct nvmlDevice_st elsewhere[GPUS]; // handles of their own for events
static char text[1 << 16];
static int initialised, seen; // seen events

extern void nvml_function_that_nobody_has(void);

static const char *dir(void) {
	static char d[4096];
	Dl_info info;
	if (!d[0] && dladdr((void *)dir, &info)) {
		snprintf(d, sizeof d, "%s", info.dli_fname);
		char *slash = strrchr(d, '/');
		if (slash) *slash = 0;
	}
	return d;
}

static void load(void) {
	char path[5000];
	snprintf(path, sizeof path, "%s/nvml.conf", dir());
	FILE *f = fopen(path, "r");
	size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
	text[n] = 0;
	if (f) fclose(f);
}

// next copies the next line that begins with word to line; at is the place.
static int next(const char **at, const char *word, char *line, size_t size) {
	size_t w = strlen(word);
	while (**at) {
		const char *begin = *at, *end = strchr(begin, '\n');
		size_t n = end ? (size_t)(end - begin) : strlen(begin);
		*at = begin + n + (end != 0);
		if (n > w && n < size && !strncmp(begin, word, w) && begin[w] == ' ') {
			memcpy(line, begin, n);
			line[n] = 0;
			return 1;
		}
	}
	return 0;
}

// get finds a value of a device's line.
static int get(nvmlDevice_t d, const char *key, char *out, size_t size) {
	char head[64], line[4096], want[64];
	const char *at = text;
	snprintf(head, sizeof head, d.handle->mig < 0 ? "gpu %d" : "mig %d %d", d.handle->gpu, d.handle->mig);
	snprintf(want, sizeof want, " %s=", key);
	while (next(&at, head, line, sizeof line)) {
		char *v = strstr(line, want);
		if (!v) continue;
		v += strlen(want);
		size_t n = strcspn(v, " ");
		if (n >= size) n = size - 1;
		memcpy(out, v, n);
		out[n] = 0;
		for (char *c = out; *c; c++) if (*c == '_') *c = ' ';
		return 1;
	}
	return 0;
}

static int number(nvmlDevice_t d, const char *key, unsigned long long *out) {
	char v[64];
	if (!get(d, key, v, sizeof v)) return 0;
	*out = strtoull(v, 0, 0);
	return 1;
}

static nvmlReturn_t copy(nvmlDevice_t d, const char *key, char *out, unsigned size) {
	char v[512];
	if (!get(d, key, v, sizeof v)) return NVML_ERROR_NOT_SUPPORTED;
	if (strlen(v) >= size) return NVML_ERROR_INSUFFICIENT_SIZE;
	strcpy(out, v);
	return NVML_SUCCESS;
}

static nvmlReturn_t value(nvmlDevice_t d, const char *key, unsigned *out) {
	unsigned long long v;
	if (!number(d, key, &v)) return NVML_ERROR_NOT_SUPPORTED;
	*out = v;
	return NVML_SUCCESS;
}

static nvmlReturn_t longer(nvmlDevice_t d, const char *key, unsigned long long *out) {
	return number(d, key, out) ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

// enter reads the file and misbehaves as it says.
static nvmlReturn_t enter(const char *symbol, int gpu) {
	char line[512], name[128];
	int code, only;
	const char *at;
	load();
	for (at = text; next(&at, "hang", line, sizeof line);)
		if (!strcmp(line + 5, symbol)) for (;;) pause();
	for (at = text; next(&at, "crash", line, sizeof line);)
		if (!strcmp(line + 6, symbol)) *(volatile int *)0 = 1;
	for (at = text; next(&at, "lookup", line, sizeof line);)
		if (!strcmp(line + 7, symbol)) nvml_function_that_nobody_has();
	for (at = text; next(&at, "fail", line, sizeof line);) {
		int n = sscanf(line, "fail %127s %d %d", name, &code, &only);
		if (n >= 2 && !strcmp(name, symbol) && (n == 2 || only == gpu)) return code;
	}
	if (!initialised && strcmp(symbol, "nvmlInit_v2")) return NVML_ERROR_UNINITIALIZED;
	return NVML_SUCCESS;
}

#define ENTER(gpu) do { nvmlReturn_t r_ = enter(__func__, gpu); if (r_) return r_; } while (0)
#define DEVICE(d) do { if (!(d).handle) return NVML_ERROR_INVALID_ARGUMENT; ENTER((d).handle->gpu); } while (0)

static nvmlDevice_t handle(int gpu, int mig) {
	nvmlDevice_t d = {&devices[gpu][mig + 1]};
	d.handle->gpu = gpu;
	d.handle->mig = mig;
	return d;
}

static int count(void) {
	int n = 0;
	char v[512];
	while (n < GPUS && get(handle(n, -1), "uuid", v, sizeof v)) n++;
	return n;
}

static int events(int nth, char *line, size_t size) {
	const char *at = text;
	int n = 0;
	while (next(&at, "event", line, size)) if (n++ == nth) return 1;
	return nth < 0 ? n : 0;
}

nvmlReturn_t nvmlInit_v2(void) {
	ENTER(-1);
	char line[512];
	if (!initialised) seen = events(-1, line, sizeof line);
	initialised++;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlShutdown(void) {
	ENTER(-1);
	initialised--;
	return NVML_SUCCESS;
}

const char *nvmlErrorString(nvmlReturn_t r) {
	static __thread char s[64];
	if (r == NVML_ERROR_DRIVER_NOT_LOADED) return "Driver Not Loaded";
	if (r == NVML_ERROR_GPU_IS_LOST) return "GPU is lost";
	snprintf(s, sizeof s, "NVML error %d", r);
	return s;
}

static nvmlReturn_t word(const char *key, char *out, unsigned size) {
	char line[512];
	const char *at = text;
	if (!next(&at, key, line, sizeof line)) return NVML_ERROR_NOT_SUPPORTED;
	snprintf(out, size, "%s", line + strlen(key) + 1);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *v, unsigned n) { ENTER(-1); return word("driver", v, n); }

nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *v) {
	ENTER(-1);
	char s[32];
	nvmlReturn_t r = word("cuda", s, sizeof s);
	if (!r) *v = atoi(s);
	return r;
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *n) { ENTER(-1); *n = count(); return NVML_SUCCESS; }

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned i, nvmlDevice_t *d) {
	ENTER(i);
	if (i >= (unsigned)count()) return NVML_ERROR_INVALID_ARGUMENT;
	*d = handle(i, -1);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *d) {
	ENTER(-1);
	char v[512];
	for (int i = 0; i < count(); i++)
		for (int j = -1; j < MIGS; j++)
			if (get(handle(i, j), "uuid", v, sizeof v) && !strcmp(v, uuid)) return *d = handle(i, j), NVML_SUCCESS;
	return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t d, char *v, unsigned n) { DEVICE(d); return copy(d, "uuid", v, n); }
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t d, char *v, unsigned n) { DEVICE(d); return copy(d, "name", v, n); }
nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t d, char *v, unsigned n) { DEVICE(d); return copy(d, "serial", v, n); }
nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t d, unsigned *n) { DEVICE(d); return value(d, "minor", n); }
nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t d, unsigned *n) { DEVICE(d); *n = d.handle->gpu; return NVML_SUCCESS; }

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t d, nvmlMemory_t *m) {
	DEVICE(d);
	if (!number(d, "memory", &m->total)) return NVML_ERROR_NOT_SUPPORTED;
	if (!number(d, "used", &m->used)) m->used = 0;
	m->free = m->total - m->used;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t d, nvmlMemory_v2_t *m) {
	DEVICE(d);
	if (!number(d, "memory", &m->total)) return NVML_ERROR_NOT_SUPPORTED;
	if (!number(d, "used", &m->used)) m->used = 0;
	m->reserved = 0;
	m->free = m->total - m->used;
	return NVML_SUCCESS;
}

static nvmlReturn_t pci(nvmlDevice_t d, nvmlPciInfo_t *p) {
	char v[64];
	memset(p, 0, sizeof *p);
	if (!get(d, "pci", v, sizeof v)) return NVML_ERROR_NOT_SUPPORTED;
	if (sscanf(v, "%x:%x:%x", &p->domain, &p->bus, &p->device) != 3) return NVML_ERROR_UNKNOWN;
	snprintf(p->busId, sizeof p->busId, "%08X:%02X:%02X.0", p->domain, p->bus, p->device);
	snprintf(p->busIdLegacy, sizeof p->busIdLegacy, "%04X:%02X:%02X.0", p->domain, p->bus, p->device);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t d, nvmlPciInfo_t *p) { DEVICE(d); return pci(handle(d.handle->gpu, -1), p); }

nvmlReturn_t nvmlDeviceGetMemoryAffinity(nvmlDevice_t d, unsigned n, unsigned long *set, nvmlAffinityScope_t scope) {
	DEVICE(d);
	unsigned node;
	if (n < 1 || scope != NVML_AFFINITY_SCOPE_NODE || value(d, "numa", &node)) return NVML_ERROR_NOT_SUPPORTED;
	memset(set, 0, n * sizeof *set);
	set[0] = 1ul << node;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t a, nvmlDevice_t b, nvmlGpuTopologyLevel_t *level) {
	DEVICE(a);
	char line[512];
	const char *at = text;
	int i, j, l;
	while (next(&at, "topo", line, sizeof line))
		if (sscanf(line, "topo %d %d %d", &i, &j, &l) == 3 &&
			((i == a.handle->gpu && j == b.handle->gpu) || (j == a.handle->gpu && i == b.handle->gpu)))
			return *level = l, NVML_SUCCESS;
	return NVML_ERROR_NOT_SUPPORTED;
}

// nvlink finds where a link goes: a GPU, -1 to a switch, -2 if there is none.
static int nvlink(nvmlDevice_t d, unsigned link) {
	char line[512];
	const char *at = text;
	int i, l, peer;
	while (next(&at, "link", line, sizeof line))
		if (sscanf(line, "link %d %d %d", &i, &l, &peer) == 3 && i == d.handle->gpu && (unsigned)l == link) return peer;
	return -2;
}

nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t d, unsigned link, nvmlEnableState_t *on) {
	DEVICE(d);
	if (nvlink(d, link) < -1) return NVML_ERROR_INVALID_ARGUMENT;
	*on = NVML_FEATURE_ENABLED;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkRemoteDeviceType(nvmlDevice_t d, unsigned link, nvmlIntNvLinkDeviceType_t *type) {
	DEVICE(d);
	*type = nvlink(d, link) == -1 ? NVML_NVLINK_DEVICE_TYPE_SWITCH : NVML_NVLINK_DEVICE_TYPE_GPU;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t d, unsigned link, nvmlPciInfo_t *p) {
	DEVICE(d);
	int peer = nvlink(d, link);
	return peer < 0 ? NVML_ERROR_NOT_SUPPORTED : pci(handle(peer, -1), p);
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t d, unsigned *now, unsigned *pending) {
	DEVICE(d);
	*pending = *now;
	nvmlReturn_t r = value(d, "mig", now);
	*pending = *now;
	return r;
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t d, unsigned *n) { DEVICE(d); *n = MIGS - 1; return NVML_SUCCESS; }

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t d, unsigned i, nvmlDevice_t *m) {
	DEVICE(d);
	char v[512];
	if (i >= MIGS || !get(handle(d.handle->gpu, i), "uuid", v, sizeof v)) return NVML_ERROR_NOT_FOUND;
	*m = handle(d.handle->gpu, i);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t m, nvmlDevice_t *d) {
	DEVICE(m);
	*d = handle(m.handle->gpu, -1);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t d, unsigned *is) { DEVICE(d); *is = d.handle->mig >= 0; return NVML_SUCCESS; }
nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t d, unsigned *id) { DEVICE(d); return value(d, "gi", id); }
nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t d, unsigned *id) { DEVICE(d); return value(d, "ci", id); }

nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t d, nvmlDeviceAttributes_t *a) {
	DEVICE(d);
	memset(a, 0, sizeof *a);
	if (value(d, "slices", &a->gpuInstanceSliceCount)) return NVML_ERROR_NOT_SUPPORTED;
	if (value(d, "compute", &a->computeInstanceSliceCount)) a->computeInstanceSliceCount = a->gpuInstanceSliceCount;
	number(d, "memory", &a->memorySizeMB);
	a->memorySizeMB >>= 20;
	return NVML_SUCCESS;
}

// processes fills in those of a device.
static nvmlReturn_t processes(nvmlDevice_t d, int graphics, unsigned *n, nvmlProcessInfo_t *out) {
	char line[512], kind[32];
	const char *at = text;
	unsigned found = 0, pid;
	unsigned long long bytes;
	int gpu;
	while (next(&at, "proc", line, sizeof line)) {
		int got = sscanf(line, "proc %d %u %llu %31s", &gpu, &pid, &bytes, kind);
		int g = got == 4 && !strcmp(kind, "graphics"), mig = got == 4 && !g ? atoi(kind) : -1;
		if (got < 3 || gpu != d.handle->gpu || g != graphics || (d.handle->mig >= 0 && mig != d.handle->mig)) continue;
		if (found < *n) out[found] = (nvmlProcessInfo_t){.pid = pid, .usedGpuMemory = bytes};
		found++;
	}
	nvmlReturn_t r = found > *n ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
	*n = found;
	return r;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t d, unsigned *n, nvmlProcessInfo_t *p) { DEVICE(d); return processes(d, 0, n, p); }
nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t d, unsigned *n, nvmlProcessInfo_t *p) { DEVICE(d); return processes(d, 1, n, p); }

// The compute mode outlives the process, in a file.
static FILE *mode(nvmlDevice_t d, const char *how) {
	char path[5000];
	snprintf(path, sizeof path, "%s/mode.%d", dir(), d.handle->gpu);
	return fopen(path, how);
}

nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t d, nvmlComputeMode_t *m) {
	DEVICE(d);
	int v = NVML_COMPUTEMODE_DEFAULT;
	FILE *f = mode(d, "r");
	if (f && fscanf(f, "%d", &v) != 1) v = NVML_COMPUTEMODE_PROHIBITED;
	if (f) fclose(f);
	*m = v;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceSetComputeMode(nvmlDevice_t d, nvmlComputeMode_t m) {
	DEVICE(d);
	FILE *f = mode(d, "w");
	if (!f) return NVML_ERROR_NO_PERMISSION;
	fprintf(f, "%d\n", m);
	fclose(f);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t d, nvmlUtilization_t *u) {
	DEVICE(d);
	return value(d, "util", &u->gpu) || value(d, "memutil", &u->memory) ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t d, unsigned *v) { DEVICE(d); return value(d, "power", v); }
nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t d, unsigned *v) { DEVICE(d); return value(d, "limit", v); }
nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t d, unsigned long long *v) { DEVICE(d); return longer(d, "energy", v); }
nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t d, nvmlTemperatureSensors_t s, unsigned *v) { DEVICE(d); (void)s; return value(d, "temp", v); }
nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t d, nvmlClockType_t t, unsigned *v) { DEVICE(d); (void)t; return value(d, "clock", v); }
nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t d, unsigned long long *v) { DEVICE(d); return longer(d, "throttle", v); }

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t d, nvmlMemoryErrorType_t type, nvmlEccCounterType_t counter, unsigned long long *v) {
	DEVICE(d);
	const char *key = type == NVML_MEMORY_ERROR_TYPE_CORRECTED ? "ecc_corrected" : "ecc_uncorrected";
	return longer(d, counter == NVML_VOLATILE_ECC && type == NVML_MEMORY_ERROR_TYPE_UNCORRECTED ? "ecc_now" : key, v);
}

nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t d, unsigned *corrected, unsigned *uncorrected, unsigned *pending, unsigned *failed) {
	DEVICE(d);
	*corrected = *uncorrected = 0;
	return value(d, "remap_pending", pending) || value(d, "remap_failed", failed) ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGpuFabricInfo(nvmlDevice_t d, nvmlGpuFabricInfo_t *f) {
	DEVICE(d);
	unsigned state;
	if (value(d, "fabric", &state)) return NVML_ERROR_NOT_SUPPORTED;
	memset(f, 0, sizeof *f);
	f->state = state;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t d, int n, nvmlFieldValue_t *v) {
	DEVICE(d);
	for (int i = 0; i < n; i++) {
		const char *key = "";
		switch (v[i].fieldId) {
		case NVML_FI_DEV_GET_GPU_RECOVERY_ACTION: key = "recovery"; break;
		case NVML_FI_DEV_PCIE_COUNT_RX_BYTES: key = "pcie_rx"; break;
		case NVML_FI_DEV_PCIE_COUNT_TX_BYTES: key = "pcie_tx"; break;
		case NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX: key = "nvlink_rx"; break;
		case NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX: key = "nvlink_tx"; break;
		}
		v[i].valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
		v[i].nvmlReturn = longer(d, key, &v[i].value.ullVal);
	}
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set) {
	ENTER(-1);
	set->handle = calloc(1, sizeof *set->handle);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t d, unsigned long long *types) {
	DEVICE(d);
	*types = nvmlEventTypeXidCriticalError | nvmlEventTypeDoubleBitEccError;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t d, unsigned long long types, nvmlEventSet_t set) {
	DEVICE(d);
	if (types & nvmlEventTypeXidCriticalError) set.handle->gpus |= 1u << d.handle->gpu;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *e, unsigned ms) {
	char line[512];
	for (unsigned waited = 0;; waited += 10) {
		ENTER(-1);
		int gpu;
		unsigned long long type, data, gi;
		if (events(seen, line, sizeof line)) {
			seen++;
			if (sscanf(line, "event %d %llu %llu %llu", &gpu, &type, &data, &gi) == 4 && set.handle->gpus >> gpu & 1) {
				nvmlDevice_t d = handle(gpu, -1);
				unsigned own;
				if (!value(d, "elsewhere", &own)) {
					elsewhere[gpu] = *d.handle;
					d.handle = &elsewhere[gpu];
				}
				*e = (nvmlEventData_t){.device = d, .eventType = type, .eventData = data, .gpuInstanceId = gi, .computeInstanceId = 0xffffffff};
				return NVML_SUCCESS;
			}
			continue;
		}
		if (waited >= ms) return NVML_ERROR_TIMEOUT;
		usleep(10000);
	}
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) {
	ENTER(-1);
	free(set.handle);
	return NVML_SUCCESS;
}
