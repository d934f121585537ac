/* Speed of the CPU operations against the peak measured in the same process: a product of 4096 cubed on all threads.
 *
 *   bench_ops [threads] [n ...]
 *
 * Products are those of QUANTD_CPU_PRODUCTS (float32, bfloat16 or auto; float32 where it is not set), and so is the
 * peak; that of bfloat16 is printed as well where the CPU has instructions for it.
 *
 * For each n: GFLOP/s and per cent of the peak, best of three, and the seconds of a complete 4-bit, group 128 solve of
 * an [n, n] layer (grid + factor + sweep). The search over grids is given in weights a second, the rounding of inputs
 * in values and that to GGUF blocks in weights a second of processor time: a core's rate, whatever else runs. */

#include "base/err.h"
#include "gpu/ggml_blocks.h"
#include "gpu/gpu.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define REPEATS 3
#define TOKENS 2048

struct bench {
    struct gpu gpu;
    struct gpu_stream *stream;
    int64_t n;
    double roof;                                                     /* GFLOP/s */
    struct tensor x, w, y, h, u, scale, zero, codes, work, grads[3]; /* grads: like x */
    struct gpu_grid grid;
    struct gpu_input input;
    struct gpu_blocks blocks;
    struct tensor *importance; /* of blocks; NULL: all alike */
    int32_t *order;
};

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void must(int rc)
{
    if (rc != 0) {
        fprintf(stderr, "bench: %s: %s\n", err_api_code(rc), err_last()->message);
        exit(EXIT_FAILURE);
    }
}

static struct tensor matrix(struct bench *bench, enum dtype dtype, int64_t rows, int64_t cols)
{
    struct tensor tensor;
    must(gpu_tensor_new(&bench->gpu, dtype, 2, (const int64_t[]){rows, cols}, &tensor));
    return tensor;
}

static void fill(struct tensor *tensor, uint32_t seed)
{
    float *data = tensor->data;
    for (int64_t i = 0; i < tensor_count(tensor); i++) {
        seed = seed * 1664525u + 1013904223u;
        data[i] = (float)(int32_t)seed * 0x1p-31f;
    }
}

static void run_linear(struct bench *bench)
{
    must(bench->gpu.ops->linear(bench->stream, &bench->y, &bench->x, &bench->w, NULL));
}

static struct gpu_attention attention_of(const struct bench *bench)
{
    return (struct gpu_attention){.sequences = 1,
                                  .length = TOKENS,
                                  .heads = bench->n / 128,
                                  .kv_heads = bench->n / 128,
                                  .head_dim = 128,
                                  .scale = 0.088f};
}

static void run_linear_grad(struct bench *bench)
{
    must(bench->gpu.ops->linear_grad(bench->stream, &bench->grads[0], &bench->y, &bench->w));
}

static void run_cross(struct bench *bench)
{
    must(bench->gpu.ops->cross(bench->stream, &bench->work, &bench->y, &bench->x));
}

static void run_attention_grad(struct bench *bench)
{
    struct gpu_attention spec = attention_of(bench);
    must(bench->gpu.ops->attention_grad(bench->stream, &bench->grads[0], &bench->grads[1], &bench->grads[2], NULL,
                                        &bench->y, &bench->x, &bench->x, &bench->x, &spec));
}

static void run_attention(struct bench *bench)
{
    struct gpu_attention spec = attention_of(bench);
    must(bench->gpu.ops->attention(bench->stream, &bench->y, &bench->x, &bench->x, &bench->x, &spec));
}

static void run_gram(struct bench *bench)
{
    must(bench->gpu.ops->gram(bench->stream, &bench->h, &bench->x));
}

static void run_factor(struct bench *bench)
{
    must(bench->gpu.ops->factor(bench->stream, &bench->u, &bench->h,
                                &(struct gpu_factor){.damp_percent = 0.01, .order = bench->order}));
}

