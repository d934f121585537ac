#pragma once
/* One module through a format row, into memory. */

#include "formats/format.h"
#include "tests/unit/formats/decode.h"

static inline void stored_encode(const struct format *format, const struct qtensor *q, struct stored *out)
{
    struct format_tensor tensors[FORMAT_TENSORS_MAX];
    struct qtensor without_codes = *q; /* all that tensors beyond the first may look at */

    without_codes.codes = NULL;
    without_codes.entries = NULL;
    *out = (struct stored){.count = format->tensors(&q->scheme, q->rows, q->cols, tensors)};
    ck_assert_int_gt(out->count, 0);
    ck_assert_int_le(out->count, FORMAT_TENSORS_MAX);
    for (int i = 0; i < out->count; i++) {
        size_t bytes = dtype_rows[tensors[i].dtype].bytes;
        for (int d = 0; d < tensors[i].rank; d++) {
            bytes *= (size_t)tensors[i].shape[d];
        }
        out->items[i].suffix = tensors[i].suffix;
        out->items[i].dtype = tensors[i].dtype;
        out->items[i].rank = tensors[i].rank;
        memcpy(out->items[i].shape, tensors[i].shape, sizeof(tensors[i].shape));
        out->items[i].data = calloc(1, bytes); /* exactly: a sanitizer sees what is written next to it */
        ck_assert_rc_ok(format->encode(i == 0 ? q : &without_codes, i, out->items[i].data));
    }
}

static inline void stored_deinit(struct stored *stored)
{
    for (int i = 0; i < stored->count; i++) {
        free(stored->items[i].data);
    }
    *stored = (struct stored){0};
}

/* The weights that a reader of the format gets. Caller frees. */
static inline float *encode_and_decode(const struct format *format, const struct qtensor *q)
{
    struct stored stored;
    float *out = malloc((size_t)(q->rows * q->cols) * sizeof(*out));

    stored_encode(format, q, &stored);
    decoder_of(format->name)(&stored, &q->scheme, q->rows, q->cols, out);
    stored_deinit(&stored);
    return out;
}

/* As they were, or as near as the format's own rounding allows: dense weights are rounded to their type; bitsandbytes
 * stores 127 times an INT8 scale, which costs the last bit. */
static inline void assert_close_weights(const struct format *format, const float *actual, const struct qtensor *q)
{
    bool dense = strcmp(format->name, "dense") == 0, ranges = strcmp(format->name, "bitsandbytes") == 0;
    double allowed = dense ? 0x1p-8 : ranges && q->scheme.kind == QTENSOR_INT ? 0x1p-22 : 0;
    float *expected = malloc((size_t)(q->rows * q->cols) * sizeof(float));

    qtensor_dequantize(q, expected);
    for (int64_t i = 0; i < q->rows * q->cols; i++) {
        double max_error =
            allowed * fabs((double)expected[i]) + (dense ? 0x1p-24 : 0); /* half a step of F16's smallest */
        if (!(fabs((double)actual[i] - (double)expected[i]) <= max_error)) {
            ck_abort_msg("%s: weight %lld is %g and not %g", format->name, (long long)i, (double)actual[i],
                         (double)expected[i]);
        }
    }
    free(expected);
}
