/* The table of runtimes: each fact as a result that is loaded or refused, with the condition and what would do;
 * versions; divisions over devices; and the rows themselves. */

#include "formats/runtimes.h"
#include "tests/unit/formats/checkpoint.h"

#include <string.h>

/* Every linear of the model in one form. */
static void make_form(struct format_module *modules, int count, enum runtime_form form, int64_t block)
{
    for (int i = 0; i < count; i++) {
        struct qscheme *s = &modules[i].scheme;
        bool blocks = form == RUNTIME_FP8_BLOCKS || form == RUNTIME_FP8_BLOCKS_INPUTS;
        if (form == RUNTIME_INT8_INPUTS || form == RUNTIME_INT8_OUTLIERS) {
            s->input = (struct gpu_input){.element = DTYPE_I8, .dynamic = true};
        } else if (form >= RUNTIME_FP8 && form <= RUNTIME_FP8_BLOCKS_INPUTS) {
            *s = (struct qscheme){.kind = QTENSOR_FLOAT8,
                                  .bits = 8,
                                  .element = DTYPE_F8_E4M3,
                                  .per_channel = !blocks,
                                  .group_rows = blocks ? block : 0,
                                  .group_size = blocks ? block : modules[i].cols,
                                  .scale_dtype = DTYPE_BF16};
            if (form == RUNTIME_FP8_INPUTS || form == RUNTIME_FP8_BLOCKS_INPUTS) {
                s->input = (struct gpu_input){
                    .element = DTYPE_F8_E4M3, .dynamic = true, .group_size = blocks ? (int)block : 0};
            }
        } else if (form == RUNTIME_NF4) {
            *s = (struct qscheme){.kind = QTENSOR_NF4, .bits = 4, .group_size = 64, .scale_dtype = DTYPE_F32};
        } else if (form == RUNTIME_GGML) {
            *s = (struct qscheme){.kind = QTENSOR_BLOCKS, .bits = 4, .block_type = 12};
        }
    }
}

struct fact {
    const char *target, *format;
    enum runtime_form form;
    int bits;
    int64_t group; /* or the side of a block */
    bool sym;
    const char *refusal, *hint; /* parts of them; NULL: it is loaded */
};

