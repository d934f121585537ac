/* Codebooks and tables on disk: the aqlm format to the byte, and dense checkpoints with their side file of tables. */

#include "models/safetensors.h"
#include "tests/unit/formats/checkpoint.h"
#include "tests/unit/formats/encode.h"
#include "tests/unit/json.h"

static struct model *tiny(void)
{
    return checkpoint_open(TEST_DATA, "tiny-llama");
}

static struct qscheme codebooks(int count, int bits, int64_t group)
{
    return (struct qscheme){.kind = QTENSOR_CODEBOOKS,
                            .bits = bits,
                            .group_size = group,
                            .group_rows = 1,
                            .codebooks = count,
                            .scale_dtype = DTYPE_F16};
}

static const void *item(const struct stored *stored, const char *suffix)
{
    int i = stored_find(stored, suffix);
    ck_assert_int_ge(i, 0);
    return stored->items[i].data;
}

/* The documented bytes: 200 of 8 bits is -56, 40000 of 16 bits is -25536, and 12 bits wrap at 4096. */
START_TEST(codes_wrap_at_their_bits)
{
    static const struct {
        int bits;
        uint16_t code;
        int stored;
    } cases[] = {{8, 200, -56},  {8, 127, 127},     {8, 128, -128},   {16, 40000, -25536}, {16, 32767, 32767},
                 {12, 4095, -1}, {12, 2048, -2048}, {12, 2047, 2047}, {5, 16, -16},        {1, 1, -1}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct qscheme scheme = codebooks(1, cases[i].bits, 4);
        struct stored stored;
        struct qtensor q;
        ck_assert_rc_ok(qtensor_new("m", &scheme, 1, 4, &q));
        q.entries[0] = cases[i].code;
        stored_encode(format_find("aqlm"), &q, &stored);
        const void *codes = item(&stored, ".codes");
        ck_assert_int_eq(cases[i].bits <= 8 ? *(const int8_t *)codes : *(const int16_t *)codes, cases[i].stored);
        stored_deinit(&stored);
        qtensor_deinit(&q);
    }
}
END_TEST

/* The survey's example: [.7, .2] = [.5, 0] + [.2, .2], in half precision, times a scale of 2. */
START_TEST(a_tensor_to_the_byte)
{
    static const uint16_t golden[] = {0, 0, 0x3800, 0, 0, 0, 0,      0,       /* .5 = 0x3800 */
                                      0, 0, 0,      0, 0, 0, 0x3266, 0x3266}; /* .2 = 0x3266 */
    const struct qscheme scheme = codebooks(2, 2, 2);
    struct stored stored;
    struct qtensor q;

    ck_assert_rc_ok(qtensor_new("m", &scheme, 2, 2, &q));
    q.tables[2] = 0.5f;
    q.tables[8 + 6] = q.tables[8 + 7] = dtype_round(0.2f, DTYPE_F16);
    q.entries[0] = 1;
    q.entries[1] = 3;
    q.scales[0] = 2.0f; /* the second row is all zero */
    stored_encode(format_find("aqlm"), &q, &stored);
    ck_assert_int_eq(stored.count, 3);
    ck_assert_int_eq(memcmp(item(&stored, ".codes"), (const int8_t[]){1, -1, 0, 0}, 4), 0);
    ck_assert_int_eq(memcmp(item(&stored, ".codebooks"), golden, sizeof(golden)), 0);
    ck_assert_int_eq(memcmp(item(&stored, ".scales"), (const uint16_t[]){0x4000, 0}, 4), 0);
    stored_deinit(&stored);
    q.tables[0] = 0.1f; /* not what half precision holds */
    uint16_t out[16];
    ck_assert_int_eq(format_find("aqlm")->encode(&q, 1, out), ERR_INTERNAL);
    qtensor_deinit(&q);
}
END_TEST

static int modules_of(const struct model *model, struct qscheme scheme, struct format_module **out)
{
    int count = checkpoint_modules(model, 4, -1, true, DTYPE_F16, out);
    for (int i = 0; i < count; i++) {
        (*out)[i].scheme = scheme;
        if (scheme.kind == QTENSOR_TABLE) {
            (*out)[i].scheme.group_size = (*out)[i].cols;
        }
    }
    return count;
}

