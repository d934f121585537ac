/* Which kernel table this CPU gets. */

#include "gpu/cpu/kernels.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
/* Every CPU with AVX2 has F16C, which not every compiler can be asked for. */
static int has_avx2(void)
{
    return __builtin_cpu_supports("avx2");
}

static int has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

const struct kernels *kernels_choose(void)
{
#if defined(__x86_64__)
    const char *level = getenv("QUANTD_CPU_LEVEL");
    int at_most = 2;
    if (level != NULL && strcmp(level, "generic") == 0) {
        at_most = 0;
    } else if (level != NULL && strcmp(level, "avx2") == 0) {
        at_most = 1;
    }
    if (at_most >= 2 && has_avx512()) {
        return &kernels_avx512;
    }
    if (at_most >= 1 && has_avx2()) {
        return &kernels_avx2;
    }
#endif
    return &kernels_generic;
}
