/* A libnvidia-ml.so.1 of one GPU. Its counter advances 500 mJ at each read, from 10^12 mJ on, so
 * that a binding which reads 32 bits shows. FAKE_NVML_ENERGY is the code its energy read returns,
 * FAKE_NVML_MIG the current MIG mode; both are looked up at each call. */
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };

static const char *UUID = "GPU-01234567-89ab-cdef-0123-456789abcdef";
static int gpu;
static int initialised;

static int setting(const char *name) {
    const char *text = getenv(name);
    return text ? atoi(text) : 0;
}

int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    initialised = 1;
    return SUCCESS;
}

int nvmlShutdown(void) {
    initialised = 0;
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    if (!initialised)
        return UNINITIALIZED;
    if (strcmp(uuid, UUID) != 0)
        return NOT_FOUND;
    *device = &gpu;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(void *device, unsigned int *current, unsigned int *pending) {
    if (device != &gpu)
        return INVALID_ARGUMENT;
    *current = *pending = (unsigned int)setting("FAKE_NVML_MIG");
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *energy_mj) {
    static unsigned long long total_mj = 1000000000000ULL;
    if (!initialised)
        return UNINITIALIZED;
    if (device != &gpu)
        return INVALID_ARGUMENT;
    *energy_mj = total_mj += 500;
    return setting("FAKE_NVML_ENERGY");
}

/* What the device says of itself. FAKE_NVML_REASONS are the bits for which its clock is lowered. */

int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons) {
    (void)device;
    *reasons = (unsigned long long)setting("FAKE_NVML_REASONS");
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(void *device, int kind, unsigned int *mhz) {
    (void)device;
    *mhz = kind == 1 ? 1980 : 0; /* 1: the multiprocessors' clock */
    return SUCCESS;
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned int *celsius) {
    (void)device;
    *celsius = sensor == 0 ? 55 : 0;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned int *mw) {
    (void)device;
    *mw = 240500;
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    if (length < 8)
        return INSUFFICIENT_SIZE;
    strcpy(version, "570.26");
    return SUCCESS;
}

struct process {
    unsigned int pid;
    unsigned long long used_bytes;
    unsigned int gpu_instance, compute_instance;
};

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned int *count, struct process *all) {
    unsigned int room = *count;
    (void)device;
    *count = 2;
    if (room < 2)
        return INSUFFICIENT_SIZE;
    all[0] = (struct process){4712, 1 << 20, 0, 0};
    all[1] = (struct process){4711, 1 << 20, 0, 0};
    return SUCCESS;
}