static const struct fact facts[] = {
    /* vLLM, compressed-tensors: 2 to 8 bits symmetric, 4 asymmetric; odd widths since they are known */
    {"vllm", "compressed-tensors", RUNTIME_INT, 4, 128, true, NULL, NULL},
    {"vllm", "compressed-tensors", RUNTIME_INT, 8, -1, true, NULL, NULL},
    {"vllm", "compressed-tensors", RUNTIME_INT, 3, 128, true, NULL, NULL},
    {"vllm", "compressed-tensors", RUNTIME_INT, 4, 32, false, NULL, NULL},
    {"vllm", "compressed-tensors", RUNTIME_INT, 8, 32, false, "asymmetric compressed-tensors", "sym true"},
    {"vllm", "compressed-tensors", RUNTIME_INT, 4, 16, true, "in groups of 16", "group_size: one of -1, 32, 64, 128"},
    {"vllm>=0.28", "compressed-tensors", RUNTIME_INT, 4, 128, true, NULL, NULL},
    {"vllm>=0.28", "compressed-tensors", RUNTIME_INT, 3, 128, true, "from 0.32 on", "vllm>=0.32"},
    {"vllm==0.32.0", "compressed-tensors", RUNTIME_INT, 3, 128, true, NULL, NULL},
    {"vllm", "compressed-tensors", RUNTIME_INT8_INPUTS, 8, -1, true, NULL, NULL},
    {"vllm", "compressed-tensors", RUNTIME_FP8, 8, -1, true, NULL, NULL},
    {"vllm", "compressed-tensors", RUNTIME_FP8_INPUTS, 8, -1, true, NULL, NULL},
    {"vllm", "compressed-tensors", RUNTIME_FP8_BLOCKS_INPUTS, 8, 128, true, NULL, NULL},
    {"vllm", "compressed-tensors", RUNTIME_FP8_BLOCKS_INPUTS, 8, 64, true, "in blocks of 64", "one of 128"},
    {"vllm", "compressed-tensors", RUNTIME_FP8_BLOCKS, 8, 128, true, "FP8 blocks without FP8 inputs",
     "FP8 blocks with"},
    /* vLLM, others */
    {"vllm", "gptq", RUNTIME_INT, 4, 128, true, NULL, NULL},
    {"vllm", "gptq", RUNTIME_INT, 8, 128, true, NULL, NULL},
    {"vllm", "gptq", RUNTIME_INT, 3, 128, true, "no kernel for 3-bit gptq",
     "bits: one of 4, 8; or output.format compressed-tensors"},
    {"vllm", "gptq", RUNTIME_INT, 2, 128, true, "no kernel for 2-bit gptq", "bits: one of 4, 8"},
    {"vllm", "gptq_v2", RUNTIME_INT, 4, 128, false, "4-bit asymmetric gptq_v2", "sym true"},
    {"vllm", "gptq_v2", RUNTIME_INT, 4, 128, true, NULL, NULL},
    {"vllm", "awq", RUNTIME_INT, 4, 128, false, NULL, NULL},
    {"vllm", "awq", RUNTIME_INT, 4, 64, true, NULL, NULL},
    {"vllm", "bitsandbytes", RUNTIME_NF4, 4, 64, true, NULL, NULL},
    {"vllm", "bitsandbytes", RUNTIME_INT8_OUTLIERS, 8, -1, true, NULL, NULL},
    {"vllm", "gguf", RUNTIME_GGML, 4, 0, true, "vllm does not load gguf", "output.format dense"},
    {"vllm", "dense", RUNTIME_INT, 3, 128, false, NULL, NULL},
    /* SGLang: 4 and 8 bits */
    {"sglang", "compressed-tensors", RUNTIME_INT, 4, 128, true, NULL, NULL},
    {"sglang", "compressed-tensors", RUNTIME_INT, 8, 128, true, NULL, NULL},
    {"sglang", "compressed-tensors", RUNTIME_INT, 3, 128, true, "no kernel for 3-bit", "bits: one of 4, 8"},
    {"sglang", "compressed-tensors", RUNTIME_INT8_INPUTS, 8, -1, true, NULL, NULL},
    {"sglang", "compressed-tensors", RUNTIME_FP8_INPUTS, 8, -1, true, NULL, NULL},
    {"sglang", "gptq", RUNTIME_INT, 4, 128, true, NULL, NULL},
    {"sglang", "gptq", RUNTIME_INT, 2, 128, true, "no kernel for 2-bit", "one of 4, 8"},
    {"sglang", "gptq_v2", RUNTIME_INT, 4, 128, true, "sglang does not load gptq_v2", "gptq"},
    {"sglang", "awq", RUNTIME_INT, 4, 128, false, NULL, NULL},
    {"sglang", "bitsandbytes", RUNTIME_NF4, 4, 64, true, NULL, NULL},
    /* transformers */
    {"transformers", "compressed-tensors", RUNTIME_INT, 3, 128, true, NULL, NULL},
    {"transformers>=5.19", "compressed-tensors", RUNTIME_INT, 3, 128, true, "from 5.24 on", "transformers>=5.24"},
    {"transformers>=5.19", "compressed-tensors", RUNTIME_INT, 2, 128, true, NULL, NULL},
    {"transformers", "compressed-tensors", RUNTIME_FP8_BLOCKS, 8, 64, true, NULL, NULL},
    {"transformers", "gptq_v2", RUNTIME_INT, 3, 128, false, NULL, NULL},
    {"transformers", "awq", RUNTIME_INT, 4, 128, false, NULL, NULL},
    {"transformers", "gguf", RUNTIME_GGML, 4, 0, true, NULL, NULL},
    /* llama.cpp: GGUF alone */
    {"llama.cpp", "gguf", RUNTIME_GGML, 4, 0, true, NULL, NULL},
    {"llama.cpp", "gguf", RUNTIME_INT, 4, 32, true, NULL, NULL},
    {"llama.cpp", "compressed-tensors", RUNTIME_INT, 4, 32, true, "does not load compressed-tensors",
     "output.format gguf"},
    {"llama.cpp", "dense", RUNTIME_INT, 4, 128, true, "does not load dense", ""},
    /* MLX: compressed-tensors as 4 bits in groups of 32, of DeepSeek V3 alone; awq; no g_idx */
    {"mlx", "compressed-tensors", RUNTIME_INT, 4, 128, true, "in groups of 128", "one of 32; or output.format awq"},
    {"mlx", "compressed-tensors", RUNTIME_INT, 8, 32, true, "no kernel for 8-bit", "one of 4"},
    {"mlx", "compressed-tensors", RUNTIME_INT, 4, 32, true, "of DeepseekV3ForCausalLM alone", "output.format awq"},
    {"mlx", "awq", RUNTIME_INT, 4, 128, false, NULL, NULL},
    {"mlx", "gptq", RUNTIME_INT, 4, 128, true, "mlx does not load gptq", "awq"},
    {"mlx", "dense", RUNTIME_INT, 4, 128, true, NULL, NULL},
};

