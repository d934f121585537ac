/* The neutral quantized tensor in host memory: one byte a code, whatever its bits, so that methods and formats need no
 * bit arithmetic in common. */

#include "models/qtensor_internal.h"

#include "base/err.h"
#include "gpu/ggml_blocks.h"
#include "models/pack.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

const char *const qtensor_kind_names[QTENSOR_KIND_COUNT] = {
    [QTENSOR_INT] = "int",     [QTENSOR_FLOAT8] = "float8",       [QTENSOR_NF4] = "nf4",
    [QTENSOR_TABLE] = "table", [QTENSOR_CODEBOOKS] = "codebooks", [QTENSOR_BLOCKS] = "blocks",
    [QTENSOR_DENSE] = "dense", [QTENSOR_FLOAT4] = "float4",
};

static const struct qtensor_scaling scalings[QTENSOR_KIND_COUNT] = {
    [QTENSOR_INT] = {.bits_min = 2, .bits_max = 8, .zeros = true},
    [QTENSOR_FLOAT8] = {.bits_min = 8, .bits_max = 8, .ragged = true, .small_scales = true},
    [QTENSOR_FLOAT4] = {.bits_min = 4, .bits_max = 4, .ragged = true, .small_scales = true},
    [QTENSOR_NF4] = {.bits_min = 4, .bits_max = 4, .flat = true, .ragged = true},
};

const struct qtensor_scaling *qtensor_scaling(enum qtensor_kind kind)
{
    return kind < QTENSOR_KIND_COUNT && scalings[kind].bits_max > 0 ? &scalings[kind] : NULL;
}

enum dtype qscheme_element(const struct qscheme *scheme)
{
    switch (scheme->kind) {
    case QTENSOR_NF4:
        return DTYPE_NF4;
    case QTENSOR_FLOAT4:
        return DTYPE_F4_E2M1;
    case QTENSOR_FLOAT8:
        return scheme->element;
    default:
        return DTYPE_U8;
    }
}

void qscheme_levels(const struct qscheme *scheme, float out[256])
{
    enum dtype element = qscheme_element(scheme);

    for (int code = 0; code < 256; code++) {
        out[code] = dtype_decode(element, (uint8_t)code);
    }
}

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static bool scales_fit(const struct qscheme *s)
{
    const struct qtensor_scaling *scaling = qtensor_scaling(s->kind);

    return s->scale_dtype == DTYPE_F32 || s->scale_dtype == DTYPE_F16 || s->scale_dtype == DTYPE_BF16 ||
           (scaling != NULL && scaling->small_scales &&
            (s->scale_dtype == DTYPE_F8_E4M3 || s->scale_dtype == DTYPE_F8_E8M0));
}

/* What the arrays' shapes rest on. */
static bool bits_fit(const struct qscheme *s)
{
    const struct qtensor_scaling *scaling = qtensor_scaling(s->kind);

    if (scaling != NULL) {
        return s->bits >= scaling->bits_min && s->bits <= scaling->bits_max &&
               (s->kind != QTENSOR_FLOAT8 || s->element == DTYPE_F8_E4M3 || s->element == DTYPE_F8_E5M2);
    }
    switch (s->kind) {
    case QTENSOR_TABLE:
        return s->bits >= 2 && s->bits <= 8;
    case QTENSOR_CODEBOOKS:
        return s->bits >= 1 && s->bits <= 16 && s->codebooks >= 1 && s->codebooks <= 64;
    case QTENSOR_BLOCKS:
    case QTENSOR_DENSE:
        return true;
    default:
        return false;
    }
}