static void run_grid(struct bench *bench)
{
    must(bench->gpu.ops->grid(bench->stream, &bench->scale, &bench->zero, &bench->w, NULL, &bench->grid));
}

static void run_copy(struct bench *bench)
{
    must(bench->gpu.ops->upload(bench->stream, bench->work.data, bench->w.data, tensor_bytes(&bench->w)));
}

static void run_sweep(struct bench *bench)
{
    double loss;
    must(bench->gpu.ops->sweep(bench->stream, &bench->codes, &bench->work, &bench->u, &bench->scale, &bench->zero,
                               bench->order, 128, &bench->grid, &loss));
}

static void run_sweep_again(struct bench *bench)
{
    run_grid(bench);
    run_copy(bench);
    run_sweep(bench);
}

/* What the sweep left, of its own weights as targets. */
static void run_descend(struct bench *bench)
{
    const struct gpu_descend spec = {.passes = 2, .scales = true};
    double before, after;
    must(bench->gpu.ops->descend(bench->stream, &bench->codes, &bench->scale, &bench->zero, &bench->w, &bench->h,
                                 &bench->grid, &spec, &before, &after));
}

static void run_output_error(struct bench *bench)
{
    double error, signal;
    must(bench->gpu.ops->output_error(bench->stream, &error, &signal, &bench->w, &bench->work, &bench->h));
}

static double best_of(struct bench *bench, void (*prepare)(struct bench *), void (*run)(struct bench *))
{
    double best = 1e300;
    for (int i = 0; i < REPEATS; i++) {
        if (prepare != NULL) {
            prepare(bench);
        }
        double start = now();
        run(bench);
        double seconds = now() - start;
        best = seconds < best ? seconds : best;
    }
    return best;
}

static void report(const struct bench *bench, const char *what, double seconds, double flops)
{
    double rate = flops / seconds * 1e-9;
    printf("  %-26s %9.4f s %8.1f GFLOP/s %6.1f %% of roof\n", what, seconds, rate, 100 * rate / bench->roof);
}

/* The peak is that of a product large enough for any blocking to pay: 4096 cubed, whatever n is. */
static void measure_roof(struct bench *bench)
{
    struct bench probe = *bench;
    probe.x = matrix(bench, DTYPE_F32, 4096, 4096);
    probe.w = matrix(bench, DTYPE_F32, 4096, 4096);
    probe.y = matrix(bench, DTYPE_F32, 4096, 4096);
    fill(&probe.x, 1);
    fill(&probe.w, 2);
    double seconds = best_of(&probe, NULL, run_linear);
    bench->roof = 2.0 * 4096 * 4096 * 4096 / seconds * 1e-9;
    printf("%s roof: %.1f GFLOP/s on %d threads, %s, %s\n", bench->gpu.info.products, bench->roof,
           bench->gpu.info.threads, bench->gpu.info.name, bench->gpu.info.detail);
    gpu_tensor_free(&bench->gpu, &probe.x);
    gpu_tensor_free(&bench->gpu, &probe.w);
    gpu_tensor_free(&bench->gpu, &probe.y);
}

static void bench_open(struct bench *bench, const char *products, int threads)
{
    must(gpu_cpu_products(products));
    must(gpu_open("cpu", threads, &bench->gpu));
    must(bench->gpu.ops->stream_new(bench->gpu.device, &bench->stream));
}

static void bench_close(struct bench *bench)
{
    bench->gpu.ops->stream_free(bench->stream);
    gpu_close(&bench->gpu);
}

/* In bfloat16, where it is not what is measured anyway. */
static void measure_other_roof(const char *products, int threads)
{
    struct bench bench = {0};

    if (strcmp(products, "float32") == 0 && gpu_cpu_products("bfloat16") == 0) {
        bench_open(&bench, "bfloat16", threads);
        measure_roof(&bench);
        bench_close(&bench);
    }
}

