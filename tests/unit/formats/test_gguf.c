/* GGUF files: what a reader of the format finds in them, and what is refused before any work. */

#include "formats/gguf.h"
#include "tests/unit/formats/checkpoint.h"
#include "tests/unit/formats/encode.h"
#include "tests/unit/json.h"

#include "gpu/ggml_blocks.h"

#include <dirent.h>
#include <math.h>

#define MIXED 0 /* for rig_init: a type for each role */

struct rig {
    char dir[256];
    struct model *model;
    struct format_module *modules;
    int count, blocks;
    int threads; /* of exports */
    char paths[8][320];
    const char *files[8];
};

static const int types[] = {GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_NL};
#define TYPES (int)(sizeof(types) / sizeof(types[0]))

static uint32_t seed_of(int module)
{
    return (uint32_t)module * 77u + 5u;
}

static void make_module(const struct rig *rig, int i, struct qtensor *q)
{
    const struct format_module *m = &rig->modules[i];

    qtensor_random(m->name, &m->scheme, m->rows, m->cols, seed_of(i), q);
}

/* source NULL: the checkpoint made on the spot (no tokenizer, tied head); bits 0: blocks of all types, by turns. */
static void rig_init(struct rig *rig, const char *source, int bits)
{
    char path[300], hex[65];

    *rig = (struct rig){0};
    scratch_make(rig->dir);
    if (source == NULL) {
        snprintf(path, sizeof(path), "%s/source", rig->dir);
        checkpoint_make(path);
    }
    rig->model = checkpoint_open(source == NULL ? rig->dir : TEST_DATA, source == NULL ? "source" : source);
    rig->count = checkpoint_modules(rig->model, bits == 0 ? 4 : bits, 32, true, DTYPE_F16, &rig->modules);
    for (int i = 0; bits == 0 && i < rig->count; i++) {
        rig->modules[i].scheme =
            (struct qscheme){.kind = QTENSOR_BLOCKS, .block_type = types[i % TYPES], .scale_dtype = DTYPE_F16};
    }
    rig->blocks = rig->count / LLAMA_MODULES;
    for (int b = 0; b < rig->blocks; b++) {
        struct qtensor items[LLAMA_MODULES];
        for (int i = 0; i < LLAMA_MODULES; i++) {
            make_module(rig, b * LLAMA_MODULES + i, &items[i]);
        }
        snprintf(rig->paths[b], sizeof(rig->paths[b]), "%s/block-%d", rig->dir, b);
        rig->files[b] = rig->paths[b];
        ck_assert_rc_ok(qtensor_save(rig->paths[b], items, LLAMA_MODULES, NULL, hex));
        for (int i = 0; i < LLAMA_MODULES; i++) {
            qtensor_deinit(&items[i]);
        }
    }
}

static void rig_deinit(struct rig *rig)
{
    free(rig->modules);
    model_close(rig->model);
    scratch_remove(rig->dir);
}

static struct format_config config_of(const struct rig *rig)
{
    return (struct format_config){.modules = rig->modules, .count = rig->count, .model = rig->model, .method = "ggml"};
}

static int export_to(const struct rig *rig, const char *folder, json_t **files)
{
    char directory[300];

    snprintf(directory, sizeof(directory), "%s/%s", rig->dir, folder);
    const struct format_export request = {.format = &format_gguf,
                                          .config = config_of(rig),
                                          .block_files = rig->files,
                                          .block_count = rig->blocks,
                                          .directory = directory,
                                          .threads = rig->threads};
    return format_export(&request, files);
}

static void read_back(const struct rig *rig, const char *folder, struct gguf_file *file)
{
    char path[320], *data;
    size_t size;

    snprintf(path, sizeof(path), "%s/%s/model.gguf", rig->dir, folder);
    ck_assert_rc_ok(fs_read_file(path, (size_t)1 << 26, &data, &size));
    gguf_read((unsigned char *)data, size, file);
}

/* Row of the file that holds a checkpoint's row n: h d + 2 i + j from h d + j d/2 + i, as
 * llama.cpp's converter turns q and k. */
static int64_t turned(int64_t n, int64_t d)
{
    return n / d * d + 2 * (n % d % (d / 2)) + n % d / (d / 2);
}

