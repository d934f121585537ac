/* Rows of element types, views of tensors and the scalar float conversions.
 *
 * The conversions are written with integers so that they mean the same on every machine; they agree bit for bit,
 * NaN payloads included, with the F16C instructions that the packed kernels may use. */

#include "gpu/tensor.h"

#include <assert.h>
#include <math.h>
#include <string.h>

const struct dtype_row dtype_rows[DTYPE_COUNT] = {
    [DTYPE_F32] = {"F32", 4, true},         [DTYPE_F16] = {"F16", 2, true},
    [DTYPE_BF16] = {"BF16", 2, true},       [DTYPE_F64] = {"F64", 8, true},
    [DTYPE_BOOL] = {"BOOL", 1, false},      [DTYPE_U8] = {"U8", 1, false},
    [DTYPE_I8] = {"I8", 1, false},          [DTYPE_I16] = {"I16", 2, false},
    [DTYPE_U16] = {"U16", 2, false},        [DTYPE_I32] = {"I32", 4, false},
    [DTYPE_U32] = {"U32", 4, false},        [DTYPE_I64] = {"I64", 8, false},
    [DTYPE_U64] = {"U64", 8, false},        [DTYPE_F8_E4M3] = {"F8_E4M3", 1, true},
    [DTYPE_F8_E5M2] = {"F8_E5M2", 1, true}, [DTYPE_F8_E8M0] = {"F8_E8M0", 1, true},
};

int dtype_from_name(const char *name)
{
    for (int i = 0; i < DTYPE_COUNT; i++) {
        if (strcmp(dtype_rows[i].name, name) == 0) {
            return i;
        }
    }
    return -1;
}

struct tensor tensor_1d(void *data, enum dtype dtype, int64_t n)
{
    return (struct tensor){data, dtype, 1, {n, 1, 1, 1}};
}

struct tensor tensor_2d(void *data, enum dtype dtype, int64_t rows, int64_t cols)
{
    return (struct tensor){data, dtype, 2, {rows, cols, 1, 1}};
}

int64_t tensor_count(const struct tensor *tensor)
{
    int64_t count = 1;
    for (int i = 0; i < tensor->rank; i++) {
        count *= tensor->shape[i];
    }
    return count;
}

size_t tensor_bytes(const struct tensor *tensor)
{
    return (size_t)tensor_count(tensor) * dtype_rows[tensor->dtype].bytes;
}

int64_t matrix_cols(const struct tensor *tensor)
{
    return tensor->rank > 0 ? tensor->shape[tensor->rank - 1] : 1;
}

int64_t matrix_rows(const struct tensor *tensor)
{
    int64_t rows = 1;
    for (int i = 0; i + 1 < tensor->rank; i++) {
        rows *= tensor->shape[i];
    }
    return rows;
}

struct tensor tensor_rows(const struct tensor *tensor, int64_t begin, int64_t count)
{
    assert(tensor->rank == 2 && begin >= 0 && count >= 0 && begin + count <= tensor->shape[0]);
    size_t offset = (size_t)begin * (size_t)tensor->shape[1] * dtype_rows[tensor->dtype].bytes;
    return tensor_2d((char *)tensor->data + offset, tensor->dtype, count, tensor->shape[1]);
}

static float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

float dtype_bf16_to_f32(uint16_t bits)
{
    return float_of((uint32_t)bits << 16);
}

uint16_t dtype_f32_to_bf16(float value)
{
    uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)((bits >> 16) | 0x40u); /* quiet, or a payload in the low half would turn into Inf */
    }
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float dtype_f16_to_f32(uint16_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x8000u) << 16;
    uint32_t exponent = (bits >> 10) & 0x1fu;
    uint32_t mantissa = bits & 0x3ffu;

    if (exponent == 0x1f) {
        return float_of(sign | 0x7f800000u | (mantissa << 13) | (mantissa != 0 ? 0x400000u : 0u));
    }
    if (exponent != 0) {
        return float_of(sign | ((exponent + 112u) << 23) | (mantissa << 13));
    }
    float magnitude = (float)mantissa * 0x1p-24f; /* subnormal: exact */
    return float_of(sign | bits_of(magnitude));
}

