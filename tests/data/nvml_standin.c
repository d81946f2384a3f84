/* A stand-in for libnvidia-ml.so.1: serves values from the text file that $ROUTE_STANDIN_NVML names.

   Lines are `key value`. Keys of a device begin with its index (`0.name`), of a MIG part with both
   (`0.1.uuid`). No line: NVML_ERROR_NOT_SUPPORTED. A value `!15` is that error code; the line
   `hang FUNCTION` makes that call never return, `crash FUNCTION` makes it end the process.
   With REAL_HEADER every function is checked against the declarations of the real nvml.h; with OLD
   those are left out that drivers of 2020 do not have. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef REAL_HEADER
#include <nvml.h>
#else
typedef int nvmlReturn_t;
typedef void *nvmlDevice_t, *nvmlEventSet_t;
typedef unsigned int nvmlEnableState_t, nvmlMemoryErrorType_t, nvmlEccCounterType_t, nvmlClockType_t,
    nvmlTemperatureSensors_t, nvmlGpuTopologyLevel_t, nvmlIntNvLinkDeviceType_t;
typedef struct {
    char busIdLegacy[16];
    unsigned int domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} nvmlPciInfo_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned int gpu, memory; } nvmlUtilization_t;
typedef struct { unsigned int pid; unsigned long long usedGpuMemory; } nvmlProcessInfo_v1_t;
typedef struct {
    unsigned int pid; unsigned long long usedGpuMemory; unsigned int gpuInstanceId, computeInstanceId;
} nvmlProcessInfo_v2_t;
typedef struct {
    nvmlDevice_t device; unsigned long long eventType, eventData;
    unsigned int gpuInstanceId, computeInstanceId;
} nvmlEventData_t;
#endif

static char text[1 << 18];

static void load(void) {
    const char *path = getenv("ROUTE_STANDIN_NVML");
    FILE *f = path ? fopen(path, "r") : NULL;
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    text[n] = 0;
    if (f) fclose(f);
}

static const char *find(const char *key) {
    static char value[256];
    size_t n = strlen(key);
    for (const char *at = text; at && *at; at = strchr(at, '\n')) {
        at += *at == '\n';
        if (!strncmp(at, key, n) && at[n] == ' ') {
            size_t m = strcspn(at + n + 1, "\n");
            if (m > 255) m = 255;
            memcpy(value, at + n + 1, m);
            value[m] = 0;
            return value;
        }
    }
    return NULL;
}

static void enter(const char *function) {
    char key[120];
    load();
    snprintf(key, sizeof key, "hang %s", function);
    if (strstr(text, key)) for (;;) pause();
    snprintf(key, sizeof key, "crash %s", function);
    if (strstr(text, key)) abort();
}

static const char *of(nvmlDevice_t d, const char *name) {
    char key[120];
    size_t h = (size_t)d;
    if (h < 0x1000) snprintf(key, sizeof key, "%zu.%s", h - 1, name);
    else snprintf(key, sizeof key, "%zu.%zu.%s", (h - 0x1000) / 16, (h - 0x1000) % 16, name);
    return find(key);
}

static nvmlReturn_t words(const char *value, char *out, unsigned int room) {
    if (!value) return 3;
    if (*value == '!') return atoi(value + 1);
    if (strlen(value) + 1 > room) return 7;
    strcpy(out, value);
    return 0;
}

static nvmlReturn_t number(const char *value, unsigned long long *out) {
    if (!value) return 3;
    if (*value == '!') return atoi(value + 1);
    *out = strtoull(value, NULL, 0);
    return 0;
}

#define TEXT(f, key) nvmlReturn_t f(nvmlDevice_t d, char *out, unsigned int room) { \
    enter(#f); return words(of(d, key), out, room); }
#define ONE(f, type, key) nvmlReturn_t f(nvmlDevice_t d, type *out) { \
    unsigned long long v = 0; enter(#f); nvmlReturn_t r = number(of(d, key), &v); *out = (type)v; return r; }
#define TWO(f, type, key) nvmlReturn_t f(nvmlDevice_t d, type *a, type *b) { \
    unsigned long long v = 0; enter(#f); nvmlReturn_t r = number(of(d, key), &v); *a = *b = (type)v; return r; }
#define WITH(f, arg, type, key) nvmlReturn_t f(nvmlDevice_t d, arg which, type *out) { \
    unsigned long long v = 0; enter(#f); (void)which; \
    nvmlReturn_t r = number(of(d, key), &v); *out = (type)v; return r; }

nvmlReturn_t nvmlInit_v2(void) {
    unsigned long long v = 0;
    enter("nvmlInit_v2");
    nvmlReturn_t r = number(find("init"), &v);
    return r == 3 ? 0 : r;
}
nvmlReturn_t nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(nvmlReturn_t r) {
    switch ((int)r) {
    case 2: return "Invalid Argument";
    case 3: return "Not Supported";
    case 4: return "Insufficient Permissions";
    case 9: return "Driver Not Loaded";
    case 15: return "GPU is lost";
    case 16: return "GPU requires restart";
    case 18: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}
nvmlReturn_t nvmlSystemGetDriverVersion(char *out, unsigned int room) { return words(find("driver"), out, room); }
nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *out) {
    unsigned long long v = 0; nvmlReturn_t r = number(find("cuda"), &v); *out = (int)v; return r;
}
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *out) {
    unsigned long long v = 0; enter("nvmlDeviceGetCount_v2");
    nvmlReturn_t r = number(find("count"), &v); *out = (unsigned int)v; return r;
}
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int i, nvmlDevice_t *out) {
    char key[40]; unsigned long long v = 0;
    enter("nvmlDeviceGetHandleByIndex_v2");
    snprintf(key, sizeof key, "%u.handle", i);
    nvmlReturn_t r = number(find(key), &v);
    *out = (nvmlDevice_t)(size_t)(i + 1);
    return r == 3 ? 0 : r;
}
TEXT(nvmlDeviceGetUUID, "uuid")
TEXT(nvmlDeviceGetName, "name")
static nvmlReturn_t bus_of(const char *bus, unsigned long long id, nvmlPciInfo_t *out) {
    memset(out, 0, sizeof *out);
    if (!bus) return 3;
    if (*bus == '!') return atoi(bus + 1);
    sscanf(bus, "%x:%x:%x", &out->domain, &out->bus, &out->device);
    snprintf(out->busId, sizeof out->busId, "%08X:%02X:%02X.0", out->domain, out->bus, out->device);
    out->pciDeviceId = (unsigned int)id;
    return 0;
}
nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t d, nvmlPciInfo_t *out) {
    unsigned long long id = 0; char bus[64] = "";
    enter("nvmlDeviceGetPciInfo_v3");
    number(of(d, "pci"), &id);
    const char *found = of(d, "bus");
    if (found) strncpy(bus, found, 63);
    return bus_of(found ? bus : NULL, id, out);
}
ONE(nvmlDeviceGetMinorNumber, unsigned int, "minor")
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t d, nvmlMemory_t *out) {
    unsigned long long total = 0, used = 0;
    enter("nvmlDeviceGetMemoryInfo");
    nvmlReturn_t r = number(of(d, "memory"), &total);
    number(of(d, "used"), &used);
    out->total = total; out->used = used; out->free = total - used;
    return r;
}
nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t d, int *a, int *b) {
    const char *value = of(d, "cc");
    if (!value) return 3;
    return sscanf(value, "%d.%d", a, b) == 2 ? 0 : 999;
}
ONE(nvmlDeviceGetEnforcedPowerLimit, unsigned int, "power_limit_mw")
TWO(nvmlDeviceGetMigMode, unsigned int, "mig")
ONE(nvmlDeviceGetMaxMigDeviceCount, unsigned int, "parts")
nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t d, unsigned int i, nvmlDevice_t *out) {
    *out = (nvmlDevice_t)(0x1000 + ((size_t)d - 1) * 16 + i);
    return of(*out, "uuid") ? 0 : 6;
}
ONE(nvmlDeviceGetPersistenceMode, nvmlEnableState_t, "persistence")
TWO(nvmlDeviceGetEccMode, nvmlEnableState_t, "ecc")
nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t d, nvmlMemoryErrorType_t type,
                                         nvmlEccCounterType_t counter, unsigned long long *out) {
    enter("nvmlDeviceGetTotalEccErrors");
    return type == 1 && counter == 0 ? number(of(d, "ecc_uncorrected"), out) : 3;
}
#ifndef OLD
nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t d, unsigned int *corr, unsigned int *unc,
                                       unsigned int *pending, unsigned int *failed) {
    const char *value = of(d, "rows");
    enter("nvmlDeviceGetRemappedRows");
    if (!value) return 3;
    return sscanf(value, "%u %u %u %u", corr, unc, pending, failed) == 4 ? 0 : 999;
}
#endif
ONE(nvmlDeviceGetRetiredPagesPendingStatus, nvmlEnableState_t, "retired_pending")
nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t d, unsigned int link, nvmlEnableState_t *out) {
    unsigned long long up = 0;
    nvmlReturn_t r = number(of(d, "nvlinks"), &up);
    if (r) return r;
    if (link >= 18) return 2;
    *out = (nvmlEnableState_t)(link < up);
    return 0;
}
WITH(nvmlDeviceGetNvLinkVersion, unsigned int, unsigned int, "nvlink_version")
nvmlReturn_t nvmlDeviceGetNvLinkRemoteDeviceType(nvmlDevice_t d, unsigned int link,
                                                 nvmlIntNvLinkDeviceType_t *out) {
    const char *to = of(d, "to");
    if (!to || strlen(to) <= link) return 3;
    *out = to[link] == 's' ? 2 : 0;
    return 0;
}
nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t d, unsigned int link, nvmlPciInfo_t *out) {
    char key[40];
    const char *to = of(d, "to");
    if (!to || strlen(to) <= link) return 3;
    snprintf(key, sizeof key, "%c.bus", to[link]);
    return bus_of(find(key), 0, out);
}
nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t a, nvmlDevice_t b, nvmlGpuTopologyLevel_t *out) {
    char key[40]; unsigned long long v = 0;
    snprintf(key, sizeof key, "pair.%zu.%zu", (size_t)a - 1, (size_t)b - 1);
    nvmlReturn_t r = number(find(key), &v);
    *out = (nvmlGpuTopologyLevel_t)v;
    return r;
}
ONE(nvmlDeviceGetCurrPcieLinkGeneration, unsigned int, "pcie_gen")
ONE(nvmlDeviceGetCurrPcieLinkWidth, unsigned int, "pcie_width")
ONE(nvmlDeviceGetMaxPcieLinkGeneration, unsigned int, "pcie_gen_max")
ONE(nvmlDeviceGetMaxPcieLinkWidth, unsigned int, "pcie_width_max")
WITH(nvmlDeviceGetClockInfo, nvmlClockType_t, unsigned int, "sm_mhz")
WITH(nvmlDeviceGetMaxClockInfo, nvmlClockType_t, unsigned int, "sm_mhz_max")
#ifndef OLD
ONE(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, "throttle")
#endif
ONE(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, "throttle")
WITH(nvmlDeviceGetTemperature, nvmlTemperatureSensors_t, unsigned int, "temp_c")
ONE(nvmlDeviceGetPowerUsage, unsigned int, "power_mw")
nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t d, nvmlUtilization_t *out) {
    unsigned long long v = 0;
    nvmlReturn_t r = number(of(d, "util"), &v);
    out->gpu = out->memory = (unsigned int)v;
    return r;
}
#define RUNNING(f, type, key) nvmlReturn_t f(nvmlDevice_t d, unsigned int *count, type *rows) { \
    unsigned int n = 0, room = *count; char list[256] = ""; \
    enter(#f); \
    const char *value = of(d, key); \
    if (!value) return 3; \
    if (*value == '!') return atoi(value + 1); \
    strncpy(list, value, 255); \
    for (char *word = strtok(list, " -"); word; word = strtok(NULL, " -"), n++) \
        if (n < room) { memset(rows + n, 0, sizeof *rows); rows[n].pid = (unsigned int)atoi(word); } \
    *count = n; return n > room ? 7 : 0; }
#undef nvmlDeviceGetComputeRunningProcesses
#undef nvmlDeviceGetGraphicsRunningProcesses
#ifndef OLD
RUNNING(nvmlDeviceGetComputeRunningProcesses_v2, nvmlProcessInfo_v2_t, "pids")
RUNNING(nvmlDeviceGetGraphicsRunningProcesses_v2, nvmlProcessInfo_v2_t, "screens")
#endif
RUNNING(nvmlDeviceGetComputeRunningProcesses, nvmlProcessInfo_v1_t, "pids")
RUNNING(nvmlDeviceGetGraphicsRunningProcesses, nvmlProcessInfo_v1_t, "screens")
#ifndef OLD
nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *out) { *out = (nvmlEventSet_t)(size_t)64; return 0; }
nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t d, unsigned long long types, nvmlEventSet_t set) {
    (void)d; (void)set; return types == 8 ? 0 : 2;
}
nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *out, unsigned int ms) {
    static int told;
    unsigned long long xid = 0;
    (void)set; (void)ms;
    load();
    if (told || number(find("xid"), &xid)) return 10;
    memset(out, 0, sizeof *out);
    out->device = (nvmlDevice_t)(size_t)1; out->eventType = 8; out->eventData = xid;
    told = 1;
    return 0;
}
#endif
