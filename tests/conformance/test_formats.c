/* What formats/format.h promises of every artifact format, over every row of the registry: a result that is accepted
 * comes back from an independent reader exactly; one that is not is refused with the reason and with the formats that
 * can. */

#include "tests/unit/formats/checkpoint.h"
#include "tests/unit/formats/encode.h"

static const int64_t groups[] = {-1, 32, 64, 128};
static const struct {
    int64_t rows, cols;
} shapes[] = {{64, 128}, {40, 256}, {7, 33}, {1, 1}, {96, 384}};
static const enum dtype models[] = {DTYPE_BF16, DTYPE_F16, DTYPE_F32};

#define COUNT(list) (sizeof(list) / sizeof((list)[0]))

static void check_refusal(void)
{
    ck_assert_int_eq(err_last()->code, ERR_INCOMPATIBLE_OPTIONS);
    ck_assert_uint_gt(strlen(err_last()->message), 20);
}

/* 1 when the format takes it. */
static int round_trip(const struct format *format, const struct qscheme *scheme, int64_t rows, int64_t cols)
{
    struct qtensor q;

    if (format->accepts(scheme, rows, cols) != 0) {
        check_refusal();
        return 0;
    }
    qtensor_random("module", scheme, rows, cols, (uint32_t)(rows * 131 + cols + scheme->bits), &q);
    float *w = encode_and_decode(format, &q);
    assert_close_weights(format, w, &q);
    free(w);
    qtensor_deinit(&q);
    return 1;
}

/* Schemes other than a plain integer grid. group_size 0: all inputs; group_rows -1: all rows. */
static const struct qscheme others[] = {
    {.kind = QTENSOR_INT, .bits = 8, .per_channel = true, .sym = true, .input = {DTYPE_I8, true, 0, 0}},
    {.kind = QTENSOR_INT, .bits = 8, .per_channel = true, .sym = true, .input = {DTYPE_I8, false, 0, 0}},
    {.kind = QTENSOR_INT,
     .bits = 8,
     .per_channel = true,
     .sym = true,
     .input = {DTYPE_I8, true, 0, 0},
     .input_threshold = 6},
    {.kind = QTENSOR_INT, .bits = 4, .group_size = 32, .sym = true, .input = {DTYPE_I8, true, 0, 0}},
    {.kind = QTENSOR_FLOAT8, .bits = 8, .per_channel = true, .group_rows = 1, .element = DTYPE_F8_E4M3},
    {.kind = QTENSOR_FLOAT8, .bits = 8, .per_channel = true, .group_rows = -1, .element = DTYPE_F8_E4M3},
    {.kind = QTENSOR_FLOAT8, .bits = 8, .group_size = 32, .group_rows = 32, .element = DTYPE_F8_E4M3},
    {.kind = QTENSOR_FLOAT8, .bits = 8, .per_channel = true, .group_rows = 1, .element = DTYPE_F8_E5M2},
    {.kind = QTENSOR_FLOAT8,
     .bits = 8,
     .per_channel = true,
     .group_rows = 1,
     .element = DTYPE_F8_E4M3,
     .input = {DTYPE_F8_E4M3, true, 0, 0}},
    {.kind = QTENSOR_FLOAT8,
     .bits = 8,
     .per_channel = true,
     .group_rows = -1,
     .element = DTYPE_F8_E4M3,
     .input = {DTYPE_F8_E4M3, false, 0, 0}},
    {.kind = QTENSOR_FLOAT8,
     .bits = 8,
     .group_size = 32,
     .group_rows = 32,
     .element = DTYPE_F8_E4M3,
     .input = {DTYPE_F8_E4M3, true, 32, 0}},
    {.kind = QTENSOR_NF4, .bits = 4, .group_size = 64},
    {.kind = QTENSOR_NF4, .bits = 4, .group_size = 64, .nested = true},
    {.kind = QTENSOR_NF4, .bits = 4, .group_size = 4096, .nested = true},
    {.kind = QTENSOR_NF4, .bits = 4, .group_size = 48},
    {.kind = QTENSOR_CODEBOOKS, .bits = 8, .group_size = 8, .group_rows = 1, .codebooks = 2},
    {.kind = QTENSOR_CODEBOOKS, .bits = 12, .group_size = 8, .group_rows = 1, .codebooks = 1},
    {.kind = QTENSOR_BLOCKS, .block_type = 2}, /* Q4_0, Q8_0, Q4_K, Q6_K, IQ4_NL */
    {.kind = QTENSOR_BLOCKS, .block_type = 8},
    {.kind = QTENSOR_BLOCKS, .block_type = 12},
    {.kind = QTENSOR_BLOCKS, .block_type = 14},
    {.kind = QTENSOR_BLOCKS, .block_type = 20},
};

