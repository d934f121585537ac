#pragma once
/* One warp's products on the tensor cores and what brings their operands from shared memory: PTX that every device from
 * 8.0 on has, so that one source serves all. The emulator of the tests has the same functions (emulate.h).
 *
 * Fragments of m16n8k16, by lane l with g = l / 4 and t = l % 4; each register has two BF16, the lower column first:
 *   a[0..3]: rows g and g + 8 of columns 2t, 2t + 1, then of columns 2t + 8, 2t + 9
 *   b[0..1]: rows 2t, 2t + 1 of column g, then rows 2t + 8, 2t + 9
 *   c[0..3]: row g, columns 2t, 2t + 1, then row g + 8 */

#include "gpu/cuda/device.cuh"

#ifdef __CUDACC__
/* c += a b. */
static __device__ inline void tensor_multiply(float c[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Four 8x8 matrices of BF16 in shared memory: lane l names row l % 8 of matrix l / 8, 16 bytes, aligned. Of matrix i
 * the lane gets in x[i] row g, columns 2t, 2t + 1. */
static __device__ inline void tensor_load(uint32_t x[4], const __nv_bfloat16 *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row)));
}

/* The same of the transposed matrices: column g, rows 2t, 2t + 1. */
static __device__ inline void tensor_load_turned(uint32_t x[4], const __nv_bfloat16 *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row)));
}

/* 16 bytes from global to shared memory, both aligned, or zeros. They are there after copy_wait and a barrier. */
static __device__ inline void copy_begin(void *shared, const void *global, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(shared)),
                 "l"(global), "r"(there ? 16 : 0)
                 : "memory");
}

/* What this thread has begun is a group. */
static __device__ inline void copy_group(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until at most `left` groups are on their way. */
template <int left> static __device__ inline void copy_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}
#endif

/* Two floats as BF16, `low` in the lower half. */
static __device__ inline uint32_t tensor_pair(float low, float high)
{
    return (uint32_t)__bfloat16_as_ushort(__float2bfloat16_rn(low)) |
           (uint32_t)__bfloat16_as_ushort(__float2bfloat16_rn(high)) << 16;
}
