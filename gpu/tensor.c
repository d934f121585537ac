/* Rows of element types, views of tensors, NF4's levels. */

#include "gpu/tensor.h"

#include <assert.h>
#include <math.h>
#include <string.h>

const struct dtype_row dtype_rows[DTYPE_COUNT] = {
#define DTYPE_ROW(symbol, name, bytes, bits, stored, is_float, max, min_normal, min) \
    [DTYPE_##symbol] = {name, bytes, bits, stored, is_float, max, min_normal, min},
    DTYPE_ROWS(DTYPE_ROW)
#undef DTYPE_ROW
};

int dtype_from_name(const char *name)
{
    for (int i = 0; i < DTYPE_COUNT; i++) {
        if (dtype_rows[i].stored && strcmp(dtype_rows[i].name, name) == 0) {
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

struct tensor tensor_move(struct tensor *from)
{
    struct tensor moved = *from;

    *from = (struct tensor){0};
    return moved;
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

float dtype_decode(enum dtype element, uint8_t code)
{
    switch (element) {
    case DTYPE_NF4:
        return dtype_nf4_levels[code & 15];
    case DTYPE_F4_E2M1:
        return dtype_e2m1_to_f32(code);
    case DTYPE_F8_E4M3:
        return dtype_e4m3_to_f32(code);
    case DTYPE_F8_E5M2:
        return dtype_e5m2_to_f32(code);
    case DTYPE_I8:
        return (float)code - 128.0f;
    default:
        return (float)code;
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