START_TEST(config_names_what_is_left)
{
    struct model *model = tiny();
    struct format_module *modules;
    struct validation_errors errors = {0};
    int count = modules_of(model, codebooks(2, 8, 8), &modules);
    struct format_config config = {.modules = modules, .count = count, .model = model};

    ck_assert_rc_ok(format_check(format_find("aqlm"), &config, "", &errors));
    assert_json_take(format_find("aqlm")->config(&config),
                     "{'quant_method': 'aqlm', 'num_codebooks': 2, 'nbits_per_codebook': 8, 'in_group_size': 8,"
                     " 'out_group_size': 1, 'linear_weights_not_to_quantize': ['lm_head.weight', 'lm_head']}");
    config.count = count - 1;
    json_t *object = format_find("aqlm")->config(&config);
    const json_t *left = json_object_get(object, "linear_weights_not_to_quantize");
    ck_assert_uint_eq(json_array_size(left), 4);
    ck_assert_str_eq(json_string_value(json_array_get(left, 3)), modules[count - 1].name);
    json_decref(object);
    config.count = count;
    modules[3].scheme.codebooks = 4;
    ck_assert_int_eq(format_check(format_find("aqlm"), &config, "/output/format", &errors), ERR_INCOMPATIBLE_OPTIONS);
    ck_assert_ptr_nonnull(strstr(errors.items[0].hint, "formats that carry it: dense"));
    free(modules);
    model_close(model);
}
END_TEST

/* A model of tables, dense with its side file. */
struct export
{
    char dir[256], artifact[300];
    struct model *model;
    struct format_module *modules;
    struct qtensor items[64];
    int count;
};

static void export_open(struct export *e, struct qscheme scheme, int64_t outliers)
{
    char source[300], paths[8][320], hex[65];
    const char *files[8];
    json_t *list;

    scratch_make(e->dir);
    snprintf(source, sizeof(source), "%s/source", e->dir);
    snprintf(e->artifact, sizeof(e->artifact), "%s/artifact", e->dir);
    checkpoint_make(source);
    e->model = checkpoint_open(e->dir, "source");
    scheme.scale_dtype = format_find("dense")->scale_dtype(model_dtype(e->model));
    e->count = modules_of(e->model, scheme, &e->modules);
    for (int i = 0; i < e->count; i++) {
        struct qtensor *q = &e->items[i];
        uint32_t seed = (uint32_t)i + 1;
        ck_assert_rc_ok(
            qtensor_new(e->modules[i].name, &e->modules[i].scheme, e->modules[i].rows, e->modules[i].cols, q));
        for (int64_t k = 0; k < q->rows * q->cols; k++) {
            seed = seed * 1664525u + 1013904223u;
            q->codes[k] = (uint8_t)(seed >> 24 & ((1u << scheme.bits) - 1));
        }
        for (int64_t k = 0; k < q->rows << scheme.bits; k++) {
            seed = seed * 1664525u + 1013904223u;
            q->tables[k] = dtype_round((float)(seed >> 16) / 65536.0f - 0.5f, scheme.scale_dtype);
        }
        ck_assert_rc_ok(outliers > 0 ? qtensor_reserve_index(q, outliers) : 0);
        for (int64_t k = 0; k < outliers; k++) {
            q->index[k] = (int32_t)(k * 97 + i);
            q->values[k] = (float)(k + 8);
        }
    }
    for (int b = 0; b < e->count / LLAMA_MODULES; b++) {
        snprintf(paths[b], sizeof(paths[b]), "%s/block-%d", e->dir, b);
        files[b] = paths[b];
        ck_assert_rc_ok(qtensor_save(paths[b], &e->items[b * LLAMA_MODULES], LLAMA_MODULES, NULL, hex));
    }
    const struct format_export request = {
        .format = format_find("dense"),
        .config = {.modules = e->modules, .count = e->count, .model = e->model, .method = "kmeans"},
        .block_files = files,
        .block_count = e->count / LLAMA_MODULES,
        .directory = e->artifact};
    ck_assert_rc_ok(format_export(&request, &list));
    json_decref(list);
}

static void export_close(struct export *e)
{
    for (int i = 0; i < e->count; i++) {
        qtensor_deinit(&e->items[i]);
    }
    free(e->modules);
    model_close(e->model);
    scratch_remove(e->dir);
}

