/* What operations take for themselves is what gpu/scratch.h says, on one thread and on several. */

#include "gpu/scratch.h"
#include "tests/unit/gpu/support.h"

#include <stdio.h>

enum { ROWS = 300, COLS = 256, GROUP = 64, TOKENS = 192 };

struct operands {
    struct tensor w, h, o, u, codes, scale, zero, y, table, entries;
};

static const struct gpu_grid grid = {
    .bits = 4, .group_size = GROUP, .sym = true, .norm = 2.4, .max_shrink = 0.5, .steps = 4, .scale_dtype = DTYPE_F32};
static const struct gpu_codebook books = {.codebooks = 2, .bits = 5, .group_size = 8, .beam = 1};
static const struct gpu_attention heads = {
    .sequences = 1, .length = TOKENS, .heads = 4, .kv_heads = 4, .head_dim = 64, .scale = 0.125f};

static int run_factor(struct rig *rig, struct operands *o)
{
    const struct gpu_factor spec = {.damp_percent = 0.01};
    return rig->ops->factor(rig->stream, &o->u, &o->h, &spec);
}

static int run_sweep(struct rig *rig, struct operands *o)
{
    double loss;
    return rig->ops->sweep(rig->stream, &o->codes, &o->w, &o->u, &o->scale, &o->zero, NULL, 128, &grid, &loss);
}

static int run_descend(struct rig *rig, struct operands *o)
{
    const struct gpu_descend spec = {.passes = 1, .scales = true};
    double before, after;
    return rig->ops->descend(rig->stream, &o->codes, &o->scale, &o->zero, &o->w, &o->h, &grid, &spec, &before, &after);
}

static int run_descend_both(struct rig *rig, struct operands *o)
{
    const struct gpu_descend spec = {.passes = 1, .scales = true};
    double before, after;
    return rig->ops->descend_both(rig->stream, &o->codes, &o->scale, &o->zero, &o->w, &o->h, &o->o, &grid, &spec,
                                  &before, &after);
}

static int run_clip(struct rig *rig, struct operands *o)
{
    return rig->ops->clip(rig->stream, &o->scale, &o->zero, &o->w, &o->h, &grid);
}

static int run_solve(struct rig *rig, struct operands *o)
{
    return rig->ops->solve(rig->stream, &o->y, &o->w, &o->u, NULL);
}

static int run_output_error(struct rig *rig, struct operands *o)
{
    double error, signal;
    return rig->ops->output_error(rig->stream, &error, &signal, &o->w, &o->y, &o->h);
}

static int run_cluster(struct rig *rig, struct operands *o)
{
    const struct tensor table = tensor_2d(o->table.data, DTYPE_F32, ROWS, 16);
    return rig->ops->cluster_rows(rig->stream, &table, &o->codes, &o->w, NULL, NULL, 4, DTYPE_F32);
}

static int run_code_search(struct rig *rig, struct operands *o)
{
    const struct tensor table = tensor_2d(o->table.data, DTYPE_F32, 2 * 32, 8);
    double gain;
    return rig->ops->code_search(rig->stream, &o->entries, &o->y, NULL, &table, NULL, NULL, &books, &gain);
}

static int run_code_reduce(struct rig *rig, struct operands *o)
{
    const struct tensor table = tensor_2d(o->table.data, DTYPE_F32, 2 * 32, 8);
    return rig->ops->code_reduce(rig->stream, &table, &o->y, &o->entries, NULL, &books);
}

static int run_attention(struct rig *rig, struct operands *o)
{
    const struct tensor q = tensor_rows(&o->w, 0, TOKENS), out = tensor_rows(&o->y, 0, TOKENS);
    return rig->ops->attention(rig->stream, &out, &q, &q, &q, &heads);
}

static int64_t factor_bytes(int threads)
{
    return gpu_scratch_factor(threads, COLS);
}

static int64_t sweep_bytes(int threads)
{
    return gpu_scratch_sweep(threads, ROWS, COLS, GROUP);
}

static int64_t descend_bytes(int threads)
{
    return gpu_scratch_descend(threads, ROWS, COLS, GROUP);
}

static int64_t descend_both_bytes(int threads)
{
    return gpu_scratch_descend_both(threads, ROWS, COLS, GROUP);
}

static int64_t clip_bytes(int threads)
{
    return gpu_scratch_clip(threads, GROUP);
}

static int64_t solve_bytes(int threads)
{
    return gpu_scratch_solve(threads, COLS);
}

static int64_t output_error_bytes(int threads)
{
    return gpu_scratch_output_error(threads, ROWS, COLS);
}

static int64_t cluster_bytes(int threads)
{
    return gpu_scratch_cluster(threads, COLS, 4);
}

