/* Any result as an ordinary checkpoint: M.weight with what its codes stand for, in the model's own type, and no
 * quantization_config. Loads wherever the model does and saves nothing; what a result does to inputs or to the cache is
 * not part of it.
 *
 * Tables of values, which no current runtime loads, are also written to quantd-tables.bin, a safetensors container
 * under another suffix so that no loader takes it for weights. For each such module, in the names of SqueezeLLM (Kim et
 * al. 2023, arXiv 2306.07629): M.lookup_table  F32 [N, 2^b] M.qweight       I32 [ceil(K*b/32), N]   codes as one
 * little-endian stream down K, as gptq packs them M.rows, M.cols, M.vals  I32 [N + 1], I32 [nnz], F32 [nnz]: outlier
 * weights as a CSR matrix that is added to what the codes stand for; absent without outliers */

#include "formats/export.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"
#include "models/pack.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TABLES_FILE "quantd-tables.bin"

static enum dtype dense_scale_dtype(enum dtype model_dtype)
{
    return model_dtype == DTYPE_F16 || model_dtype == DTYPE_BF16 ? model_dtype : DTYPE_F32;
}

static int dense_accepts(const struct qscheme *scheme, int64_t rows, int64_t cols)
{
    struct qtensor q;

    return qtensor_describe("weight", scheme, rows, cols, 0, &q);
}

static int dense_tensors(const struct qscheme *scheme, int64_t rows, int64_t cols,
                         struct format_tensor out[FORMAT_TENSORS_MAX])
{
    out[0] = (struct format_tensor){".weight", scheme->scale_dtype, 2, {rows, cols}};
    return 1;
}

static int dense_encode(const struct qtensor *q, int index, void *out)
{
    int64_t count = q->rows * q->cols;
    AUTO_FREE float *w = NULL;

    (void)index;
    TRY(mem_buffer(&w, (size_t)count));
    qtensor_dequantize(q, w);
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(dtype_round(w[i], q->scheme.scale_dtype))) {
            return err_raise(ERR_NON_FINITE_VALUE, "weight %lld of %s is %g, which %s cannot hold", (long long)i,
                             q->name, (double)w[i], dtype_rows[q->scheme.scale_dtype].name);
        }
    }
    format_narrow(w, count, q->scheme.scale_dtype, out);
    return 0;
}

/* The side file's tensors of one module. */
enum table_tensor { TABLE_LOOKUP, TABLE_QWEIGHT, TABLE_ROWS, TABLE_COLS, TABLE_VALS, TABLE_COUNT };

static int dense_list_tables(const struct qtensor *q, struct format_tensor *out)
{
    out[TABLE_LOOKUP] = (struct format_tensor){".lookup_table", DTYPE_F32, 2, {q->rows, (int64_t)1 << q->scheme.bits}};
    out[TABLE_QWEIGHT] =
        (struct format_tensor){".qweight", DTYPE_I32, 2, {pack_words(q->cols, q->scheme.bits), q->rows}};
    out[TABLE_ROWS] = (struct format_tensor){".rows", DTYPE_I32, 1, {q->rows + 1}};
    out[TABLE_COLS] = (struct format_tensor){".cols", DTYPE_I32, 1, {q->index_count}};
    out[TABLE_VALS] = (struct format_tensor){".vals", DTYPE_F32, 1, {q->index_count}};
    return q->index_count > 0 ? TABLE_COUNT : TABLE_ROWS;
}

static int dense_extra_tensors(const struct format_module *module, struct format_tensor out[FORMAT_TENSORS_MAX])
{
    const struct qtensor q = {
        .scheme = module->scheme, .rows = module->rows, .cols = module->cols, .index_count = module->outliers};

    return module->scheme.kind == QTENSOR_TABLE ? dense_list_tables(&q, out) : 0;
}

static int64_t dense_table_elements(const struct format_tensor *tensor)
{
    return tensor->shape[0] * (tensor->rank > 1 ? tensor->shape[1] : 1);
}

static void dense_fill_table(const struct qtensor *q, enum table_tensor which, void *out)
{
    int64_t entries = (int64_t)1 << q->scheme.bits, at = 0;

    switch (which) {
    case TABLE_LOOKUP:
        memcpy(out, q->tables, (size_t)(q->rows * entries) * sizeof(float));
        break;
    case TABLE_QWEIGHT:
        pack_down(q->codes, q->rows, q->cols, q->scheme.bits, out);
        break;
    case TABLE_ROWS:
        for (int64_t n = 0; n <= q->rows; n++) {
            while (at < q->index_count && q->index[at] < n * q->cols) {
                at++;
            }
            ((int32_t *)out)[n] = (int32_t)at;
        }
        break;
    case TABLE_COLS:
        for (int64_t i = 0; i < q->index_count; i++) {
            ((int32_t *)out)[i] = (int32_t)(q->index[i] % q->cols);
        }
        break;
    default:
        for (int64_t i = 0; i < q->index_count; i++) {
            int64_t place = q->index[i];
            ((float *)out)[i] = q->values[i] - q->tables[place / q->cols * entries + q->codes[place]];
        }
    }
}

