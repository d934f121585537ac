/* The rig of the operations' bodies. */

#include "tests/conformance/ops.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int ops_rig_init(struct ops_rig *rig, const struct gpu *gpu)
{
    *rig = (struct ops_rig){.gpu = *gpu};
    return gpu->ops->stream_new(gpu->device, &rig->stream);
}

void ops_rig_clear(struct ops_rig *rig)
{
    while (rig->count > 0) {
        gpu_tensor_free(&rig->gpu, &rig->tensors[--rig->count]);
    }
}

void ops_rig_deinit(struct ops_rig *rig)
{
    ops_rig_clear(rig);
    if (rig->stream != NULL) {
        rig->gpu.ops->stream_free(rig->stream);
    }
    *rig = (struct ops_rig){0};
}

void ops_output_deinit(struct ops_output *out)
{
    free(out->values);
    *out = (struct ops_output){0};
}

static uint64_t random_bits(uint64_t *state) /* splitmix64 */
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Close to normal: the sum of four. */
float ops_normal(uint64_t *state)
{
    double sum = 0;
    for (int i = 0; i < 4; i++) {
        sum += (double)(int64_t)random_bits(state) * 0x1p-63;
    }
    return (float)(0.87 * sum);
}

int ops_new(struct ops_rig *rig, enum dtype dtype, int64_t rows, int64_t cols, struct tensor *out)
{
    if (rig->count == OPS_TENSORS_MAX) {
        return err_raise(ERR_INTERNAL, "a body with more than %d tensors", OPS_TENSORS_MAX);
    }
    int rc = gpu_tensor_new(&rig->gpu, dtype, 2, (const int64_t[]){rows, cols}, &rig->tensors[rig->count]);
    if (rc == 0) {
        *out = rig->tensors[rig->count++];
    }
    return rc;
}

static int upload(struct ops_rig *rig, const void *host, const struct tensor *tensor)
{
    TRY(rig->gpu.ops->upload(rig->stream, tensor->data, host, tensor_bytes(tensor)));
    return rig->gpu.ops->stream_sync(rig->stream);
}

int ops_upload(struct ops_rig *rig, const float *values, int64_t rows, int64_t cols, struct tensor *out)
{
    TRY(ops_new(rig, DTYPE_F32, rows, cols, out));
    return upload(rig, values, out);
}

int ops_random(struct ops_rig *rig, enum dtype dtype, int64_t rows, int64_t cols, uint64_t seed, struct tensor *out)
{
    size_t count = (size_t)(rows * cols);
    AUTO_FREE char *host = NULL;

    TRY(mem_buffer(&host, count * sizeof(float) + 1));
    for (size_t i = 0; i < count; i++) {
        float value = ops_normal(&seed);
        uint16_t half = dtype == DTYPE_F16 ? dtype_f32_to_f16(value) : dtype_f32_to_bf16(value);
        if (dtype == DTYPE_F32) {
            memcpy(host + i * sizeof(value), &value, sizeof(value));
        } else {
            memcpy(host + i * sizeof(half), &half, sizeof(half));
        }
    }
    TRY(ops_new(rig, dtype, rows, cols, out));
    return upload(rig, host, out);
}

int ops_put_number(struct ops_output *out, double value)
{
    if (out->count == out->capacity) {
        size_t capacity = out->capacity > 0 ? 2 * out->capacity : 256;
        double *grown = realloc(out->values, capacity * sizeof(double));
        if (grown == NULL) {
            return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a body's output");
        }
        out->values = grown;
        out->capacity = capacity;
    }
    out->values[out->count++] = value;
    return 0;
}

static double element(const void *host, enum dtype dtype, size_t i)
{
    uint16_t half = 0;
    float value = 0;
    int32_t number = 0;

    if (dtype == DTYPE_I32) {
        memcpy(&number, (const char *)host + i * sizeof(number), sizeof(number));
        return number;
    }
    if (dtype == DTYPE_U8) {
        return ((const uint8_t *)host)[i];
    }
    if (dtype == DTYPE_F32) {
        memcpy(&value, (const char *)host + i * sizeof(value), sizeof(value));
        return (double)value;
    }
    memcpy(&half, (const char *)host + i * sizeof(half), sizeof(half));
    return (double)(dtype == DTYPE_F16 ? dtype_f16_to_f32(half) : dtype_bf16_to_f32(half));
}

int ops_put(struct ops_rig *rig, struct ops_output *out, const struct tensor *tensor)
{
    size_t count = (size_t)tensor_count(tensor);
    void *host = malloc(tensor_bytes(tensor) + 1);

    if (host == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a body's output");
    }
    int rc = rig->gpu.ops->download(rig->stream, host, tensor->data, tensor_bytes(tensor));
    for (size_t i = 0; rc == 0 && i < count; i++) {
        rc = ops_put_number(out, element(host, tensor->dtype, i));
    }
    free(host);
    return rc;
}

double ops_distance(enum ops_measure measure, const struct ops_output *want, const struct ops_output *got)
{
    double error = 0, energy = 0, differ = 0;

    if (want->count != got->count) {
        return INFINITY;
    }
    for (size_t i = 0; i < want->count; i++) {
        double a = got->values[i], b = want->values[i];
        if (!isfinite(a) || !isfinite(b)) {
            return INFINITY;
        }
        differ += a != b;
        error += (a - b) * (a - b);
        energy += b * b;
    }
    if (measure != OPS_NMSE) {
        return want->count > 0 ? differ / (double)want->count : 0;
    }
    return energy > 0 ? error / energy : error;
}
