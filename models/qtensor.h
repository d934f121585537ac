#pragma once
/* The neutral quantized tensor: where methods and artifact formats meet, on the host, unpacked.
 *
 * w[n,k] = scale[n, k/g] * (code[n,k] - zero[n, k/g]) for QTENSOR_INT. Codes are one byte each; formats pack.
 * Scales hold values already rounded to scale_dtype. Owned by whoever called qtensor_new/read. */

#include "gpu/tensor.h"

#include <stdbool.h>
#include <stdint.h>

enum qtensor_kind { QTENSOR_INT };

struct qscheme {
    enum qtensor_kind kind;
    int bits;               /* 2..8 */
    int64_t group_size;     /* effective: == cols for one scale a row */
    bool per_channel;       /* asked for as group_size -1 */
    bool sym;               /* every zero is 2^(bits-1) */
    enum dtype scale_dtype; /* F32, F16 or BF16 */
};

struct qtensor {
    char name[128]; /* module path: "model.layers.0.self_attn.q_proj" */
    struct qscheme scheme;
    int64_t rows, cols, groups; /* N (out), K (in), K / group_size */
    uint8_t *codes;             /* [rows, cols] */
    float *scales;              /* [rows, groups] */
    uint8_t *zeros;             /* [rows, groups] */
};

/* Allocate the arrays. ERR_HOST_OUT_OF_MEMORY; ERR_INCOMPATIBLE_OPTIONS when group_size does not divide cols. */
int qtensor_new(const char *name, const struct qscheme *scheme, int64_t rows, int64_t cols, struct qtensor *out);
void qtensor_deinit(struct qtensor *q); /* zeroed is fine */
/* out [rows, cols] F32, exactly scale * (code - zero) in fp32. */
void qtensor_dequantize(const struct qtensor *q, float *out);
/* Bits per weight with scales (scale_dtype) and zeros (bits each, only when asymmetric). */
double qtensor_bits_per_weight(const struct qtensor *q);

/* A finished block's checkpoint: one safetensors file with <name>.codes U8, .scales F32, .zeros U8 and the schemes in
 * __metadata__. Written to temp, fsynced, renamed, directory fsynced; sha256 of the file in hex[65]. */
int qtensor_save(const char *path, const struct qtensor *items, int count, char hex[65]);

struct qtensor_file;
/* Open a checkpoint; headers only. sha256 is verified when expected_hex is not NULL. */
int qtensor_file_open(const char *path, const char *expected_hex, struct qtensor_file **out);
void qtensor_file_close(struct qtensor_file *file);
int qtensor_file_count(const struct qtensor_file *file);
/* Shape and scheme of item i, arrays NULL. Borrowed. */
const struct qtensor *qtensor_file_meta(const struct qtensor_file *file, int i);
/* Read item i whole; caller qtensor_deinit's it. */
int qtensor_file_read(struct qtensor_file *file, int i, struct qtensor *out);