static struct safetensors *open_file(const struct export *e, const char *name)
{
    char path[400];
    struct safetensors *file;
    snprintf(path, sizeof(path), "%s/%s", e->artifact, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ck_assert_int_ge(fd, 0);
    ck_assert_rc_ok(safetensors_open_fd_take(fd, name, &file));
    return file;
}

/* Malloc'ed, of that type and number of elements. */
static void *read_tensor(const struct safetensors *file, const char *module, const char *suffix, enum dtype dtype,
                         int64_t count)
{
    char name[200];
    snprintf(name, sizeof(name), "%s%s", module, suffix);
    const struct safetensors_entry *entry = safetensors_find(file, name);
    ck_assert_msg(entry != NULL, "no %s", name);
    ck_assert_int_eq(entry->dtype, dtype);
    size_t size = (size_t)count * dtype_rows[dtype].bytes;
    ck_assert_uint_eq(entry->end - entry->begin, size);
    void *data = malloc(size);
    ck_assert_rc_ok(safetensors_read(file, entry, 0, data, size));
    return data;
}

static void check_module(const struct qtensor *q, const struct safetensors *dense, const struct safetensors *tables)
{
    int bits = q->scheme.bits;
    int64_t count = q->rows * q->cols, words = (q->cols * bits + 31) / 32;
    float *expected = malloc((size_t)count * sizeof(float));
    uint16_t *weight = read_tensor(dense, q->name, ".weight", DTYPE_BF16, count);
    float *lookup = read_tensor(tables, q->name, ".lookup_table", DTYPE_F32, q->rows << bits);
    uint32_t *packed = read_tensor(tables, q->name, ".qweight", DTYPE_I32, words * q->rows);
    float *sum = calloc((size_t)count, sizeof(float));

    qtensor_dequantize(q, expected);
    for (int64_t i = 0; i < count; i++) {
        sum[i] = lookup[(i / q->cols << bits) + decode_code(packed + i / q->cols, q->rows, i % q->cols * bits, bits)];
    }
    if (q->index_count > 0) {
        int32_t *rows = read_tensor(tables, q->name, ".rows", DTYPE_I32, q->rows + 1);
        int32_t *cols = read_tensor(tables, q->name, ".cols", DTYPE_I32, q->index_count);
        float *vals = read_tensor(tables, q->name, ".vals", DTYPE_F32, q->index_count);
        ck_assert(rows[0] == 0 && rows[q->rows] == q->index_count);
        for (int64_t n = 0; n < q->rows; n++) {
            for (int32_t i = rows[n]; i < rows[n + 1]; i++) {
                sum[n * q->cols + cols[i]] += vals[i];
            }
        }
        free(rows);
        free(cols);
        free(vals);
    }
    for (int64_t i = 0; i < count; i++) {
        if (dtype_bf16_to_f32(weight[i]) != expected[i] || fabsf(sum[i] - expected[i]) > 1e-6f * fabsf(expected[i])) {
            ck_abort_msg("%s: weight %lld is %g and %g, not %g", q->name, (long long)i,
                         (double)dtype_bf16_to_f32(weight[i]), (double)sum[i], (double)expected[i]);
        }
    }
    free(expected);
    free(weight);
    free(lookup);
    free(packed);
    free(sum);
}

START_TEST(tables_and_dense_weights_agree)
{
    static const int bits[] = {3, 4, 5};
    struct export e = {0};
    const struct qscheme scheme = {.kind = QTENSOR_TABLE, .bits = bits[_i], .per_channel = true};

    export_open(&e, scheme, _i == 1 ? 0 : 17);
    struct safetensors *dense = open_file(&e, "model.safetensors"), *tables = open_file(&e, "quantd-tables.bin");
    for (int i = 0; i < e.count; i++) {
        check_module(&e.items[i], dense, tables);
    }
    safetensors_close(dense);
    safetensors_close(tables);
    char path[400];
    snprintf(path, sizeof(path), "%s/config.json", e.artifact);
    json_t *config = json_load_file(path, 0, NULL);
    ck_assert_ptr_nonnull(config);
    ck_assert_ptr_null(json_object_get(config, "quantization_config"));
    json_decref(config);
    export_close(&e);
}
END_TEST

START_TEST(dense_refuses_what_its_type_cannot_hold)
{
    const struct qscheme scheme = {
        .kind = QTENSOR_INT, .bits = 8, .group_size = 4, .per_channel = true, .sym = true, .scale_dtype = DTYPE_F16};
    struct qtensor q;
    uint16_t out[4];

    ck_assert_rc_ok(qtensor_new("m", &scheme, 1, 4, &q));
    q.scales[0] = 600.0f;
    q.zeros[0] = 128;
    memset(q.codes, 255, 4);
    ck_assert_int_eq(format_find("dense")->encode(&q, 0, out), ERR_NON_FINITE_VALUE);
    q.scales[0] = 2.0f;
    ck_assert_rc_ok(format_find("dense")->encode(&q, 0, out));
    ck_assert(dtype_f16_to_f32(out[3]) == 254.0f);
    qtensor_deinit(&q);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("storage_tables");
    TCase *tcase = tcase_create("all");
    tcase_add_test(tcase, codes_wrap_at_their_bits);
    tcase_add_test(tcase, a_tensor_to_the_byte);
    tcase_add_test(tcase, config_names_what_is_left);
    tcase_add_loop_test(tcase, tables_and_dense_weights_agree, 0, 3);
    tcase_add_test(tcase, dense_refuses_what_its_type_cannot_hold);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