/* Groups tile the inputs, except where a kind lays them over something else or lets the last be short. */
static int check_groups(const char *name, const struct qscheme *s, int64_t rows, int64_t cols)
{
    int64_t group_rows = s->group_rows > 0 ? s->group_rows : 1;

    if (s->kind == QTENSOR_BLOCKS) {
        return ggml_row_bytes(s->block_type, cols) > 0
                   ? 0
                   : err_raise(ERR_INCOMPATIBLE_OPTIONS,
                               "%s: its %lld inputs are not a multiple of the blocks of type %d", name, (long long)cols,
                               s->block_type);
    }
    if (s->kind == QTENSOR_TABLE || s->kind == QTENSOR_DENSE) {
        return 0;
    }
    const struct qtensor_scaling *scaling = qtensor_scaling(s->kind);
    bool ragged = scaling != NULL && scaling->ragged;
    if (s->group_size < 1 || (!ragged && (s->group_size > cols || cols % s->group_size != 0))) {
        return err_raise(ERR_INCOMPATIBLE_OPTIONS, "%s: group_size %lld does not divide its %lld inputs", name,
                         (long long)s->group_size, (long long)cols);
    }
    if ((group_rows > rows && (!ragged || scaling->flat)) || (s->kind == QTENSOR_CODEBOOKS && rows % group_rows != 0)) {
        return err_raise(ERR_INCOMPATIBLE_OPTIONS, "%s: groups of %lld rows do not fit its %lld", name,
                         (long long)group_rows, (long long)rows);
    }
    return 0;
}

static int check_scheme(const char *name, const struct qscheme *scheme, int64_t rows, int64_t cols)
{
    if (strlen(name) >= sizeof(((struct qtensor *)0)->name)) {
        return err_raise(ERR_INVALID_MODEL, "the module name \"%.160s\" is too long", name);
    }
    if (rows < 1 || cols < 1 || rows > INT32_MAX || cols > INT32_MAX) {
        return err_raise(ERR_INVALID_MODEL, "%s: a quantized tensor of [%lld, %lld]", name, (long long)rows,
                         (long long)cols);
    }
    if (!bits_fit(scheme) || !scales_fit(scheme)) {
        return err_raise(ERR_INCOMPATIBLE_OPTIONS, "%s: no scheme of kind %d, %d bits, %s scales", name,
                         (int)scheme->kind, scheme->bits,
                         scheme->scale_dtype < DTYPE_COUNT ? dtype_rows[scheme->scale_dtype].name : "unknown");
    }
    return check_groups(name, scheme, rows, cols);
}

static void set_groups(struct qtensor *q)
{
    struct qscheme *s = &q->scheme;

    const struct qtensor_scaling *scaling = qtensor_scaling(s->kind);

    s->group_rows = s->group_rows > 0 ? s->group_rows : 1;
    if (scaling != NULL && scaling->flat) {
        q->row_groups = 1;
        q->groups = ceil_div(q->rows * q->cols, s->group_size);
        return;
    }
    switch (s->kind) {
    case QTENSOR_TABLE:
    case QTENSOR_BLOCKS:
    case QTENSOR_DENSE:
        q->row_groups = q->groups = 0;
        break;
    default:
        q->row_groups = ceil_div(q->rows, s->group_rows);
        q->groups = ceil_div(q->cols, s->group_size);
    }
}

static int qtensor_add_part(struct qtensor_part *out, int count, const char *suffix, enum dtype dtype, int64_t rows,
                            int64_t cols, void *data)
{
    out[count] = (struct qtensor_part){suffix, dtype, rows, cols, data};
    return rows > 0 && cols > 0 ? count + 1 : count;
}

static int add_tables(const struct qtensor *q, struct qtensor_part *out, int count)
{
    const struct qscheme *s = &q->scheme;
    int64_t entries = (int64_t)1 << s->bits;

    switch (s->kind) {
    case QTENSOR_TABLE:
        return qtensor_add_part(out, count, "tables", DTYPE_F32, q->rows, entries, q->tables);
    case QTENSOR_CODEBOOKS:
        return qtensor_add_part(out, count, "tables", DTYPE_F32, s->codebooks * entries, s->group_rows * s->group_size,
                                q->tables);
    case QTENSOR_NF4:
        return qtensor_add_part(out, count, "tables", DTYPE_F32, 1,
                                s->nested ? ceil_div(q->groups, QTENSOR_NESTED_BLOCK) + 1 : 0, q->tables);
    case QTENSOR_DENSE:
        return qtensor_add_part(out, count, "tables", DTYPE_F32, q->rows, q->cols, q->tables);
    default:
        return count;
    }
}

