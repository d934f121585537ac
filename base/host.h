#pragma once
/* The memory of this host that a process may use. Blocks for files of /proc and /sys, which have no disk below them. */

#include <stdint.h>

struct host_memory {
    int64_t total;     /* the smallest of what the host has and what the control groups of the process allow */
    int64_t available; /* of it, without swapping; page cache that can be dropped counts */
};

/* Resident bytes of this process now; 0: not known. */
int64_t host_resident(void);
/* The most that it has had since its program began: getrusage counts the process that started it, too. */
int64_t host_peak(void);

/* Reads ROOT/proc and ROOT/sys; ROOT is "" but in tests. What cannot be read is 0. */
void host_memory_read(const char *root, struct host_memory *memory);
