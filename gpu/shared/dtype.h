#pragma once
/* Element types: one table of what they are and hold, and the scalar conversions between them. Plain C, for hosts and
 * devices.
 *
 * The conversions are written with integers so that they mean the same on every machine; they agree bit for bit, NaN
 * payloads included, with the F16C instructions that packed kernels may use. */

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define GPU_SHARED static __host__ __device__ inline
#else
#define GPU_SHARED static inline
#endif

/* symbol, name, bytes of an element in memory, bits of its code, whether checkpoints hold it (and the name is
 * safetensors'), whether it is a float; largest finite magnitude, smallest normal and smallest positive one. NF4's
 * levels are those of its codes; its smallest is the one next to 0. */
#define DTYPE_ROWS(ROW)                                                               \
    ROW(F32, "F32", 4, 32, true, true, 0x1.fffffep127, 0x1p-126, 0x1p-149)            \
    ROW(F16, "F16", 2, 16, true, true, 65504.0, 0x1p-14, 0x1p-24)                     \
    ROW(BF16, "BF16", 2, 16, true, true, 0x1.fep127, 0x1p-126, 0x1p-133)              \
    ROW(F64, "F64", 8, 64, true, true, 0x1.fffffffffffffp1023, 0x1p-1022, 0x1p-1074)  \
    ROW(BOOL, "BOOL", 1, 8, true, false, 1.0, 1.0, 1.0)                               \
    ROW(U8, "U8", 1, 8, true, false, 255.0, 1.0, 1.0)                                 \
    ROW(I8, "I8", 1, 8, true, false, 127.0, 1.0, 1.0)                                 \
    ROW(I16, "I16", 2, 16, true, false, 32767.0, 1.0, 1.0)                            \
    ROW(U16, "U16", 2, 16, true, false, 65535.0, 1.0, 1.0)                            \
    ROW(I32, "I32", 4, 32, true, false, 2147483647.0, 1.0, 1.0)                       \
    ROW(U32, "U32", 4, 32, true, false, 4294967295.0, 1.0, 1.0)                       \
    ROW(I64, "I64", 8, 64, true, false, 0x1p63, 1.0, 1.0)                             \
    ROW(U64, "U64", 8, 64, true, false, 0x1p64, 1.0, 1.0)                             \
    ROW(F8_E4M3, "F8_E4M3", 1, 8, true, true, 448.0, 0x1p-6, 0x1p-9)                  \
    ROW(F8_E5M2, "F8_E5M2", 1, 8, true, true, 57344.0, 0x1p-14, 0x1p-16)              \
    ROW(F8_E8M0, "F8_E8M0", 1, 8, true, true, 0x1p127, 0x1p-127, 0x1p-127)            \
    ROW(NF4, "NF4", 1, 4, false, true, 1.0, 0.07958029955625534, 0.07958029955625534) \
    ROW(F4_E2M1, "F4_E2M1", 1, 4, false, true, 6.0, 1.0, 0.5)

enum dtype {
#define DTYPE_SYMBOL(symbol, name, bytes, bits, stored, is_float, max, min_normal, min) DTYPE_##symbol,
    DTYPE_ROWS(DTYPE_SYMBOL)
#undef DTYPE_SYMBOL
        DTYPE_COUNT
};

/* The largest finite magnitude of a type. */
GPU_SHARED double dtype_max(enum dtype dtype)
{
    switch (dtype) {
#define DTYPE_MAX(symbol, name, bytes, bits, stored, is_float, max, min_normal, min) \
    case DTYPE_##symbol:                                                             \
        return max;
        DTYPE_ROWS(DTYPE_MAX)
#undef DTYPE_MAX
    default:
        return 0;
    }
}

/* The smallest scale in F32, F16 or BF16 that can be divided by: subnormal only where the type has few exponents. */
GPU_SHARED float dtype_min_scale(enum dtype dtype)
{
    return dtype == DTYPE_F16 ? 0x1p-24f : 0x1p-126f;
}

GPU_SHARED float dtype_float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

GPU_SHARED uint32_t dtype_bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

GPU_SHARED float dtype_bf16_to_f32(uint16_t bits)
{
    return dtype_float_of((uint32_t)bits << 16);
}

/* NaN stays NaN. */
GPU_SHARED uint16_t dtype_f32_to_bf16(float value)
{
    uint32_t bits = dtype_bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)((bits >> 16) | 0x40u); /* quiet, or a payload in the low half would turn into Inf */
    }
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