static int round_trip_others(const struct format *format)
{
    int taken = 0;

    for (size_t i = 0; i < COUNT(others) * COUNT(shapes) * COUNT(models); i++) {
        struct qscheme scheme = others[i % COUNT(others)];
        int64_t rows = shapes[i / COUNT(others) % COUNT(shapes)].rows;
        int64_t cols = shapes[i / COUNT(others) % COUNT(shapes)].cols;
        struct qtensor shape;
        scheme.group_size = scheme.group_size == 0 ? cols : scheme.group_size;
        scheme.group_rows = scheme.group_rows < 0 ? rows : scheme.group_rows;
        scheme.weight_dtype = models[i / COUNT(others) / COUNT(shapes)];
        scheme.scale_dtype = format->scale_dtype(scheme.weight_dtype);
        if (qtensor_describe("module", &scheme, rows, cols, 0, &shape) == 0) { /* else no method makes it */
            taken += round_trip(format, &scheme, rows, cols);
        }
    }
    return taken;
}

START_TEST(what_is_accepted_comes_back)
{
    for (const struct format *const *row = format_list(); *row != NULL; row++) {
        int taken = 0;
        for (int bits = 1; bits <= 9; bits++) {
            for (size_t i = 0; i < COUNT(groups) * COUNT(shapes) * COUNT(models) * 2; i++) {
                int64_t group = groups[i % COUNT(groups)];
                size_t shape = i / COUNT(groups) % COUNT(shapes);
                int64_t cols = shapes[shape].cols;
                if (bits == 1 || bits == 9 || (group > 0 && cols % group != 0)) {
                    const struct qscheme absurd = {.bits = bits, .group_size = group, .sym = true};
                    ck_assert_int_lt((*row)->accepts(&absurd, shapes[shape].rows, cols), 0);
                    check_refusal();
                    continue;
                }
                const struct qscheme scheme = {
                    .bits = bits,
                    .group_size = group < 0 ? cols : group,
                    .per_channel = group < 0,
                    .sym = i / COUNT(groups) / COUNT(shapes) % 2 == 0,
                    .scale_dtype = (*row)->scale_dtype(models[i / COUNT(groups) / COUNT(shapes) / 2]),
                };
                taken += round_trip(*row, &scheme, shapes[shape].rows, cols);
            }
        }
        taken += round_trip_others(*row);
        ck_assert_int_ge(taken, 12);
    }
}
END_TEST

START_TEST(rows_say_what_they_are)
{
    for (const struct format *const *row = format_list(); *row != NULL; row++) {
        ck_assert_ptr_eq(format_find((*row)->name), *row);
        ck_assert_uint_gt(strlen((*row)->title), 0);
        ck_assert_uint_gt(strlen((*row)->help), 20);
        ck_assert(decoder_of((*row)->name) != NULL);
    }
}
END_TEST

/* Complete models of one geometry: the answer of format_check, its error and the formats that it names. */
START_TEST(refusals_name_who_can)
{
    struct model *model = checkpoint_open(TEST_DATA, "tiny-llama");

    for (int bits = 2; bits <= 8; bits++) {
        for (int sym = 0; sym < 2; sym++) {
            struct format_module *modules;
            int count = checkpoint_modules(model, bits, 128, sym, DTYPE_BF16, &modules), able = 0;
            const struct format_config config = {.modules = modules, .count = count, .model = model, .method = "rtn"};
            struct validation_errors errors[16] = {0};
            size_t rows = 0;
            for (; format_list()[rows] != NULL; rows++) {
                ck_assert_uint_lt(rows, COUNT(errors));
                int rc = format_check(format_list()[rows], &config, "/output/format", &errors[rows]);
                able += rc == 0;
                ck_assert(rc == 0 || rc == ERR_INCOMPATIBLE_OPTIONS);
                ck_assert((rc == 0) == (errors[rows].count == 0));
            }
            for (size_t i = 0; i < rows; i++) {
                for (size_t f = 0; f < errors[i].count; f++) {
                    const struct validation_error *error = &errors[i].items[f];
                    ck_assert_str_eq(error->param, "/output/format");
                    ck_assert((strstr(error->hint, "no format carries it") != NULL) == (able == 0));
                    for (size_t k = 0; k < rows; k++) { /* by its name as a word of the list */
                        const char *list = strstr(error->hint, "formats that carry it: ");
                        bool named = false;
                        char words[128];
                        snprintf(words, sizeof(words), "%s",
                                 list != NULL ? list + strlen("formats that carry it: ") : "");
                        for (char *save, *word = strtok_r(words, ", ", &save); word != NULL;
                             word = strtok_r(NULL, ", ", &save)) {
                            named = named || strcmp(word, format_list()[k]->name) == 0;
                        }
                        ck_assert(named == (errors[k].count == 0));
                    }
                }
                if (errors[i].count == 0) { /* what is accepted has a config that loaders find their way by */
                    json_t *object = format_list()[i]->config != NULL ? format_list()[i]->config(&config) : NULL;
                    ck_assert(object == NULL || json_is_string(json_object_get(object, "quant_method")));
                    json_decref(object);
                }
            }
            free(modules);
        }
    }
    model_close(model);
}
END_TEST

UNIT_MAIN("conformance_formats", what_is_accepted_comes_back, rows_say_what_they_are, refusals_name_who_can)