int qtensor_parts(const struct qtensor *q, struct qtensor_part out[QTENSOR_PARTS_MAX])
{
    const struct qscheme *s = &q->scheme;
    bool coded = s->kind != QTENSOR_CODEBOOKS && s->kind != QTENSOR_DENSE;
    const struct qtensor_scaling *scaling = qtensor_scaling(s->kind);
    bool zeroed = scaling != NULL && (scaling->zeros || (scaling->flat && s->nested));
    int64_t width = s->kind == QTENSOR_BLOCKS ? ggml_row_bytes(s->block_type, q->cols)
                    : q->packed               ? pack_bytes(q->cols, s->bits)
                                              : q->cols;
    int64_t scales = s->kind == QTENSOR_CODEBOOKS ? 1 : q->groups;
    int count = qtensor_add_part(out, 0, "codes", DTYPE_U8, coded ? q->rows : 0, width, q->codes);

    count = qtensor_add_part(out, count, "entries", DTYPE_U16, s->kind == QTENSOR_CODEBOOKS ? q->row_groups : 0,
                             q->groups * s->codebooks, q->entries);
    count = qtensor_add_part(out, count, "scales", DTYPE_F32, q->row_groups, scales, q->scales);
    count = qtensor_add_part(out, count, "zeros", DTYPE_U8, zeroed ? q->row_groups : 0, q->groups, q->zeros);
    count = add_tables(q, out, count);
    count = qtensor_add_part(out, count, "index", DTYPE_I32, 1, q->index_count, q->index);
    return qtensor_add_part(out, count, "values", DTYPE_F32, s->kind == QTENSOR_TABLE ? 1 : 0, q->index_count,
                            q->values);
}

/* The member that holds a part. */
static void set_part(struct qtensor *q, const char *suffix, void *data)
{
    const struct {
        const char *suffix;
        void **slot;
    } slots[] = {{"codes", (void **)&q->codes},  {"entries", (void **)&q->entries}, {"scales", (void **)&q->scales},
                 {"zeros", (void **)&q->zeros},  {"tables", (void **)&q->tables},   {"index", (void **)&q->index},
                 {"values", (void **)&q->values}};

    for (size_t i = 0; i < sizeof(slots) / sizeof(slots[0]); i++) {
        if (strcmp(slots[i].suffix, suffix) == 0) {
            *slots[i].slot = data;
        }
    }
}

static bool holds_codes(const struct qtensor_part *part)
{
    return strcmp(part->suffix, "codes") == 0 || strcmp(part->suffix, "entries") == 0;
}

#define LARGE_BYTES ((size_t)4 << 20)

/* Zeroed. Codes of a large weight touch thousands of fresh pages, which large ones make hundreds of times fewer;
 * without them it is only slower. */
static void *qtensor_zeroed(size_t rows, size_t row_bytes)
{
    char *data = calloc(rows, row_bytes);
    size_t bytes = rows * row_bytes, page = (size_t)sysconf(_SC_PAGESIZE);

    if (data != NULL && bytes >= LARGE_BYTES) {
        size_t skip = (page - (uintptr_t)data % page) % page;
        (void)madvise(data + skip, (bytes - skip) / page * page, MADV_HUGEPAGE);
    }
    return data;
}

static int qtensor_allocate(struct qtensor *q, bool codes)
{
    struct qtensor_part parts[QTENSOR_PARTS_MAX];
    int count = qtensor_parts(q, parts);

    for (int i = 0; i < count; i++) {
        if (parts[i].data == NULL && (codes || !holds_codes(&parts[i]))) {
            void *data =
                qtensor_zeroed((size_t)parts[i].rows, (size_t)parts[i].cols * dtype_rows[parts[i].dtype].bytes);
            if (data == NULL) {
                return err_raise(ERR_HOST_OUT_OF_MEMORY, "%s: no memory for [%lld, %lld] %s", q->name,
                                 (long long)parts[i].rows, (long long)parts[i].cols, parts[i].suffix);
            }
            set_part(q, parts[i].suffix, data);
        }
    }
    return 0;
}

int qtensor_describe(const char *name, const struct qscheme *scheme, int64_t rows, int64_t cols, int64_t index_count,
                     struct qtensor *out)
{
    TRY(check_scheme(name, scheme, rows, cols));
    struct qtensor q = {.scheme = *scheme, .rows = rows, .cols = cols, .index_count = index_count};
    snprintf(q.name, sizeof(q.name), "%s", name);
    set_groups(&q);
    *out = q;
    return 0;
}

