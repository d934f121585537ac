/* GGUF version 3: one file with the model's keys, its tokenizer and its tensors, as llama.cpp reads it.
 *
 *   "GGUF" | u32 3 | u64 tensors | u64 keys | keys | infos: name, rank, dims (fastest first), type, offset | tensors
 *
 * The tensors begin, and each of them begins, at a multiple of 32 bytes. Quantized modules are GGUF blocks: those of
 * method ggml as they are, and integers whose groups are such blocks: 4 bits, symmetric, groups of 32 with F16 scales
 * are Q4_0 (w = d (u - 8)), 8 bits are Q8_0. Vectors are F32, other float tensors keep their type; a tied head is left
 * out. Everything a Hugging Face loader needs in addition to the weights is among the keys, so no config.json is
 * written. */

#include "formats/gguf.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"
#include "gpu/ggml_blocks.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GGUF_FILE "model.gguf"
#define GGUF_VERSION 3

int gguf_block_type(const struct qscheme *scheme)
{
    return scheme->kind == QTENSOR_BLOCKS ? scheme->block_type : scheme->bits == 4 ? GGML_TYPE_Q4_0 : GGML_TYPE_Q8_0;
}

static int gguf_accepts(const struct qscheme *scheme, int64_t rows, int64_t cols)
{
    if (scheme->input.element != DTYPE_F32) {
        return err_set_hint(err_raise(ERR_INCOMPATIBLE_OPTIONS, "gguf carries weights alone, not quantized inputs"),
                            "another output.format");
    }
    if (scheme->kind != QTENSOR_BLOCKS && scheme->kind != QTENSOR_INT) {
        return err_set_hint(err_raise(ERR_INCOMPATIBLE_OPTIONS, "gguf carries its own blocks and integers, not %s",
                                      qtensor_kind_names[scheme->kind]),
                            "method ggml");
    }
    if (scheme->kind == QTENSOR_INT && (!scheme->sym || scheme->group_size != 32 || scheme->group_rows > 1 ||
                                        (scheme->bits != 4 && scheme->bits != 8))) {
        return err_set_hint(err_raise(ERR_INCOMPATIBLE_OPTIONS,
                                      "gguf takes integers of 4 or 8 bits, symmetric, in groups of 32; not %d bits, "
                                      "%ssymmetric, in groups of %lld",
                                      scheme->bits, scheme->sym ? "" : "a", (long long)scheme->group_size),
                            "group_size 32, sym true and bits 4 or 8; or method ggml");
    }
    if (rows <= 0 || cols <= 0 || ggml_row_bytes(gguf_block_type(scheme), cols) == 0) {
        return err_set_hint(err_raise(ERR_INCOMPATIBLE_OPTIONS, "a [%lld, %lld] weight cannot be divided into blocks",
                                      (long long)rows, (long long)cols),
                            "a type with blocks of 32, or leave the module in float");
    }
    return 0;
}

/* The reasons that lie in the model. */
static int gguf_accepts_all(const struct format_config *config)
{
    const struct model_config *c = model_config(config->model);
    const json_t *cache = json_object_get(config->parameters, "kv_cache");
    AUTO(gguf_buffer) struct gguf_buffer buffer = {0};

    if (gguf_architecture(c) == NULL) {
        return err_raise(ERR_INCOMPATIBLE_OPTIONS, "gguf has no name here for a %.80s", c->arch->name);
    }
    if (model_extras(config->model)[0] != NULL) {
        return err_set_hint(err_raise(ERR_INCOMPATIBLE_OPTIONS,
                                      "gguf would leave out %.80s, which is not part of the "
                                      "language model",
                                      model_extras(config->model)[0]),
                            "another format, or a checkpoint of the language model alone");
    }
    if (c->ropes[0].type > ROPE_LLAMA3) {
        return err_raise(ERR_INCOMPATIBLE_OPTIONS, "gguf is written here for rope types default, linear and llama3");
    }
    if (cache != NULL && !json_is_null(cache)) {
        return err_set_hint(err_raise(ERR_INCOMPATIBLE_OPTIONS, "gguf carries no scales of a quantized cache"),
                            "format compressed-tensors, or no kv_cache");
    }
    return gguf_put_tokenizer(&buffer, config->model);
}