START_TEST(facts_hold)
{
    struct model *model = checkpoint_open(TEST_DATA, "tiny-llama");

    for (size_t i = 0; i < sizeof(facts) / sizeof(facts[0]); i++) {
        const struct fact *f = &facts[i];
        struct format_module *modules;
        struct format_target target;
        struct runtime_refusal out[RUNTIME_REFUSALS_MAX];
        int count = checkpoint_modules(model, f->bits, f->group, f->sym, DTYPE_BF16, &modules);
        const struct format_config config = {.modules = modules, .count = count, .model = model, .method = "rtn"};
        make_form(modules, count, f->form, f->group);
        ck_assert_rc_ok(runtime_target_parse(f->target, &target));
        int refusals = runtime_check(format_find(f->format), &config, &target, 1, out);
        if (f->refusal == NULL) {
            ck_assert_msg(refusals == 0, "%zu: %s, %s: %s", i, f->target, f->format, out[0].text);
            ck_assert_ptr_nonnull(runtime_row_of(format_find(f->format), &config, &target));
        } else {
            ck_assert_msg(refusals > 0, "%zu: %s loads %s", i, f->target, f->format);
            ck_assert_msg(strstr(out[0].text, f->refusal) != NULL, "%zu: %s", i, out[0].text);
            ck_assert_msg(strstr(out[0].hint, f->hint) != NULL, "%zu: %s", i, out[0].hint);
        }
        free(modules);
    }
    model_close(model);
}
END_TEST

/* 4 heads, 2 of keys and values, 256 inputs of attention's output, 768 of down_proj's. */
START_TEST(devices)
{
    static const struct {
        const char *target, *format;
        int64_t group, devices;
        const char *refusal, *hint;
    } rows[] = {
        {"vllm", "compressed-tensors", 128, 2, NULL, NULL},
        {"vllm", "compressed-tensors", -1, 4, NULL, NULL},
        {"vllm", "compressed-tensors", 64, 4, NULL, NULL},
        {"vllm", "compressed-tensors", 128, 4, "64 of 256 inputs", "tensor_parallel_size 2, or a smaller group_size"},
        {"vllm", "compressed-tensors", 128, 3, "cannot divide 4 heads over 3", "tensor_parallel_size 2"},
        {"vllm", "compressed-tensors", 32, 8, "cannot divide 4 heads over 8", "tensor_parallel_size 4"},
        {"sglang", "compressed-tensors", 64, 4, "multiple of 128 inputs", "a smaller tensor_parallel_size"},
        {"transformers", "compressed-tensors", 128, 3, NULL, NULL},
    };
    struct model *model = checkpoint_open(TEST_DATA, "tiny-llama");

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct format_module *modules;
        struct format_target target;
        struct runtime_refusal out[RUNTIME_REFUSALS_MAX];
        int count = checkpoint_modules(model, 4, rows[i].group, true, DTYPE_BF16, &modules);
        const struct format_config config = {.modules = modules, .count = count, .model = model, .method = "rtn"};
        ck_assert_rc_ok(runtime_target_parse(rows[i].target, &target));
        int refusals = runtime_check(format_find(rows[i].format), &config, &target, rows[i].devices, out);
        ck_assert_msg((refusals > 0) == (rows[i].refusal != NULL), "%zu: %s", i, out[0].text);
        if (refusals > 0) {
            ck_assert_msg(strstr(out[0].text, rows[i].refusal) != NULL, "%zu: %s", i, out[0].text);
            ck_assert_msg(strstr(out[0].hint, rows[i].hint) != NULL, "%zu: %s", i, out[0].hint);
            ck_assert_int_eq(out[0].part == PART_PARALLEL, strcmp(rows[i].target, "sglang") != 0);
        }
        free(modules);
    }
    model_close(model);
}
END_TEST

/* The modules of Llama's layer: q, k, v, o, gate, up, down. */
START_TEST(cuts)
{
    struct model *model = checkpoint_open(TEST_DATA, "tiny-llama");
    const struct plan *plan = plans_layer(model_plans(model), 0);

    for (int i = 0; i < plan->module_count; i++) {
        const char *path = plan->modules[i].path;
        bool inner = strstr(path, "o_proj") != NULL || strstr(path, "down_proj") != NULL;
        ck_assert_msg(runtime_cut_of(plan, i) == (inner ? CUT_INPUTS : CUT_OUTPUTS), "%s", path);
    }
    model_close(model);
}
END_TEST