static int64_t code_search_bytes(int threads)
{
    return gpu_scratch_code_search(threads, ROWS, COLS, 8, 2, 5);
}

static int64_t code_reduce_bytes(int threads)
{
    return gpu_scratch_code_reduce(threads, 8, 2, 5);
}

static int run_linear(struct rig *rig, struct operands *o)
{
    return rig->ops->linear(rig->stream, &o->o, &o->y, &o->w, NULL);
}

static int run_gram(struct rig *rig, struct operands *o)
{
    return rig->ops->gram(rig->stream, &o->h, &o->y);
}

static int64_t linear_bytes(int threads)
{
    return gpu_scratch_rounded_linear(threads, ROWS, ROWS, COLS);
}

static int64_t gram_bytes(int threads)
{
    return gpu_scratch_rounded_gram(threads, ROWS, COLS);
}

static int64_t attention_bytes(int threads)
{
    return gpu_scratch_attention(threads, TOKENS, TOKENS);
}

static const struct {
    const char *name;
    int (*run)(struct rig *rig, struct operands *o);
    int64_t (*bytes)(int threads);
    bool rounded; /* on a device that multiplies in BF16 */
} operations[] = {
    {"factor", run_factor, factor_bytes, false},
    {"sweep", run_sweep, sweep_bytes, false},
    {"descend", run_descend, descend_bytes, false},
    {"descend_both", run_descend_both, descend_both_bytes, false},
    {"clip", run_clip, clip_bytes, false},
    {"solve", run_solve, solve_bytes, false},
    {"output_error", run_output_error, output_error_bytes, false},
    {"cluster_rows", run_cluster, cluster_bytes, false},
    {"code_search", run_code_search, code_search_bytes, false},
    {"code_reduce", run_code_reduce, code_reduce_bytes, false},
    {"attention", run_attention, attention_bytes, false},
    {"linear in BF16", run_linear, linear_bytes, true},
    {"gram in BF16", run_gram, gram_bytes, true},
};

static void check_operation(size_t i, int threads)
{
    struct rig rig;
    int64_t before, after;
    if (gpu_cpu_products(operations[i].rounded ? "bfloat16" : "float32") != 0) {
        printf("SKIP %s: %s\n", operations[i].name, err_last()->message);
        return;
    }
    rig_open(&rig, threads);
    struct operands o = {.w = rig_random(&rig, ROWS, COLS, 1),
                         .h = rig_tensor(&rig, DTYPE_F32, COLS, COLS),
                         .o = rig_tensor(&rig, DTYPE_F32, ROWS, ROWS),
                         .u = rig_tensor(&rig, DTYPE_F32, COLS, COLS),
                         .codes = rig_tensor(&rig, DTYPE_U8, ROWS, COLS),
                         .scale = rig_random(&rig, ROWS, COLS / GROUP, 2),
                         .zero = rig_tensor(&rig, DTYPE_F32, ROWS, COLS / GROUP),
                         .y = rig_random(&rig, ROWS, COLS, 3),
                         .table = rig_random(&rig, ROWS, 16, 4),
                         .entries = rig_tensor(&rig, DTYPE_U16, ROWS, 2 * COLS / 8)};
    struct tensor *const all[] = {&o.w, &o.h, &o.o, &o.u, &o.codes, &o.scale, &o.zero, &o.y, &o.table, &o.entries};

    for (int64_t k = 0; k < COLS; k++) {
        floats(&o.h)[k * COLS + k] = floats(&o.u)[k * COLS + k] = 1;
    }
    ck_assert_rc_ok(rig.ops->memory_peak(rig.gpu.device, true, &before));
    ck_assert_rc_ok(rig.ops->memory_peak(rig.gpu.device, false, &before));
    ck_assert_rc_ok(operations[i].run(&rig, &o));
    ck_assert_rc_ok(rig.ops->memory_peak(rig.gpu.device, false, &after));
    int64_t took = after - before, said = operations[i].bytes(threads);
    ck_assert_msg(took >= said && took <= said + 128, "%s on %d threads takes %lld bytes, not %lld", operations[i].name,
                  threads, (long long)took, (long long)said);
    for (size_t k = 0; k < sizeof(all) / sizeof(all[0]); k++) {
        gpu_tensor_free(&rig.gpu, all[k]);
    }
    rig_close(&rig);
}

START_TEST(sizes_are_right)
{
    for (size_t i = 0; i < sizeof(operations) / sizeof(operations[0]); i++) {
        check_operation(i, 1);
        check_operation(i, 3);
        ck_assert_int_eq(operations[i].bytes(0), 0); /* elsewhere it is another backend's */
    }
}
END_TEST

UNIT_MAIN("gpu_scratch", sizes_are_right)