static int gguf_tensors(const struct qscheme *scheme, int64_t rows, int64_t cols,
                        struct format_tensor out[FORMAT_TENSORS_MAX])
{
    out[0] = (struct format_tensor){".weight", DTYPE_U8, 2, {rows, ggml_row_bytes(gguf_block_type(scheme), cols)}};
    return 1;
}

/* A group of integers as the block that stands for the same weights. */
static int gguf_encode_group(const struct qtensor *q, int64_t group, uint8_t *out)
{
    const uint8_t *codes = q->codes + group * 32;

    TRY(format_encode_scales(q->scales + group, 1, 1, DTYPE_F16, out));
    for (int j = 0; j < 32; j++) {
        if (q->scheme.bits == 8) {
            out[2 + j] = (uint8_t)(codes[j] - 128); /* modulo 256: the bits of the signed code */
        } else if (j < 16) {
            out[2 + j] = (uint8_t)(codes[j] | codes[j + 16] << 4);
        }
    }
    return 0;
}

static int gguf_encode(const struct qtensor *q, int index, void *out)
{
    int64_t block = q->scheme.bits == 8 ? 34 : 18;

    (void)index;
    if (q->scheme.kind == QTENSOR_BLOCKS) {
        memcpy(out, q->codes, (size_t)q->rows * (size_t)ggml_row_bytes(q->scheme.block_type, q->cols));
        return 0;
    }
    if (q->index_count > 0) {
        return err_raise(ERR_INCOMPATIBLE_OPTIONS, "gguf cannot store the outlier columns of %s", q->name);
    }
    for (int64_t group = 0; group < q->rows * q->groups; group++) {
        TRY(gguf_encode_group(q, group, (uint8_t *)out + group * block));
    }
    return 0;
}

/* One tensor of the file. */
struct entry {
    const struct export_piece *piece; /* NULL: the rotary factors */
    char name[GGUF_NAME_MAX];
    const struct plan_module *module; /* that it belongs to; NULL: none */
    int type;
    int64_t dims[2]; /* fastest first; dims[1] 0: a vector */
    uint64_t offset; /* of the data section */
    int64_t bytes;
};

struct writer {
    const struct format_export *request;
    const struct export_plan *plan;
    struct entry *entries;
    size_t count;
    const struct entry **of_piece; /* [plan.count]; NULL: not in the file */
    int fd;
    uint64_t data; /* where tensors begin */
};

static uint64_t gguf_align(uint64_t at)
{
    return (at + GGUF_ALIGNMENT - 1) / GGUF_ALIGNMENT * GGUF_ALIGNMENT;
}

static int gguf_type_of(enum dtype dtype)
{
    return dtype == DTYPE_F16 ? GGML_TYPE_F16 : dtype == DTYPE_BF16 ? GGML_TYPE_BF16 : GGML_TYPE_F32;
}

static int gguf_describe(const struct writer *writer, const struct export_piece *piece, struct entry *entry)
{
    const struct format_config *config = &writer->request->config;

    *entry = (struct entry){.piece = piece};
    TRY(gguf_tensor_name(config->model, piece->name, entry->name, &entry->module));
    if (piece->module >= 0) {
        const struct format_module *module = &config->modules[piece->module];
        entry->type = gguf_block_type(&module->scheme);
        entry->dims[0] = module->cols;
        entry->dims[1] = module->rows;
        entry->bytes = piece->bytes;
    } else {
        bool vector = piece->rank == 1;
        entry->type = vector ? GGML_TYPE_F32 : gguf_type_of(piece->dtype);
        entry->dims[0] = piece->shape[vector ? 0 : 1];
        entry->dims[1] = vector ? 0 : piece->shape[0];
        entry->bytes = vector ? piece->shape[0] * (int64_t)sizeof(float) : piece->bytes;
    }
    return 0;
}