START_TEST(caches)
{
    static const struct {
        const char *target;
        struct cache_scheme cache;
        const char *refusal;
    } rows[] = {
        {"vllm", {DTYPE_F8_E4M3, false}, NULL},
        {"vllm", {DTYPE_F8_E4M3, true}, NULL},
        {"vllm", {DTYPE_I8, false}, "no kernel for scales of an INT8 cache"},
        {"sglang", {DTYPE_F8_E4M3, false}, NULL},
        {"sglang", {DTYPE_F8_E4M3, true}, "scales of each head"},
        {"transformers", {DTYPE_F8_E4M3, false}, "up to 5.20"},
        {"transformers==5.20.1", {DTYPE_F8_E4M3, false}, NULL},
        {"transformers==5.19", {DTYPE_I8, false}, NULL},
        {"transformers>=5.19", {DTYPE_I8, false}, "up to 5.20"},
        {"mlx", {DTYPE_F8_E4M3, false}, "no kernel for scales of an FP8 cache"},
    };
    struct model *model = checkpoint_open(TEST_DATA, "tiny-llama");

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct format_target target;
        struct runtime_refusal out[RUNTIME_REFUSALS_MAX];
        const struct format_config config = {.model = model, .method = "kv_cache", .cache = rows[i].cache};
        ck_assert_rc_ok(runtime_target_parse(rows[i].target, &target));
        int refusals = runtime_check(format_find("compressed-tensors"), &config, &target, 1, out);
        ck_assert_msg((refusals > 0) == (rows[i].refusal != NULL), "%zu: %s", i, out[0].text);
        ck_assert_msg(refusals == 0 || strstr(out[0].text, rows[i].refusal) != NULL, "%zu: %s", i, out[0].text);
    }
    model_close(model);
}
END_TEST

START_TEST(targets)
{
    static const struct {
        const char *text, *from;
        bool given, exact;
    } good[] = {
        {"vllm", "0.33.0", false, false},           {"vllm>=0.28", "0.28", true, false},
        {"vllm==0.33.0", "0.33.0", true, true},     {"llama.cpp>=b11549", "b11549", true, false},
        {"llama.cpp>=11600", "11600", true, false},
    };
    static const struct {
        const char *text, *hint;
    } bad[] = {
        {"vlm", "did you mean \"vllm\"?"}, {"vllm>0.28", "vllm>=0.26"},     {"vllm>=", "vllm>=0.26"},
        {"vllm>=new", "vllm>=0.26"},       {"vllm>=0.4.2", "vllm>=0.26"},   {"", "vllm, sglang"},
        {"vllm >=0.28", "vllm>=0.26"},     {"vllm>=0.28,<1", "vllm>=0.26"}, {"vllm>=99999999999", "vllm>=0.26"},
    };
    struct format_target target;

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        ck_assert_rc_ok(runtime_target_parse(good[i].text, &target));
        ck_assert_str_eq(target.from, good[i].from);
        ck_assert(target.given == good[i].given && target.exact == good[i].exact);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ck_assert_msg(runtime_target_parse(bad[i].text, &target) == ERR_INVALID_PARAMETER, "%s", bad[i].text);
        ck_assert_msg(strstr(err_last()->hint, bad[i].hint) != NULL, "%s: %s", bad[i].text, err_last()->hint);
    }
    ck_assert_rc_ok(runtime_target_parse("llama.cpp", &target));
    ck_assert_int_eq(runtime_only_group(&target, NULL), 32);
    ck_assert_rc_ok(runtime_target_parse("mlx", &target));
    ck_assert_int_eq(runtime_only_group(&target, "compressed-tensors"), 32);
    ck_assert_int_eq(runtime_only_group(&target, "awq"), 0);
    ck_assert_int_eq(runtime_only_group(&target, NULL), 0);
}
END_TEST

/* Every row names a runtime, a format and versions that are within what is known. */
START_TEST(rows_are_sound)
{
    int count = 0;

    for (const struct runtime_row *row = runtime_rows; row->runtime != NULL; row++, count++) {
        struct format_target target;
        char text[64];
        ck_assert_ptr_nonnull(runtime_find(row->runtime));
        ck_assert_ptr_nonnull(format_find(row->format));
        snprintf(text, sizeof(text), "%s>=%s", row->runtime, row->since);
        ck_assert_rc_ok(runtime_target_parse(text, &target)); /* not before the oldest */
        ck_assert(row->until != NULL || runtime_row_holds(row, &target));
        ck_assert_uint_gt(strlen(row->kernels), 10);
        ck_assert_msg(row->form != RUNTIME_INT || row->bits != 0, "%s, %s", row->runtime, row->format);
    }
    ck_assert_int_lt(count, RUNTIME_ROWS_MAX);
    json_t *table = runtime_table_json();
    ck_assert_uint_eq(json_array_size(table), 5);
    json_decref(table);
    for (const struct format *const *format = format_list(); *format != NULL; format++) {
        json_t *names = runtime_names((*format)->name);
        ck_assert_uint_gt(json_array_size(names), 0);
        json_decref(names);
    }
}
END_TEST

UNIT_MAIN("formats/runtimes", facts_hold, devices, cuts, caches, targets, rows_are_sound)