static void measure_grid(struct bench *bench, bool mse, double norm)
{
    char name[40];
    bench->grid.mse = mse;
    bench->grid.norm = norm;
    double seconds = best_of(bench, NULL, run_grid);
    snprintf(name, sizeof(name), mse ? "grid, search, norm %.1f" : "grid, min-max", norm);
    printf("  %-26s %9.4f s %8.1f M weights/s\n", name, seconds, (double)(bench->n * bench->n) / seconds * 1e-6);
}

/* Elements a second of processor time. */
static void measure_core(struct bench *bench, const char *name, void (*run)(struct bench *), int64_t elements)
{
    double best = 1e300;

    for (int i = 0; i < REPEATS; i++) {
        struct timespec start, end;
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &start);
        run(bench);
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
        double seconds = (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) * 1e-9;
        best = seconds < best ? seconds : best;
    }
    printf("  %-26s %9.4f s of a core %8.1f M/s\n", name, best, (double)elements / best * 1e-6);
}

static void run_input(struct bench *bench)
{
    must(bench->gpu.ops->quantize_input(bench->stream, &bench->y, &bench->x, NULL, &bench->input));
}

/* Into `work`, whose floats are larger than any block of them. */
static void run_blocks(struct bench *bench)
{
    const struct ggml_block *block = ggml_block_find(bench->blocks.type);
    struct tensor out =
        tensor_2d(bench->work.data, DTYPE_U8, bench->n, bench->n / block->elements * (int64_t)block->bytes);

    must(bench->gpu.ops->encode_blocks(bench->stream, &out, &bench->w, bench->importance, &bench->blocks));
}

static void measure_inputs(struct bench *bench)
{
    bench->input = (struct gpu_input){.element = DTYPE_I8, .dynamic = true};
    measure_core(bench, "inputs, int8 of a token", run_input, TOKENS * bench->n);
    bench->input = (struct gpu_input){.element = DTYPE_F8_E4M3, .dynamic = true, .group_size = 128};
    measure_core(bench, "inputs, e4m3 of 128", run_input, TOKENS * bench->n);
}

static void measure_blocks(struct bench *bench)
{
    static const struct {
        const char *name;
        int type;
    } types[] = {{"q4_k", GGML_TYPE_Q4_K}, {"q6_k", GGML_TYPE_Q6_K}, {"q8_0", GGML_TYPE_Q8_0}};
    struct tensor importance = tensor_1d(bench->x.data, DTYPE_F32, bench->n);
    char name[40];

    for (int64_t i = 0; i < bench->n; i++) {
        ((float *)importance.data)[i] *= ((float *)importance.data)[i];
    }
    for (size_t i = 0; bench->n % 256 == 0 && i < sizeof(types) / sizeof(types[0]); i++) {
        for (int kind = 0; kind < 3; kind++) {
            static const char *const kinds[] = {"extremes", "search", "search, importance"};
            bench->blocks = (struct gpu_blocks){.type = types[i].type, .search = kind > 0};
            bench->importance = kind == 2 ? &importance : NULL;
            snprintf(name, sizeof(name), "%s, %s", types[i].name, kinds[kind]);
            measure_core(bench, name, run_blocks, bench->n * bench->n);
        }
    }
}

