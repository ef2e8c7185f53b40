// A bare ring without Python: threads read files into page-locked slots (pread), and have each copied on to a GPU.
// What no loader that reads can beat. Built and run by floor.py.
//
//     ring DEVICES GIB THREADS:KIB:SLOTS … -- FILE …      (SLOTS are those of each thread)
//
// Prints a line for each setting: GB/s to page-locked memory alone, and of two passes on to the GPUs, by turns.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MOST_FILES = 1024, MOST_SLOTS = 16, MOST_DEVICES = 16, MOST_THREADS = 256 };

typedef void *Handle;

static int (*init)(unsigned), (*device_get)(int *, int), (*retain)(Handle *, int), (*set_current)(Handle);
static int (*allocate)(uint64_t *, size_t), (*lock)(void *, size_t, unsigned);
static int (*new_stream)(Handle *, unsigned), (*new_event)(Handle *, unsigned);
static int (*record)(Handle, Handle), (*wait_event)(Handle), (*wait_stream)(Handle);
static int (*to_device)(uint64_t, const void *, size_t, Handle);

static Handle contexts[MOST_DEVICES];
static uint64_t to[MOST_DEVICES];
static const size_t room = 4ull << 30;
static int num_devices, num_files, threads, slots, sending;
static int files[MOST_FILES];
static size_t sizes[MOST_FILES], total, chunk, num_chunks, *chunk_file, *chunk_offset;
static atomic_size_t next;
static char *pinned;

static void check(int status, const char *what) {
    if (status) {
        fprintf(stderr, "%s failed: %d\n", what, status);
        exit(1);
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void *reader(void *argument) {
    size_t number = (size_t)argument;
    Handle streams[MOST_DEVICES], events[MOST_SLOTS][MOST_DEVICES];
    int used[MOST_SLOTS];
    for (int d = 0; d < num_devices; d++) {
        check(set_current(contexts[d]), "cuCtxSetCurrent");
        check(new_stream(&streams[d], 1), "cuStreamCreate");
        for (int k = 0; k < slots; k++) check(new_event(&events[k][d], 2), "cuEventCreate");
    }
    for (int k = 0; k < slots; k++) used[k] = -1;
    char *own = pinned + number * slots * chunk;
    for (int k = 0;; k = (k + 1) % slots) {
        size_t i = atomic_fetch_add(&next, 1);
        if (i >= num_chunks) break;
        if (used[k] >= 0) check(wait_event(events[k][used[k]]), "cuEventSynchronize");
        size_t file = chunk_file[i], offset = chunk_offset[i], length = chunk;
        if (offset + length > sizes[file]) length = sizes[file] - offset;
        if (pread(files[file], own + k * chunk, length, offset) != (ssize_t)length) check(1, "pread");
        if (!sending) continue;
        int d = i % num_devices;
        check(set_current(contexts[d]), "cuCtxSetCurrent");
        check(to_device(to[d] + i * chunk % (room - chunk), own + k * chunk, length, streams[d]), "cuMemcpyHtoDAsync");
        check(record(events[k][d], streams[d]), "cuEventRecord");
        used[k] = d;
    }
    for (int d = 0; d < num_devices; d++) check(wait_stream(streams[d]), "cuStreamSynchronize");
    return NULL;
}

static double pass(int send) {
    pthread_t all[MOST_THREADS];
    sending = send;
    atomic_store(&next, 0);
    double begin = now();
    for (size_t i = 0; i < (size_t)threads; i++) pthread_create(&all[i], NULL, reader, (void *)i);
    for (int i = 0; i < threads; i++) pthread_join(all[i], NULL);
    return total / (now() - begin) / 1e9;
}

static void *symbol(Handle library, const char *name) {
    void *found = dlsym(library, name);
    if (!found) {
        fprintf(stderr, "libcuda has no %s\n", name);
        exit(1);
    }
    return found;
}

int main(int count, char **words) {
    Handle library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library || count < 5) check(1, "usage, or opening libcuda.so.1,");
    init = symbol(library, "cuInit"), device_get = symbol(library, "cuDeviceGet");
    retain = symbol(library, "cuDevicePrimaryCtxRetain"), set_current = symbol(library, "cuCtxSetCurrent");
    allocate = symbol(library, "cuMemAlloc_v2"), lock = symbol(library, "cuMemHostRegister_v2");
    new_stream = symbol(library, "cuStreamCreate"), new_event = symbol(library, "cuEventCreate");
    record = symbol(library, "cuEventRecord"), wait_event = symbol(library, "cuEventSynchronize");
    wait_stream = symbol(library, "cuStreamSynchronize"), to_device = symbol(library, "cuMemcpyHtoDAsync_v2");

    num_devices = atoi(words[1]);
    size_t limit = (size_t)(atof(words[2]) * (1ull << 30)), largest = 0;
    int first = 3;
    while (first < count && strcmp(words[first], "--")) {
        size_t n, kib, each;
        if (sscanf(words[first++], "%zu:%zu:%zu", &n, &kib, &each) != 3) check(1, "reading a setting");
        if (n > MOST_THREADS || each > MOST_SLOTS) check(1, "a setting this large");
        if (n * kib * 1024 * each > largest) largest = n * kib * 1024 * each;
    }
    check(init(0), "cuInit");
    for (int d = 0; d < num_devices; d++) {
        int device;
        check(device_get(&device, d), "cuDeviceGet");
        check(retain(&contexts[d], device), "cuDevicePrimaryCtxRetain");
        check(set_current(contexts[d]), "cuCtxSetCurrent");
        check(allocate(&to[d], room), "cuMemAlloc");
    }
    for (int i = first + 1; i < count && num_files < MOST_FILES && total < limit; i++) {
        struct stat status;
        int file = open(words[i], O_RDONLY);
        if (file < 0 || fstat(file, &status)) check(1, words[i]);
        files[num_files] = file, sizes[num_files++] = status.st_size, total += status.st_size;
    }
    pinned = mmap(NULL, largest, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(pinned, largest, MADV_HUGEPAGE);
    memset(pinned, 1, largest);
    check(lock(pinned, largest, 1), "cuMemHostRegister");
    for (int i = 3; i < first; i++) {
        size_t kib;
        sscanf(words[i], "%d:%zu:%d", &threads, &kib, &slots);
        chunk = kib * 1024;
        chunk_file = malloc((total / chunk + num_files) * sizeof(size_t));
        chunk_offset = malloc((total / chunk + num_files) * sizeof(size_t));
        num_chunks = 0;
        for (int f = 0; f < num_files; f++)
            for (size_t offset = 0; offset < sizes[f]; offset += chunk)
                chunk_file[num_chunks] = f, chunk_offset[num_chunks++] = offset;
        double alone = pass(0), once = pass(1), again = pass(1);
        printf("%s %.1f %.1f %.1f\n", words[i], alone, once, again);
        fflush(stdout);
        free(chunk_file), free(chunk_offset);
    }
    return 0;
}
