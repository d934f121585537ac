/* Which instructions for BF16 products this CPU and its kernel give to this process. */

#include "gpu/cpu/products.h"

#if defined(__x86_64__)
#include "gpu/cpu/products_internal.h"

#include <cpuid.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ARCH_REQ_XCOMP_PERM 0x1023 /* of arch_prctl(2), from Linux 5.16 on */
#define XFEATURE_XTILEDATA 18
#define XCR0_TILES (3u << 17)           /* configuration and data */
#define LEAF7_AMX (1u << 22 | 1u << 24) /* edx: AMX-BF16, AMX-TILE */
#define LEAF7_1_AVX512_BF16 (1u << 5)   /* eax */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool has_avx512_bf16, has_amx;

static unsigned saved_features(void)
{
    unsigned low, high;

    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static void look(void)
{
    unsigned a, b, c, d;

    /* That says that the kernel saves the registers of AVX-512, and so that there is XGETBV. */
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") ||
        !__get_cpuid_count(7, 1, &a, &b, &c, &d) || (a & LEAF7_1_AVX512_BF16) == 0) {
        return;
    }
    has_avx512_bf16 = true;
    has_amx = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & LEAF7_AMX) == LEAF7_AMX &&
              (saved_features() & XCR0_TILES) == XCR0_TILES &&
              syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

const struct products *products_choose(void)
{
    const char *level = getenv("QUANTD_CPU_LEVEL");

    pthread_once(&once, look);
    if (level == NULL || strcmp(level, "amx") == 0) {
        return has_amx ? &products_amx : has_avx512_bf16 ? &products_avx512 : NULL;
    }
    return strcmp(level, "avx512_bf16") == 0 && has_avx512_bf16 ? &products_avx512 : NULL;
}

bool products_faster(const struct products *products)
{
    return products != &products_avx512 || !__builtin_cpu_is("intel");
}
#else
const struct products *products_choose(void)
{
    return NULL;
}

bool products_faster(const struct products *products)
{
    return false;
}

void products_pack_rows(enum products_side side, uint16_t *to, enum dtype dtype, const void *x, int64_t ld,
                        int64_t rows, int64_t count)
{
}

void products_pack_columns(enum products_side side, uint16_t *to, const float *x, int64_t ld, int64_t rows,
                           int64_t count)
{
}
#endif