static void check_module(const struct rig *rig, const struct gguf_file *file, int i)
{
    static const char *const names[LLAMA_MODULES] = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                                     "ffn_gate", "ffn_up", "ffn_down"};
    const struct format_module *m = &rig->modules[i];
    struct qtensor q;
    char name[64];

    snprintf(name, sizeof(name), "blk.%d.%s.weight", i / LLAMA_MODULES, names[i % LLAMA_MODULES]);
    const struct gguf_info *info = gguf_find_tensor(file, name);
    ck_assert_msg(info != NULL, "no tensor %s", name);
    ck_assert(info->rank == 2 && info->dims[0] == (uint64_t)m->cols && info->dims[1] == (uint64_t)m->rows);
    int at = gguf_block_at((int)info->type);
    int64_t bytes = m->cols / gguf_blocks[at].elements * gguf_blocks[at].bytes;
    ck_assert_uint_le(file->start + info->offset + (uint64_t)(m->rows * bytes), file->size);
    make_module(rig, i, &q);
    float *expected = malloc((size_t)(m->rows * m->cols) * sizeof(float)),
          *row = malloc((size_t)m->cols * sizeof(float));
    qtensor_dequantize(&q, expected);
    for (int64_t n = 0; n < m->rows; n++) {
        int64_t to = i % LLAMA_MODULES <= LLAMA_K ? turned(n, model_config(rig->model)->head_dim) : n;
        gguf_decode((int)info->type, file->data + file->start + info->offset + to * bytes, m->cols, row);
        if (memcmp(row, expected + n * m->cols, (size_t)m->cols * sizeof(float)) != 0) {
            ck_abort_msg("%s: row %lld differs", name, (long long)n);
        }
    }
    free(row);
    free(expected);
    qtensor_deinit(&q);
}

/* A float tensor of the source, as it is or widened. */
static void check_float(const struct rig *rig, const struct gguf_file *file, const char *name, const char *source)
{
    const struct gguf_info *info = gguf_find_tensor(file, name);
    const struct model_tensor tensor = model_find(rig->model, source);
    size_t count = (size_t)(info->dims[0] * info->dims[1]);
    uint16_t *stored = malloc(count * 2);

    ck_assert_uint_eq(info->type, info->rank == 1 ? GGML_TYPE_F32 : GGML_TYPE_BF16);
    ck_assert_rc_ok(safetensors_read(tensor.file, tensor.entry, 0, stored, count * 2));
    const unsigned char *data = file->data + file->start + info->offset;
    for (size_t i = 0; i < count; i++) {
        float wide = dtype_bf16_to_f32(stored[i]);
        if (info->rank == 1 ? memcmp(data + 4 * i, &wide, 4) != 0 : memcmp(data + 2 * i, &stored[i], 2) != 0) {
            ck_abort_msg("%s: element %zu differs", name, i);
        }
    }
    free(stored);
}

/* Tensors lie one after the other, and what is between them is zero. */
static void check_layout(const struct gguf_file *file)
{
    uint64_t at = 0;

    for (size_t t = 0; t < file->tensor_count; t++) {
        const struct gguf_info *info = &file->tensors[t];
        uint64_t elements = info->dims[0] * info->dims[1], bytes = elements * 4;
        ck_assert_uint_eq(info->offset, at);
        if (info->type != GGML_TYPE_F32) {
            int b = info->type == GGML_TYPE_BF16 ? 0 : gguf_block_at((int)info->type);
            bytes = info->type == GGML_TYPE_BF16
                        ? elements * 2
                        : elements / (uint64_t)gguf_blocks[b].elements * (uint64_t)gguf_blocks[b].bytes;
        }
        for (at += bytes; at % 32 != 0; at++) {
            ck_assert_uint_eq(file->data[file->start + at], 0);
        }
    }
    ck_assert_uint_eq(file->start + at, file->size);
    for (size_t i = file->at; i < file->start; i++) {
        ck_assert_uint_eq(file->data[i], 0);
    }
}

/* Blocks of all types, with the tokenizer of a trained checkpoint. */
START_TEST(blocks_and_tokenizer)
{
    struct gguf_file file;
    struct rig rig;
    json_t *files;

    rig_init(&rig, "tiny-llama", MIXED);
    ck_assert_rc_ok(export_to(&rig, "out", &files));
    ck_assert_uint_eq(json_array_size(files), 2); /* and the manifest: no config.json of another loader's */
    ck_assert_str_eq(text_at(json_array_get(files, 0), "path"), "model.gguf");
    json_decref(files);
    read_back(&rig, "out", &file);
    for (int i = 0; i < rig.count; i++) {
        check_module(&rig, &file, i);
    }
    check_float(&rig, &file, "token_embd.weight", "model.embed_tokens.weight");
    check_float(&rig, &file, "output.weight", "lm_head.weight");
    check_float(&rig, &file, "blk.3.ffn_norm.weight", "model.layers.3.post_attention_layernorm.weight");
    check_layout(&file);
    ck_assert_gguf_text(&file, "general.architecture", "llama");
    ck_assert_gguf_text(&file, "tokenizer.ggml.model", "gpt2");
    ck_assert_gguf_text(&file, "tokenizer.ggml.pre", "gpt-2");
    ck_assert_gguf_number(&file, "llama.block_count", 4);
    ck_assert_gguf_number(&file, "llama.attention.head_count_kv", 2);
    ck_assert_gguf_number(&file, "llama.rope.dimension_count", 64);
    ck_assert_gguf_number(&file, "tokenizer.ggml.eos_token_id", 0);
    ck_assert_gguf_number(&file, "tokenizer.ggml.add_bos_token", 0);
    int tokens = gguf_find_key(&file, "tokenizer.ggml.tokens"),
        kinds = gguf_find_key(&file, "tokenizer.ggml.token_type");
    ck_assert(tokens >= 0 && file.keys[tokens].element == 8 && file.keys[tokens].count == 2048);
    ck_assert(kinds >= 0 && file.keys[kinds].element == 5 && file.keys[kinds].count == 2048);
    ck_assert_mem_eq(file.keys[tokens].value, "\x0d\0\0\0\0\0\0\0<|endoftext|>\x07\0\0\0\0\0\0\0<|pad|>", 36);
    ck_assert_mem_eq(file.keys[kinds].value, "\3\0\0\0\3\0\0\0\1\0\0\0", 12);
    free(file.data);
    rig_deinit(&rig);
}
END_TEST