GPU_SHARED float dtype_f16_to_f32(uint16_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x8000u) << 16;
    uint32_t exponent = (bits >> 10) & 0x1fu;
    uint32_t mantissa = bits & 0x3ffu;

    if (exponent == 0x1f) {
        return dtype_float_of(sign | 0x7f800000u | (mantissa << 13) | (mantissa != 0 ? 0x400000u : 0u));
    }
    if (exponent != 0) {
        return dtype_float_of(sign | ((exponent + 112u) << 23) | (mantissa << 13));
    }
    float magnitude = (float)mantissa * 0x1p-24f; /* subnormal: exact */
    return dtype_float_of(sign | dtype_bits_of(magnitude));
}

/* Overflow gives Inf, subnormals are kept. */
GPU_SHARED uint16_t dtype_f32_to_f16(float value)
{
    uint32_t bits = dtype_bits_of(value);
    uint32_t sign = (bits >> 16) & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;

    if (magnitude > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
    }
    if (magnitude >= 0x477ff000u) { /* 65520, halfway from the largest finite half to the next step, and above */
        return (uint16_t)(sign | 0x7c00u);
    }
    if (magnitude < 0x38800000u) { /* below 2^-14: a subnormal half, in steps of 2^-24 */
        uint32_t shift = 126u - (magnitude >> 23);
        if (shift > 25u) {
            return (uint16_t)sign;
        }
        uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
        uint32_t kept = mantissa >> shift;
        uint32_t rest = mantissa & ((1u << shift) - 1u);
        uint32_t half = 1u << (shift - 1u);
        kept += rest > half || (rest == half && (kept & 1u) != 0);
        return (uint16_t)(sign | kept);
    }
    uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return (uint16_t)(sign | ((rounded - (112u << 23)) >> 13));
}

/* value rounded to what `dtype` (F32, F16 or BF16) stores. */
GPU_SHARED float dtype_round(float value, enum dtype dtype)
{
    switch (dtype) {
    case DTYPE_F16:
        return dtype_f16_to_f32(dtype_f32_to_f16(value));
    case DTYPE_BF16:
        return dtype_bf16_to_f32(dtype_f32_to_bf16(value));
    default:
        return value;
    }
}

/* The same, but the type's largest number of that sign for what would be infinite. */
GPU_SHARED float dtype_round_finite(float value, enum dtype dtype)
{
    float rounded = dtype_round(value, dtype);

    return isfinite(rounded) ? rounded : copysignf((float)dtype_max(dtype), value);
}

/* The largest number of `dtype` (F32, F16 or BF16) that is not above value; value is not negative. */
GPU_SHARED float dtype_round_down(float value, enum dtype dtype)
{
    uint16_t bits = 0;

    switch (dtype) {
    case DTYPE_F16:
        bits = dtype_f32_to_f16(value);
        bits = dtype_f16_to_f32(bits) > value ? (uint16_t)(bits - 1)
                                              : bits; /* the next one below a positive number is bits - 1 */
        return dtype_f16_to_f32(bits);
    case DTYPE_BF16:
        bits = dtype_f32_to_bf16(value);
        bits = dtype_bf16_to_f32(bits) > value ? (uint16_t)(bits - 1) : bits;
        return dtype_bf16_to_f32(bits);
    default:
        return value;
    }
}

/* The nearest float with `mantissa` bits after the point, exponents from 1 - bias on (below: steps of the smallest), as
 * exponent and mantissa packed in the low bits, and the sign above them at `sign_at`. value is finite and at most the
 * format's largest. */
GPU_SHARED uint8_t dtype_pack(float value, uint32_t mantissa, int bias, uint32_t sign_at)
{
    uint32_t bits = dtype_bits_of(value), sign = (bits >> 31) << sign_at, magnitude = bits & 0x7fffffffu;
    int exponent = (int)(magnitude >> 23) - 127 + bias; /* in the packed format */
    uint32_t shift = 23 - mantissa, kept = (magnitude & 0x7fffffu) | 0x800000u;

    if (exponent < 1) { /* subnormal there: shift the hidden bit in */
        uint32_t further = (uint32_t)(1 - exponent);
        if (shift + further > 25) {
            return (uint8_t)sign;
        }
        shift += further;
        exponent = 0;
    }
    uint32_t rest = kept & ((1u << shift) - 1u), half = 1u << (shift - 1u);
    kept >>= shift;
    kept += rest > half || (rest == half && (kept & 1u) != 0);
    /* The hidden bit of a normal number carries into the exponent, as does rounding up to the next power. */
    uint32_t packed = exponent > 0 ? ((uint32_t)(exponent - 1) << mantissa) + kept : kept;
    return (uint8_t)(sign | packed);
}