static int qtensor_new_parts(const char *name, const struct qscheme *scheme, int64_t rows, int64_t cols, bool codes,
                             struct qtensor *out)
{
    AUTO(qtensor) struct qtensor q = {0};

    TRY(qtensor_describe(name, scheme, rows, cols, 0, &q));
    TRY(qtensor_allocate(&q, codes));
    *out = qtensor_move(&q);
    return 0;
}

int qtensor_new(const char *name, const struct qscheme *scheme, int64_t rows, int64_t cols, struct qtensor *out)
{
    return qtensor_new_parts(name, scheme, rows, cols, true, out);
}

int qtensor_new_without_codes(const char *name, const struct qscheme *scheme, int64_t rows, int64_t cols,
                              struct qtensor *out)
{
    return qtensor_new_parts(name, scheme, rows, cols, false, out);
}

int qtensor_new_packed(const char *name, const struct qscheme *scheme, int64_t rows, int64_t cols, struct qtensor *out)
{
    AUTO(qtensor) struct qtensor q = {0};
    struct qtensor_part parts[QTENSOR_PARTS_MAX];

    TRY(qtensor_describe(name, scheme, rows, cols, 0, &q));
    (void)qtensor_parts(&q, parts);
    q.packed = qtensor_is_packed(&q, &parts[0]);
    TRY(qtensor_allocate(&q, true));
    *out = qtensor_move(&q);
    return 0;
}

int qtensor_allocate_codes(struct qtensor *q)
{
    return qtensor_allocate(q, true);
}

int qtensor_reserve_index(struct qtensor *q, int64_t count)
{
    if (count < 0 || count > q->rows * q->cols) {
        return err_raise(ERR_INTERNAL, "%s: an index of %lld positions", q->name, (long long)count);
    }
    q->index_count = count;
    return qtensor_allocate(q, q->codes != NULL || q->entries != NULL); /* not what was left out on purpose */
}

void qtensor_deinit(struct qtensor *q)
{
    free(q->codes);
    free(q->entries);
    free(q->scales);
    free(q->zeros);
    free(q->tables);
    free(q->index);
    free(q->values);
    *q = (struct qtensor){0};
}

struct qtensor qtensor_move(struct qtensor *from)
{
    struct qtensor moved = *from;

    *from = (struct qtensor){0};
    return moved;
}

double qtensor_bits_per_weight(const struct qtensor *q)
{
    const struct qscheme *s = &q->scheme;
    double weights = (double)q->rows * (double)q->cols, scale = 8.0 * dtype_rows[s->scale_dtype].bytes;
    double scales = (double)q->row_groups * (double)q->groups * scale / weights;
    double entries = (double)((int64_t)1 << s->bits);

    switch (s->kind) {
    case QTENSOR_INT:
        return s->bits + scales + (s->sym ? 0 : (double)q->row_groups * (double)q->groups * s->bits / weights);
    case QTENSOR_NF4: {
        double nested = 8 + 32.0 / QTENSOR_NESTED_BLOCK;
        return s->bits + (double)q->groups * (s->nested ? nested : 32.0) / weights;
    }
    case QTENSOR_TABLE: /* tables and outliers in half precision, a position in 32 bits */
        return s->bits + entries * scale / (double)q->cols + (double)q->index_count * (32 + scale) / weights;
    case QTENSOR_CODEBOOKS: {
        double group = (double)(s->group_rows * s->group_size);
        return s->codebooks * (s->bits / group + entries * group * scale / weights) +
               (double)q->row_groups * scale / weights;
    }
    case QTENSOR_BLOCKS:
        return 8.0 * (double)ggml_row_bytes(s->block_type, q->cols) / (double)q->cols;
    case QTENSOR_DENSE:
        return scale;
    default:
        return s->bits + scales + (q->tensor_scale != 0 ? 32.0 / weights : 0);
    }
}

struct gpu_tiles qtensor_tiles(const struct qscheme *scheme)
{
    bool flat = qtensor_scaling(scheme->kind)->flat;

    return (struct gpu_tiles){
        .element = qscheme_element(scheme), .rows = flat ? 1 : scheme->group_rows, .cols = scheme->group_size};
}
