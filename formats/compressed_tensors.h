#pragma once
/* compressed-tensors knows several ways to store a weight; each is a row here, in a file of its own
 * (compressed_tensors_*.c). Private to formats/. */

#include "formats/common.h"

struct ct_form {
    const char *name; /* as the config spells it: "pack-quantized" */
    int (*accepts)(const struct qscheme *scheme, int64_t rows, int64_t cols);
    int (*tensors)(const struct qscheme *scheme, int64_t rows, int64_t cols,
                   struct format_tensor out[FORMAT_TENSORS_MAX]);
    int (*encode)(const struct qtensor *q, int index, void *out);
    const char *(*stored)(const struct qtensor *q, int index); /* as struct format has it */
    /* The "weights" object of a config group. New reference. */
    json_t *(*weights)(const struct qscheme *scheme);
};

/* Integers without quantized inputs; integers with; FP8 with; FP8 without. */
extern const struct ct_form ct_pack, ct_int, ct_float, ct_naive;

/* compressed_tensors_warn.c */
int ct_warn(const struct format_config *config, json_t *warnings);

/* The tensor with one static input scale, when the scheme has one; returns their number (0 or 1). */
int ct_input_tensor(const struct qscheme *scheme, struct format_tensor *out);
int ct_encode_input(const struct qtensor *q, void *out);
/* A "weights" or "input_activations" object: group_size and block 0 = null. New reference. */
json_t *ct_arguments(int bits, bool is_float, bool sym, const char *strategy, int64_t group_size, int64_t block,
                     bool dynamic);
