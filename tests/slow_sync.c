/* A slower disk: every sync of the process does what it does, and takes SLOW_SYNC_US microseconds more.
 *
 *   gcc -O2 -shared -fPIC -o slow_sync.so tests/slow_sync.c
 *   SLOW_SYNC_US=5000 LD_PRELOAD=./slow_sync.so target/release/pagewire bench --only tenants,commit --store local:DIR
 *
 * Page servers and local files of the benchmark are slowed alike: it is what shows group commit where a sync dominates.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/syscall.h>

static void wait_longer(void) {
    const char *text = getenv("SLOW_SYNC_US");
    long us = text ? strtol(text, NULL, 10) : 0;
    struct timespec time = {us / 1000000, us % 1000000 * 1000};
    while (us > 0 && nanosleep(&time, &time) != 0) {}
}

int fsync(int file) {
    int result = (int)syscall(SYS_fsync, file);
    wait_longer();
    return result;
}

int fdatasync(int file) {
    int result = (int)syscall(SYS_fdatasync, file);
    wait_longer();
    return result;
}

int msync(void *start, size_t length, int flags) {
    int result = (int)syscall(SYS_msync, start, length, flags);
    wait_longer();
    return result;
}