uint16_t dtype_f32_to_f16(float value)
{
    uint32_t bits = bits_of(value);
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

/* The nearest float with `mantissa` bits behind the point, exponents from 1 - bias on (below: steps of the least), as
 * sign, exponent and mantissa packed in eight bits. value is finite and at most the format's largest. */
static uint8_t pack_f8(float value, uint32_t mantissa, int bias)
{
    uint32_t bits = bits_of(value), sign = (bits >> 24) & 0x80u, magnitude = bits & 0x7fffffffu;
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

static float unpack_f8(uint8_t bits, uint32_t mantissa, int bias)
{
    int exponent = (bits & 0x7f) >> mantissa;
    float fraction = (float)(bits & ((1u << mantissa) - 1u)) / (float)(1u << mantissa);
    float magnitude = exponent > 0 ? ldexpf(1.0f + fraction, exponent - bias) : ldexpf(fraction, 1 - bias);

    return (bits & 0x80u) != 0 ? -magnitude : magnitude;
}

uint8_t dtype_f32_to_e4m3(float value)
{
    if (isnan(value)) {
        return (uint8_t)(0x7fu | ((bits_of(value) >> 24) & 0x80u));
    }
    float bounded = fmaxf(fminf(value, DTYPE_E4M3_MAX), -DTYPE_E4M3_MAX);
    return pack_f8(bounded, 3, 7);
}

float dtype_e4m3_to_f32(uint8_t bits)
{
    return (bits & 0x7fu) == 0x7fu ? copysignf(NAN, (bits & 0x80u) != 0 ? -1.0f : 1.0f) : unpack_f8(bits, 3, 7);
}

uint8_t dtype_f32_to_e5m2(float value)
{
    if (isnan(value)) {
        return (uint8_t)(0x7fu | ((bits_of(value) >> 24) & 0x80u));
    }
    float bounded = fmaxf(fminf(value, DTYPE_E5M2_MAX), -DTYPE_E5M2_MAX);
    return pack_f8(bounded, 2, 15);
}

float dtype_e5m2_to_f32(uint8_t bits)
{
    if ((bits & 0x7cu) == 0x7cu) {
        float special = (bits & 3u) != 0 ? NAN : INFINITY;
        return copysignf(special, (bits & 0x80u) != 0 ? -1.0f : 1.0f);
    }
    return unpack_f8(bits, 2, 15);
}

const float dtype_nf4_levels[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

uint8_t dtype_f32_to_nf4(float value)
{
    int code = 0;

    for (int i = 0; i < 15; i++) {
        code += value > (dtype_nf4_levels[i] + dtype_nf4_levels[i + 1]) / 2.0f;
    }
    return (uint8_t)code;
}

float dtype_round(float value, enum dtype dtype)
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

float dtype_round_down(float value, enum dtype dtype)
{
    uint16_t bits = 0;

    switch (dtype) {
    case DTYPE_F16:
        bits = dtype_f32_to_f16(value);
        bits = dtype_f16_to_f32(bits) > value ? (uint16_t)(bits - 1) : bits; /* below a positive number lies bits - 1 */
        return dtype_f16_to_f32(bits);
    case DTYPE_BF16:
        bits = dtype_f32_to_bf16(value);
        bits = dtype_bf16_to_f32(bits) > value ? (uint16_t)(bits - 1) : bits;
        return dtype_bf16_to_f32(bits);
    default:
        return value;
    }
}

/* Whether element i is a NaN or Inf: all bits of the exponent, or of whatever a type without one sets aside. */
static bool is_nonfinite(enum dtype dtype, const void *data, int64_t i)
{
    switch (dtype) {
    case DTYPE_F64:
        return (((const uint64_t *)data)[i] & 0x7ff0000000000000u) == 0x7ff0000000000000u;
    case DTYPE_F32:
        return (((const uint32_t *)data)[i] & 0x7f800000u) == 0x7f800000u;
    case DTYPE_F16:
        return (((const uint16_t *)data)[i] & 0x7c00u) == 0x7c00u;
    case DTYPE_BF16:
        return (((const uint16_t *)data)[i] & 0x7f80u) == 0x7f80u;
    case DTYPE_F8_E4M3:
        return (((const uint8_t *)data)[i] & 0x7fu) == 0x7fu;
    case DTYPE_F8_E5M2:
        return (((const uint8_t *)data)[i] & 0x7cu) == 0x7cu;
    case DTYPE_F8_E8M0:
        return ((const uint8_t *)data)[i] == 0xffu;
    default:
        return false;
    }
}

int64_t dtype_find_nonfinite(enum dtype dtype, const void *data, int64_t count)
{
    enum { CHUNK = 4096 }; /* looked at without branches, so that the compiler can use vectors */

    for (int64_t begin = 0; begin < count && dtype_rows[dtype].is_float; begin += CHUNK) {
        int64_t end = count - begin < CHUNK ? count : begin + CHUNK;
        unsigned any = 0;
        switch (dtype) { /* once for each type that is large */
        case DTYPE_F32:
            for (int64_t i = begin; i < end; i++) {
                any |= is_nonfinite(DTYPE_F32, data, i);
            }
            break;
        case DTYPE_F16:
            for (int64_t i = begin; i < end; i++) {
                any |= is_nonfinite(DTYPE_F16, data, i);
            }
            break;
        case DTYPE_BF16:
            for (int64_t i = begin; i < end; i++) {
                any |= is_nonfinite(DTYPE_BF16, data, i);
            }
            break;
        case DTYPE_F8_E4M3:
            for (int64_t i = begin; i < end; i++) {
                any |= is_nonfinite(DTYPE_F8_E4M3, data, i);
            }
            break;
        default:
            any = 1;
        }
        for (int64_t i = begin; any != 0 && i < end; i++) {
            if (is_nonfinite(dtype, data, i)) {
                return i;
            }
        }
    }
    return -1;
}