/* Integers become blocks that stand for the same weights; twice the same bytes. */
START_TEST(integers_twice)
{
    struct gguf_file first, second;
    struct rig rig;
    json_t *files;

    rig_init(&rig, NULL, _i);
    rig.threads = 1;
    ck_assert_rc_ok(export_to(&rig, "a", &files));
    json_decref(files);
    rig.threads = 4;
    ck_assert_rc_ok(export_to(&rig, "b", &files));
    json_decref(files);
    read_back(&rig, "a", &first);
    read_back(&rig, "b", &second);
    ck_assert_uint_eq(first.size, second.size);
    ck_assert_int_eq(memcmp(first.data, second.data, first.size), 0);
    for (int i = 0; i < rig.count; i++) {
        check_module(&rig, &first, i);
    }
    check_layout(&first);
    ck_assert_ptr_null(gguf_find_tensor(&first, "output.weight")); /* tied */
    ck_assert_gguf_text(&first, "tokenizer.ggml.model", "no_vocab");
    ck_assert_gguf_number(&first, "general.file_type", _i == 4 ? 2 : 7);
    free(first.data);
    free(second.data);
    rig_deinit(&rig);
}
END_TEST

START_TEST(what_cannot_be_said_is_refused)
{
    const struct qscheme base = {
        .kind = QTENSOR_INT, .bits = 4, .group_size = 32, .sym = true, .scale_dtype = DTYPE_F16};
    struct qscheme s[8];
    for (int i = 0; i < 8; i++) {
        s[i] = base;
    }
    s[1].group_size = 64;
    s[2].sym = false;
    s[3].bits = 3;
    s[4].input.element = DTYPE_I8;
    s[5].kind = QTENSOR_NF4;
    s[6] = (struct qscheme){.kind = QTENSOR_BLOCKS, .block_type = GGML_TYPE_Q4_K, .scale_dtype = DTYPE_F16};
    s[7] = (struct qscheme){.kind = QTENSOR_BLOCKS, .block_type = 99, .scale_dtype = DTYPE_F16};

    ck_assert_rc_ok(format_gguf.accepts(&s[0], 8, 96));
    for (int i = 1; i < 8; i++) {
        ck_assert_int_eq(format_gguf.accepts(&s[i], 8, 96), ERR_INCOMPATIBLE_OPTIONS);
        ck_assert_uint_gt(strlen(err_last()->hint), 0);
    }
    ck_assert_rc_ok(format_gguf.accepts(&s[6], 8, 256));
}
END_TEST

/* Against the definition in the config's own terms, for every frequency. */
START_TEST(rotary_factors)
{
    struct model_config config = {.head_dim = 64,
                                  .ropes = {{.type = ROPE_LLAMA3,
                                             .dims = 64,
                                             .theta = 500000,
                                             .factor = 8,
                                             .low_freq = 1,
                                             .high_freq = 4,
                                             .original_max = 8192}}};
    float factors[32], cosine[64], sine[64];

    gguf_rope_factors(&config, factors);
    rope_tables(&config.ropes[0], 2, cosine, sine);
    for (int i = 0; i < 32; i++) {
        double frequency = pow(config.ropes[0].theta, -2.0 * i / 64) / (double)factors[i];
        ck_assert_double_le(fabs(sin(frequency) - (double)sine[32 + i]), 1e-6);
    }
    ck_assert(factors[0] == 1.0f && factors[31] == 8.0f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gguf");
    TCase *tcase = tcase_create("all");

    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, blocks_and_tokenizer);
    tcase_add_test(tcase, what_cannot_be_said_is_refused);
    tcase_add_test(tcase, rotary_factors);
    tcase_add_loop_test(tcase, integers_twice, 4, 5);
    tcase_add_loop_test(tcase, integers_twice, 8, 9);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
