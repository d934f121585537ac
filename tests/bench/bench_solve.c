/* One GPTQ solve of an [n, n] linear, 4 bits in groups of 128, against the sgemm roof of the same process.
 *
 *   bench_solve [threads] [n] [repeats]
 *
 * Prints one JSON object for tests/bench/run. "solve" is the method's whole solve through its row, as a job calls it:
 * order, factor, grid, the check against plain rounding, sweep, codes to the host, with min-max scales; "solve_search"
 * searches them. "factor" and "sweep" are the two operations alone. The Hessian is of correlated inputs with a few loud
 * channels and is not timed. Medians. */

#include "base/err.h"
#include "base/params.h"
#include "quantizers/quantizer.h"

#include <jansson.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define REPEATS_MAX 32

struct bench {
    struct gpu gpu;
    struct gpu_stream *stream;
    int64_t n;
    int repeats;
    struct tensor w;
    struct layer_stats stats;
    double roof; /* GFLOP/s */
    double solve[REPEATS_MAX], search[REPEATS_MAX], factor[REPEATS_MAX], sweep[REPEATS_MAX];
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

static struct tensor matrix(const struct bench *bench, enum dtype dtype, int64_t rows, int64_t cols)
{
    struct tensor tensor;
    must(gpu_tensor_new(&bench->gpu, dtype, 2, (const int64_t[]){rows, cols}, &tensor));
    return tensor;
}

static float noise(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (float)(int32_t)*seed * 0x1p-31f;
}

static void fill(const struct tensor *tensor, uint32_t seed)
{
    float *data = tensor->data;
    for (int64_t i = 0; i < tensor_count(tensor); i++) {
        data[i] = noise(&seed);
    }
}

/* Rows of neighbours that go together and a loud channel in every eighth of the width. */
static void fill_inputs(const struct tensor *x, uint32_t seed)
{
    int64_t n = x->shape[1];
    for (int64_t t = 0; t < x->shape[0]; t++) {
        float *row = (float *)x->data + t * n;
        float before = 0;
        for (int64_t i = 0; i < n; i++) {
            float fresh = noise(&seed);
            row[i] = (fresh + 0.5f * before) * (i % (n / 8) == 0 ? 20.0f : 1.0f);
            before = fresh;
        }
    }
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(const struct bench *bench, double *seconds)
{
    qsort(seconds, (size_t)bench->repeats, sizeof(*seconds), by_value);
    return seconds[bench->repeats / 2];
}

static void measure_roof(struct bench *bench)
{
    struct tensor x = matrix(bench, DTYPE_F32, 4096, 4096);
    struct tensor w = matrix(bench, DTYPE_F32, 4096, 4096);
    struct tensor y = matrix(bench, DTYPE_F32, 4096, 4096);
    double best = 1e300;

    fill(&x, 1);
    fill(&w, 2);
    for (int i = 0; i < 5; i++) {
        double start = now();
        must(bench->gpu.ops->linear(bench->stream, &y, &x, &w, NULL));
        double seconds = now() - start;
        best = seconds < best ? seconds : best;
    }
    bench->roof = 2.0 * 4096 * 4096 * 4096 / best * 1e-9;
    gpu_tensor_free(&bench->gpu, &x);
    gpu_tensor_free(&bench->gpu, &w);
    gpu_tensor_free(&bench->gpu, &y);
}

static void gather(struct bench *bench)
{
    struct tensor x = matrix(bench, DTYPE_F32, 2 * bench->n, bench->n);

    fill_inputs(&x, 3);
    must(stats_init(&bench->stats, STATS_HESSIAN, bench->n, &bench->gpu));
    must(stats_add(&bench->stats, &bench->gpu, bench->stream, &x));
    must(stats_finish(&bench->stats, &bench->gpu, bench->stream));
    gpu_tensor_free(&bench->gpu, &x);
}

static void measure_solve(struct bench *bench, bool search, double *seconds)
{
    const struct quantizer *gptq = quantizer_find("gptq");
    struct solve_context context = {.gpu = &bench->gpu, .stream = bench->stream, .scale_dtype = DTYPE_BF16, .seed = 0};
    struct faults faults = {0};
    void *params = calloc(1, gptq->params_size);
    json_t *given = json_pack("{s:b}", "mse_search", (int)search);

    if (params == NULL || given == NULL) {
        exit(EXIT_FAILURE);
    }
    must(params_parse(gptq->params, given, "", params, &faults));
    json_decref(given);
    for (int i = 0; i < bench->repeats; i++) {
        struct linear_job job = {.name = "bench", .weight = &bench->w, .params = params};
        double start = now();
        must(gptq->solve(&context, &bench->stats, &job, 1));
        seconds[i] = now() - start;
        qtensor_deinit(&job.result);
    }
    params_release(gptq->params, params);
    free(params);
}

static void measure_operations(struct bench *bench)
{
    const struct gpu_ops *ops = bench->gpu.ops;
    struct gpu_grid grid = {.bits = 4, .group_size = 128, .sym = true, .scale_dtype = DTYPE_BF16};
    struct tensor u = matrix(bench, DTYPE_F32, bench->n, bench->n), w = matrix(bench, DTYPE_F32, bench->n, bench->n);
    struct tensor codes = matrix(bench, DTYPE_U8, bench->n, bench->n);
    struct tensor scale = matrix(bench, DTYPE_F32, bench->n, bench->n / 128);
    struct tensor zero = matrix(bench, DTYPE_F32, bench->n, bench->n / 128);
    int32_t *order = malloc((size_t)bench->n * sizeof(*order));
    double loss;

    if (order == NULL) {
        exit(EXIT_FAILURE);
    }
    for (int64_t i = 0; i < bench->n; i++) {
        order[i] = (int32_t)((i * 1031 + 7) % bench->n); /* 1031 is prime: a permutation */
    }
    must(ops->grid(bench->stream, &scale, &zero, &bench->w, NULL, &grid));
    for (int i = 0; i < bench->repeats; i++) {
        must(ops->convert(bench->stream, &w, &bench->w));
        double start = now();
        must(ops->factor(bench->stream, &u, &bench->stats.hessian,
                         &(struct gpu_factor){.damp_percent = 0.01, .order = order}));
        double middle = now();
        must(ops->sweep(bench->stream, &codes, &w, &u, &scale, &zero, order, 128, &grid, &loss));
        bench->factor[i] = middle - start;
        bench->sweep[i] = now() - middle;
    }
    free(order);
    struct tensor *const all[] = {&u, &w, &codes, &scale, &zero};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_tensor_free(&bench->gpu, all[i]);
    }
}

static void print(struct bench *bench)
{
    const struct gpu_info *info = &bench->gpu.info;
    json_t *out =
        json_pack("{s:s, s:s, s:i, s:I, s:f, s:f, s:f, s:f, s:f}", "device", info->name, "kernels", info->detail,
                  "threads", info->threads, "n", (json_int_t)bench->n, "roof_gflops", bench->roof, "solve",
                  median(bench, bench->solve), "solve_search", median(bench, bench->search), "factor",
                  median(bench, bench->factor), "sweep", median(bench, bench->sweep));
    if (out == NULL || json_dumpf(out, stdout, JSON_REAL_PRECISION(6)) != 0) {
        exit(EXIT_FAILURE);
    }
    putchar('\n');
    json_decref(out);
}

int main(int argc, char **argv)
{
    struct bench bench = {.n = argc > 2 ? atoll(argv[2]) : 4096, .repeats = argc > 3 ? atoi(argv[3]) : 5};

    if (bench.n < 128 || bench.n > 32768 || bench.n % 128 != 0 || bench.repeats < 1 || bench.repeats > REPEATS_MAX) {
        fprintf(stderr, "bench: n is a multiple of 128 up to 32768, repeats 1 to %d\n", REPEATS_MAX);
        return EXIT_FAILURE;
    }
    must(gpu_open("cpu", argc > 1 ? atoi(argv[1]) : 0, &bench.gpu));
    must(bench.gpu.ops->stream_new(bench.gpu.device, &bench.stream));
    bench.w = matrix(&bench, DTYPE_F32, bench.n, bench.n);
    fill(&bench.w, 4);
    measure_roof(&bench);
    gather(&bench);
    measure_solve(&bench, false, bench.solve);
    measure_solve(&bench, true, bench.search);
    measure_operations(&bench);
    print(&bench);
    stats_deinit(&bench.stats, &bench.gpu);
    gpu_tensor_free(&bench.gpu, &bench.w);
    bench.gpu.ops->stream_free(bench.stream);
    gpu_close(&bench.gpu);
    return EXIT_SUCCESS;
}