static void measure(struct bench *bench)
{
    double n = (double)bench->n;

    printf("n = %lld, %d tokens\n", (long long)bench->n, TOKENS);
    bench->order = NULL;
    report(bench, "linear, F32 weights", best_of(bench, NULL, run_linear), 2 * TOKENS * n * n);
    report(bench, "attention (causal)", best_of(bench, NULL, run_attention), 2.0 * TOKENS * TOKENS * n);
    report(bench, "gradient of inputs", best_of(bench, NULL, run_linear_grad), 2 * TOKENS * n * n);
    report(bench, "gradient of weights", best_of(bench, NULL, run_cross), 2 * TOKENS * n * n);
    report(bench, "gradient of attention", best_of(bench, NULL, run_attention_grad), 5.0 * TOKENS * TOKENS * n);
    report(bench, "gram (triangle)", best_of(bench, NULL, run_gram), TOKENS * n * n);
    must(bench->gpu.ops->symmetrize(bench->stream, &bench->h, 2.0 / TOKENS));
    report(bench, "factor", best_of(bench, NULL, run_factor), 2.0 / 3.0 * n * n * n);
    measure_grid(bench, true, 2.4);
    measure_grid(bench, true, 2.0);
    measure_grid(bench, false, 2.0);
    measure_inputs(bench);
    measure_blocks(bench);
    report(bench, "sweep", best_of(bench, run_copy, run_sweep), n * n * n);
    bench->order = malloc((size_t)bench->n * sizeof(*bench->order));
    if (bench->order == NULL) {
        exit(EXIT_FAILURE);
    }
    for (int64_t i = 0; i < bench->n; i++) {
        bench->order[i] = (int32_t)((i * 1031 + 7) % bench->n); /* 1031 is prime: a permutation of any n used here */
    }
    run_factor(bench);
    report(bench, "sweep, permuted", best_of(bench, run_copy, run_sweep), n * n * n);
    report(bench, "descend, two passes", best_of(bench, run_sweep_again, run_descend), 4 * n * n * n);
    report(bench, "output error and signal", best_of(bench, NULL, run_output_error), 2 * n * n * n);
    double start = now();
    run_grid(bench);
    run_factor(bench);
    run_copy(bench);
    run_sweep(bench);
    printf("  whole solve, 4 bit g128    %9.4f s\n", now() - start);
    free(bench->order);
}

static void bench_size(struct bench *bench, int64_t n)
{
    struct tensor *const all[] = {&bench->x,    &bench->w,        &bench->y,        &bench->h,
                                  &bench->u,    &bench->scale,    &bench->zero,     &bench->codes,
                                  &bench->work, &bench->grads[0], &bench->grads[1], &bench->grads[2]};
    bench->n = n;
    bench->x = matrix(bench, DTYPE_F32, TOKENS, n);
    bench->w = matrix(bench, DTYPE_F32, n, n);
    bench->y = matrix(bench, DTYPE_F32, TOKENS, n);
    bench->h = matrix(bench, DTYPE_F32, n, n);
    bench->u = matrix(bench, DTYPE_F32, n, n);
    bench->scale = matrix(bench, DTYPE_F32, n, n / 128);
    bench->zero = matrix(bench, DTYPE_F32, n, n / 128);
    bench->codes = matrix(bench, DTYPE_U8, n, n);
    bench->work = matrix(bench, DTYPE_F32, n, n);
    for (int i = 0; i < 3; i++) {
        bench->grads[i] = matrix(bench, DTYPE_F32, TOKENS, n);
    }
    bench->grid = (struct gpu_grid){.bits = 4,
                                    .group_size = 128,
                                    .sym = true,
                                    .norm = 2.4,
                                    .max_shrink = 0.8,
                                    .steps = 100,
                                    .scale_dtype = DTYPE_F16};
    fill(&bench->x, 3);
    fill(&bench->w, 4);
    measure(bench);
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_tensor_free(&bench->gpu, all[i]);
    }
}

int main(int argc, char **argv)
{
    struct bench bench = {0};

    const char *wanted = getenv("QUANTD_CPU_PRODUCTS"), *products = wanted != NULL ? wanted : "float32";
    int threads = argc > 1 ? atoi(argv[1]) : 0;

    measure_other_roof(products, threads);
    bench_open(&bench, products, threads);
    measure_roof(&bench);
    for (int i = 2; i < argc; i++) {
        long long n = atoll(argv[i]);
        if (n < 128 || n > 32768 || n % 128 != 0) {
            fprintf(stderr, "bench: n is a multiple of 128 up to 32768, not '%s'\n", argv[i]);
            return EXIT_FAILURE;
        }
        bench_size(&bench, n);
    }
    if (argc <= 2) {
        bench_size(&bench, 1024);
        bench_size(&bench, 4096);
    }
    bench_close(&bench);
    return EXIT_SUCCESS;
}