GPU_SHARED float dtype_unpack(uint8_t bits, uint32_t mantissa, int bias, uint32_t sign_at)
{
    uint32_t packed = bits & ((1u << sign_at) - 1u);
    int exponent = (int)(packed >> mantissa);
    float fraction = (float)(packed & ((1u << mantissa) - 1u)) / (float)(1u << mantissa);
    float magnitude = exponent > 0 ? ldexpf(1.0f + fraction, exponent - bias) : ldexpf(fraction, 1 - bias);

    return (bits >> sign_at & 1u) != 0 ? -magnitude : magnitude;
}

GPU_SHARED float dtype_clamp(float value, float limit)
{
    return fmaxf(fminf(value, limit), -limit);
}

/* E4M3FN: bias 7, largest 448, no Inf, NaN 0x7f. Saturating, ties to even, straight from F32. */
GPU_SHARED uint8_t dtype_f32_to_e4m3(float value)
{
    if (isnan(value)) {
        return (uint8_t)(0x7fu | ((dtype_bits_of(value) >> 24) & 0x80u));
    }
    return dtype_pack(dtype_clamp(value, 448.0f), 3, 7, 7);
}

GPU_SHARED float dtype_e4m3_to_f32(uint8_t bits)
{
    return (bits & 0x7fu) == 0x7fu ? copysignf(NAN, (bits & 0x80u) != 0 ? -1.0f : 1.0f) : dtype_unpack(bits, 3, 7, 7);
}

/* E5M2: bias 15, largest 57344; saturating, so never Inf. */
GPU_SHARED uint8_t dtype_f32_to_e5m2(float value)
{
    if (isnan(value)) {
        return (uint8_t)(0x7fu | ((dtype_bits_of(value) >> 24) & 0x80u));
    }
    return dtype_pack(dtype_clamp(value, 57344.0f), 2, 15, 7);
}

GPU_SHARED float dtype_e5m2_to_f32(uint8_t bits)
{
    if ((bits & 0x7cu) == 0x7cu) {
        float special = (bits & 3u) != 0 ? NAN : INFINITY;
        return copysignf(special, (bits & 0x80u) != 0 ? -1.0f : 1.0f);
    }
    return dtype_unpack(bits, 2, 15, 7);
}

/* E2M1 (OCP Microscaling Formats 1.0, 5.3.3): 0, 0.5, 1, 1.5, 2, 3, 4, 6 of either sign in four bits. Saturating, ties
 * to even; a NaN is 0. */
GPU_SHARED uint8_t dtype_f32_to_e2m1(float value)
{
    return isnan(value) ? (uint8_t)0 : dtype_pack(dtype_clamp(value, 6.0f), 1, 1, 3);
}

GPU_SHARED float dtype_e2m1_to_f32(uint8_t bits)
{
    return dtype_unpack(bits, 1, 1, 3);
}

/* E8M0 (the same, 5.4.1): 2^(bits - 127), NaN 0xff. The largest power of two that is not above value, which is how the
 * microscaling formats choose a scale; what is below the smallest gets that, what is negative or a NaN the NaN. */
GPU_SHARED uint8_t dtype_f32_to_e8m0(float value)
{
    uint32_t bits = dtype_bits_of(value);

    if (isnan(value) || value < 0) {
        return 0xffu;
    }
    return (uint8_t)(bits >> 23 < 255u ? bits >> 23 : 254u);
}

GPU_SHARED float dtype_e8m0_to_f32(uint8_t bits)
{
    return bits == 0xffu ? NAN : ldexpf(1.0f, (int)bits - 127);
}

/* A scale as `dtype` stores it: as dtype_round, and F8_E4M3 and F8_E8M0 as well. */
GPU_SHARED float dtype_round_scale(float value, enum dtype dtype)
{
    switch (dtype) {
    case DTYPE_F8_E4M3:
        return dtype_e4m3_to_f32(dtype_f32_to_e4m3(value));
    case DTYPE_F8_E8M0:
        return dtype_e8m0_to_f32(dtype_f32_to_e8m0(value));
    default:
        return dtype_round(value, dtype);
    }
}