static int gguf_list_entries(struct writer *writer)
{
    const struct export_plan *plan = writer->plan;
    const struct model_config *config = model_config(writer->request->config.model);
    uint64_t at = 0;

    TRY(mem_array(&writer->entries, plan->count + 1));
    TRY(mem_array(&writer->of_piece, plan->count));
    for (size_t i = 0; i < plan->count; i++) {
        if (!model_is_rotary_table(writer->request->config.model, plan->pieces[i].name)) { /* no GGUF file has one */
            writer->of_piece[i] = &writer->entries[writer->count];
            TRY(gguf_describe(writer, &plan->pieces[i], &writer->entries[writer->count++]));
        }
    }
    if (config->ropes[0].type == ROPE_LLAMA3) {
        int64_t half = config->head_dim / 2;
        writer->entries[writer->count++] = (struct entry){.name = "rope_freqs.weight",
                                                          .type = GGML_TYPE_F32,
                                                          .dims = {half, 0},
                                                          .bytes = half * (int64_t)sizeof(float)};
    }
    for (size_t i = 0; i < writer->count; i++) {
        writer->entries[i].offset = at;
        at = gguf_align(at + (uint64_t)writer->entries[i].bytes);
    }
    return 0;
}

static void gguf_put_infos(const struct writer *writer, struct gguf_buffer *buffer)
{
    for (size_t i = 0; i < writer->count; i++) {
        const struct entry *entry = &writer->entries[i];
        uint32_t rank = entry->dims[1] > 0 ? 2 : 1;
        gguf_put_string(buffer, entry->name, strlen(entry->name));
        gguf_put_u32(buffer, rank);
        for (uint32_t d = 0; d < rank; d++) {
            gguf_put_u64(buffer, (uint64_t)entry->dims[d]);
        }
        gguf_put_u32(buffer, (uint32_t)entry->type);
        gguf_put_u64(buffer, entry->offset);
    }
}

/* The head of the file; sets where tensors begin. */
static int gguf_write_head(struct writer *writer)
{
    AUTO(gguf_buffer) struct gguf_buffer keys = {0};
    AUTO(gguf_buffer) struct gguf_buffer head = {0};

    gguf_put_model(&keys, &writer->request->config);
    TRY(gguf_put_tokenizer(&keys, writer->request->config.model));
    gguf_put(&head, "GGUF", 4);
    gguf_put_u32(&head, GGUF_VERSION);
    gguf_put_u64(&head, writer->count);
    gguf_put_u64(&head, keys.pairs);
    gguf_put(&head, keys.data, keys.size);
    gguf_put_infos(writer, &head);
    if (keys.failed || head.failed) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the head of " GGUF_FILE);
    }
    writer->data = gguf_align(head.size);
    const struct entry *last = writer->count > 0 ? &writer->entries[writer->count - 1] : NULL;
    uint64_t end = writer->data + (last != NULL ? gguf_align(last->offset + (uint64_t)last->bytes) : 0);
    if (ftruncate(writer->fd, (off_t)end) != 0) { /* all padding is zero from here on */
        return err_raise_errno(errno, "cannot set the size of " GGUF_FILE);
    }
    return fs_pwrite_full(writer->fd, head.data, head.size, 0);
}

static int gguf_put_at(const struct writer *writer, const struct entry *entry, uint64_t at, const void *bytes,
                       size_t size)
{
    return fs_pwrite_full(writer->fd, bytes, size, (int64_t)(writer->data + entry->offset + at));
}

/* Bytes of a tensor's row, or of a vector's element. */
static uint64_t gguf_unit_of(const struct entry *entry)
{
    return (uint64_t)(entry->bytes / (entry->dims[1] > 0 ? entry->dims[1] : entry->dims[0]));
}

/* Rows, or parts of them, to where they belong. */
static int gguf_put_rows(const struct writer *writer, const struct entry *entry, uint64_t at,
                         const unsigned char *bytes, size_t size)
{
    const struct model_config *config = model_config(writer->request->config.model);
    uint64_t unit = gguf_unit_of(entry);

    for (size_t done = 0; done < size;) {
        uint64_t row = (at + done) / unit, within = (at + done) % unit;
        size_t part = unit - within < size - done ? (size_t)(unit - within) : size - done;
        uint64_t to = (uint64_t)gguf_row(config, entry->module, (int64_t)row) * unit + within;
        TRY(gguf_put_at(writer, entry, to, bytes + done, part));
        done += part;
    }
    return 0;
}