static int dense_table_name(const struct qtensor *q, const char *suffix, char out[160])
{
    return snprintf(out, 160, "%s%s", q->name, suffix) < 160
               ? 0
               : err_raise(ERR_INVALID_MODEL, "the module name %s is too long", q->name);
}

static int dense_declare_tables(struct safetensors_writer *writer, const struct qtensor *q)
{
    struct format_tensor list[TABLE_COUNT];
    int count = dense_list_tables(q, list);
    char name[160];

    for (int i = 0; i < count; i++) {
        TRY(dense_table_name(q, list[i].suffix, name));
        TRY(safetensors_writer_declare(writer, name, list[i].dtype, list[i].rank, list[i].shape));
    }
    return 0;
}

static int dense_put_tables(struct safetensors_writer *writer, const struct qtensor *q)
{
    struct format_tensor list[TABLE_COUNT];
    int count = dense_list_tables(q, list);
    char name[160];

    for (int i = 0; i < count; i++) {
        int64_t elements = dense_table_elements(&list[i]), size = elements * dtype_rows[list[i].dtype].bytes;
        AUTO_FREE unsigned char *data = NULL;
        TRY(mem_array(&data, (size_t)size));
        dense_fill_table(q, (enum table_tensor)i, data);
        int64_t found = dtype_find_nonfinite(list[i].dtype, data, elements);
        TRY(dense_table_name(q, list[i].suffix, name));
        TRY(found >= 0 ? model_raise_nonfinite(name, found) : 0);
        TRY(safetensors_writer_put(writer, name, 0, data, (size_t)size));
    }
    return 0;
}

/* Declare (put false) or write one block's tables. */
static int dense_pass_block(struct safetensors_writer *writer, const char *path, bool put)
{
    AUTO(qtensor_file) struct qtensor_file *file = NULL;

    TRY(qtensor_file_open(path, NULL, &file));
    for (int i = 0; i < qtensor_file_count(file); i++) {
        const struct qtensor *meta = qtensor_file_meta(file, i);
        AUTO(qtensor) struct qtensor q = {0};
        if (meta->scheme.kind != QTENSOR_TABLE) {
            continue;
        }
        if (!put) {
            TRY(dense_declare_tables(writer, meta));
            continue;
        }
        TRY(qtensor_file_read(file, i, &q));
        TRY(dense_put_tables(writer, &q));
    }
    return 0;
}

static bool dense_has_tables(const struct format_config *config)
{
    for (int i = 0; i < config->count; i++) {
        if (config->modules[i].scheme.kind == QTENSOR_TABLE) {
            return true;
        }
    }
    return false;
}

static int dense_write_tables(const struct format_export *request)
{
    AUTO(safetensors_writer) struct safetensors_writer *writer = NULL;
    char path[EXPORT_PATH_MAX];

    if (!dense_has_tables(&request->config)) {
        return 0;
    }
    TRY(fs_path(path, sizeof(path), "%s/%s", request->directory, TABLES_FILE));
    TRY(safetensors_writer_new(path, &writer));
    for (int i = 0; i < request->block_count; i++) {
        TRY(dense_pass_block(writer, request->block_files[i], false));
    }
    TRY(safetensors_writer_begin(writer));
    for (int i = 0; i < request->block_count; i++) {
        TRY(dense_pass_block(writer, request->block_files[i], true));
    }
    return safetensors_writer_finish(writer);
}

const struct format format_dense = {
    .name = "dense",
    .title = "Dense weights",
    .help = "Any result as an ordinary checkpoint in the model's own type, for runtimes that load no quantized form of "
            "it: same size as the model, with the result's errors. Quantized inputs and caches are not part of it. "
            "Tables of values are in quantd-tables.bin as well.",
    .plain = true,
    .bare = true,
    .scale_dtype = dense_scale_dtype,
    .accepts = dense_accepts,
    .tensors = dense_tensors,
    .encode = dense_encode,
    .extra = dense_write_tables,
    .extra_tensors = dense_extra_tensors,
};
