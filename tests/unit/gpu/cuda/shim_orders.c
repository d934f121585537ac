/* Faults on order from another process: QUANTD_SHIM_ORDERS names a file that need not be there. When it is, the next
 * copy carries out its one line and removes it:
 *
 *   lose ERROR           every call fails from now on, in this process
 *   lose ERROR always    the same, and the order stays for later processes
 *   allocation K TIMES   from the K-th allocation on, that many fail                                              */

#include "tests/unit/gpu/cuda/shim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void shim_obey(void)
{
    const char *path = getenv("QUANTD_SHIM_ORDERS");
    char line[80] = "", always[16] = "";
    long long first, times;
    int error;

    FILE *file = path != NULL ? fopen(path, "re") : NULL;
    if (file == NULL) {
        return;
    }
    char *read = fgets(line, sizeof(line), file);
    fclose(file);
    if (read != NULL && sscanf(line, "lose %d %15s", &error, always) >= 1) {
        shim_get()->fail_call(1, error);
    } else if (read != NULL && sscanf(line, "allocation %lld %lld", &first, &times) == 2) {
        shim_get()->fail_allocation(first, times);
    } else {
        fprintf(stderr, "shim: no such order: %s\n", line);
        abort();
    }
    if (strcmp(always, "always") != 0) {
        (void)unlink(path);
    }
}