static int gguf_put_vector(const struct writer *writer, const struct entry *entry, uint64_t at, const void *bytes,
                           size_t size)
{
    enum dtype dtype = entry->piece->dtype;
    size_t width = dtype_rows[dtype].bytes, count = size / width;
    AUTO_FREE float *wide = NULL;

    TRY(mem_buffer(&wide, count));
    for (size_t i = 0; i < count; i++) {
        uint16_t half = dtype == DTYPE_F32 ? 0 : ((const uint16_t *)bytes)[i];
        wide[i] = dtype == DTYPE_F32    ? ((const float *)bytes)[i]
                  : dtype == DTYPE_BF16 ? dtype_bf16_to_f32(half)
                                        : dtype_f16_to_f32(half);
    }
    return gguf_put_rows(writer, entry, at / width * sizeof(*wide), (const unsigned char *)wide, count * sizeof(*wide));
}

static int gguf_write_at(void *data, const struct export_piece *piece, uint64_t at, const void *bytes, size_t size)
{
    const struct writer *writer = data;
    const struct entry *entry = writer->of_piece[piece - writer->plan->pieces];

    if (entry == NULL) {
        return 0;
    }
    if (entry->dims[1] == 0) {
        return gguf_put_vector(writer, entry, at, bytes, size);
    }
    return gguf_turns(model_config(writer->request->config.model), entry->module)
               ? gguf_put_rows(writer, entry, at, bytes, size)
               : gguf_put_at(writer, entry, at, bytes, size);
}

/* After all others, when there are any. */
static int gguf_put_rope_factors(const struct writer *writer)
{
    const struct entry *entry = writer->count > 0 ? &writer->entries[writer->count - 1] : NULL;
    AUTO_FREE float *factors = NULL;

    if (entry == NULL || entry->piece != NULL) {
        return 0;
    }
    TRY(mem_buffer(&factors, (size_t)entry->dims[0]));
    gguf_rope_factors(model_config(writer->request->config.model), factors);
    return gguf_put_at(writer, entry, 0, factors, (size_t)entry->bytes);
}

static int gguf_write_entries(struct writer *writer)
{
    AUTO(export_pool) struct export_pool *pool = NULL;
    AUTO_FREE struct export_unit *units = NULL;
    size_t count = 0;

    TRY(export_pool_new(writer->request, writer->plan, &pool));
    TRY(export_units_list(writer->plan, 0, writer->plan->count, &units, &count));
    TRY(gguf_put_rope_factors(writer));
    return export_pool_write(pool, units, count, gguf_write_at, writer);
}

static void gguf_writer_deinit(struct writer *writer)
{
    if (writer->fd >= 0) {
        close(writer->fd);
    }
    free(writer->entries);
    free(writer->of_piece);
}
CLEANUP_DEINIT(writer, struct writer, gguf_writer_deinit)

static int gguf_write(const struct format_export *request, const struct export_plan *plan)
{
    AUTO(writer) struct writer writer = {.request = request, .plan = plan, .fd = -1};
    char path[EXPORT_PATH_MAX];

    TRY(fs_path(path, sizeof(path), "%s/" GGUF_FILE, request->directory));
    TRY(gguf_list_entries(&writer));
    writer.fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (writer.fd < 0) {
        return err_raise_errno(errno, "cannot create %s", path);
    }
    TRY(gguf_write_head(&writer));
    TRY(gguf_write_entries(&writer));
    return fs_sync(writer.fd);
}

/* llama.cpp multiplies blocks by inputs in blocks of eight bits: of 256 with a single-precision scale where the
 * weight's have 256 (Q8_K), else of 32 with a half-precision one (Q8_0). */
static struct gpu_input gguf_runtime_input(const struct qscheme *scheme)
{
    int64_t elements = ggml_block_find(gguf_block_type(scheme))->elements;

    return (struct gpu_input){.element = DTYPE_I8, .dynamic = true, .group_size = elements, .half = elements == 32};
}

const struct format format_gguf = {
    .name = "gguf",
    .title = "GGUF",
    .help = "One model.gguf with tokenizer and settings inside, for llama.cpp and what is built on it. Carries method "
            "ggml, and integers of 4 or 8 bits that are symmetric in groups of 32. Attention windows are not in the "
            "file: a model with one gets its window as context length. Embeddings and head stay in float.",
    .scale_dtype = format_scale_f16,
    .accepts = gguf_accepts,
    .accepts_all = gguf_accepts_all,
    .runtime_input = gguf_runtime_input,
    .tensors = gguf_tensors,
    .encode = gguf_encode,
    .write = gguf_write,
};
