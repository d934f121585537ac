/* One GPTQ solve of an [n, n] linear, 4 bits in groups of 128, against the peak of products in the same process.
 *
 *   bench_solve [threads] [n] [repeats] [--device cpu --modules DIR] [--rows N]
 *               [--tokens N --weight FILE --inputs FILE --result PREFIX] [--roof 4096]
 *
 * Prints one JSON object for tests/bench/run. "solve" is the method's complete solve through its row, as a job calls
 * it: order, factor, grid, the check against plain rounding, sweep, codes to the host, with min-max scales;
 * "solve_search" searches them. "factor" and "sweep" are the two operations alone. "hessian" is the statistics of
 * inputs that the device has already. Medians; with three repeats or more the first, which warms up, does not count.
 *
 * Weights [rows, n] and inputs [tokens, n] are raw F32 files where they are named, so that a peer can be given the same
 * ones; else the weights are noise and the inputs correlated, with a few loud channels. PREFIX.minmax and PREFIX.search
 * get what became of the weights. Exit 77 when there is no such device. */

#include "base/err.h"
#include "base/params.h"
#include "quantizers/quantizer.h"

#include <getopt.h>
#include <jansson.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define REPEATS_MAX 32
#define EXIT_SKIP 77

struct bench {
    struct gpu gpu;
    struct gpu_stream *stream;
    const char *device, *modules, *weight, *inputs, *result; /* as given, or NULL */
    int threads, repeats;
    int64_t n, rows, tokens, side; /* side: of the product that gives the peak */
    struct tensor w;
    struct layer_stats stats;
    double roof; /* GFLOP/s */
    double hessian[REPEATS_MAX], solve[REPEATS_MAX], search[REPEATS_MAX], factor[REPEATS_MAX], sweep[REPEATS_MAX];
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

/* The time when the device has done what it was told. */
static double synced(const struct bench *bench)
{
    must(bench->gpu.ops->stream_sync(bench->stream));
    return now();
}

static void fill(float *data, int64_t count, uint32_t seed)
{
    for (int64_t i = 0; i < count; i++) {
        data[i] = noise(&seed);
    }
}

/* Rows of neighbours that go together and a loud channel in every eighth of the width. */
static void fill_inputs(float *data, int64_t tokens, int64_t n, uint32_t seed)
{
    for (int64_t t = 0; t < tokens; t++) {
        float before = 0;
        for (int64_t i = 0; i < n; i++) {
            float fresh = noise(&seed);
            data[t * n + i] = (fresh + 0.5f * before) * (i % (n / 8) == 0 ? 20.0f : 1.0f);
            before = fresh;
        }
    }
}

static float *host_matrix(int64_t rows, int64_t cols)
{
    float *data = calloc((size_t)(rows * cols), sizeof(*data));
    if (data == NULL) {
        must(err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld x %lld numbers", (long long)rows, (long long)cols));
    }
    return data;
}

static void read_matrix(const char *path, float *data, int64_t count)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL || fread(data, sizeof(*data), (size_t)count, file) != (size_t)count || fgetc(file) != EOF) {
        fprintf(stderr, "bench: '%s' is not a file of %lld F32 numbers\n", path, (long long)count);
        exit(EXIT_FAILURE);
    }
    fclose(file);
}

static struct tensor to_device(const struct bench *bench, const float *data, int64_t rows, int64_t cols)
{
    struct tensor tensor = matrix(bench, DTYPE_F32, rows, cols);
    must(bench->gpu.ops->upload(bench->stream, tensor.data, data, tensor_bytes(&tensor)));
    must(bench->gpu.ops->stream_sync(bench->stream));
    return tensor;
}

/* Noise, or what a file holds. */
static struct tensor load(const struct bench *bench, const char *path, int64_t rows, int64_t cols, uint32_t seed)
{
    float *data = host_matrix(rows, cols);

    if (path != NULL) {
        read_matrix(path, data, rows * cols);
    } else if (seed == 3) {
        fill_inputs(data, rows, cols, seed);
    } else {
        fill(data, rows * cols, seed);
    }
    struct tensor tensor = to_device(bench, data, rows, cols);
    free(data);
    return tensor;
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
    int64_t n = bench->side;
    struct tensor x = load(bench, NULL, n, n, 1);
    struct tensor w = load(bench, NULL, n, n, 2);
    struct tensor y = matrix(bench, DTYPE_F32, n, n);
    double best = 1e300;

    for (int i = 0; i < 5; i++) {
        double start = synced(bench);
        must(bench->gpu.ops->linear(bench->stream, &y, &x, &w, NULL));
        double seconds = synced(bench) - start;
        best = seconds < best ? seconds : best;
    }
    bench->roof = 2.0 * (double)n * (double)n * (double)n / best * 1e-9;
    gpu_tensor_free(&bench->gpu, &x);
    gpu_tensor_free(&bench->gpu, &w);
    gpu_tensor_free(&bench->gpu, &y);
}

static void measure_hessian(struct bench *bench)
{
    struct tensor x = load(bench, bench->inputs, bench->tokens, bench->n, 3);

    for (int i = 0; i < bench->repeats; i++) {
        stats_deinit(&bench->stats, &bench->gpu);
        bench->stats = (struct layer_stats){0};
        must(stats_init(&bench->stats, STATS_HESSIAN, bench->n, &bench->gpu));
        double start = synced(bench);
        must(stats_add(&bench->stats, &bench->gpu, bench->stream, &x));
        must(stats_finish(&bench->stats, &bench->gpu, bench->stream));
        bench->hessian[i] = synced(bench) - start;
    }
    gpu_tensor_free(&bench->gpu, &x);
}

static void keep_result(const struct bench *bench, const struct qtensor *result, bool search)
{
    char path[4096];
    float *weight = host_matrix(bench->rows, bench->n);

    snprintf(path, sizeof(path), "%s.%s", bench->result, search ? "search" : "minmax");
    qtensor_dequantize(result, weight);
    FILE *file = fopen(path, "wb");
    size_t count = (size_t)(bench->rows * bench->n);
    bool written = file != NULL && fwrite(weight, sizeof(*weight), count, file) == count;
    if (file == NULL || fclose(file) != 0 || !written) {
        fprintf(stderr, "bench: cannot write '%s'\n", path);
        exit(EXIT_FAILURE);
    }
    free(weight);
}

static void measure_solve(struct bench *bench, bool search, double *seconds)
{
    const struct quantizer *gptq = quantizer_find("gptq");
    struct solve_context context = {.gpu = &bench->gpu, .stream = bench->stream, .scale_dtype = DTYPE_BF16, .seed = 0};
    struct validation_errors errors = {0};
    void *params = calloc(1, gptq->params_size);
    json_t *given = json_pack("{s:b}", "mse_search", (int)search);

    if (params == NULL || given == NULL) {
        exit(EXIT_FAILURE);
    }
    must(params_parse(gptq->params, given, "", params, &errors));
    json_decref(given);
    for (int i = 0; i < bench->repeats; i++) {
        struct linear_job job = {.name = "bench", .weight = &bench->w, .params = params};
        double start = synced(bench);
        must(gptq->solve(&context, &bench->stats, &job, 1));
        seconds[i] = synced(bench) - start;
        if (bench->result != NULL && i == 0) {
            keep_result(bench, &job.result, search);
        }
        qtensor_deinit(&job.result);
    }
    params_release(gptq->params, params);
    free(params);
}

static void measure_operations(struct bench *bench)
{
    const struct gpu_ops *ops = bench->gpu.ops;
    struct gpu_grid grid = {.bits = 4, .group_size = 128, .sym = true, .scale_dtype = DTYPE_BF16};
    struct tensor u = matrix(bench, DTYPE_F32, bench->n, bench->n), w = matrix(bench, DTYPE_F32, bench->rows, bench->n);
    struct tensor codes = matrix(bench, DTYPE_U8, bench->rows, bench->n);
    struct tensor scale = matrix(bench, DTYPE_F32, bench->rows, bench->n / 128);
    struct tensor zero = matrix(bench, DTYPE_F32, bench->rows, bench->n / 128);
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
        double start = synced(bench);
        must(ops->factor(bench->stream, &u, &bench->stats.hessian,
                         &(struct gpu_factor){.damp_percent = 0.01, .order = order}));
        double middle = synced(bench);
        must(ops->sweep(bench->stream, &codes, &w, &u, &scale, &zero, order, 128, &grid, &loss));
        bench->factor[i] = middle - start;
        bench->sweep[i] = synced(bench) - middle;
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
    json_t *out = json_pack("{s:s, s:s, s:i, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f}", "device", info->name,
                            "kernels", info->detail, "threads", info->threads, "n", (json_int_t)bench->n, "rows",
                            (json_int_t)bench->rows, "tokens", (json_int_t)bench->tokens, "roof_gflops", bench->roof,
                            "hessian", median(bench, bench->hessian), "solve", median(bench, bench->solve),
                            "solve_search", median(bench, bench->search), "factor", median(bench, bench->factor),
                            "sweep", median(bench, bench->sweep));
    if (out == NULL || json_dumpf(out, stdout, JSON_REAL_PRECISION(6)) != 0) {
        exit(EXIT_FAILURE);
    }
    putchar('\n');
    json_decref(out);
}

static bool take(struct bench *bench, int option)
{
    switch (option) {
    case 'd':
        bench->device = optarg;
        break;
    case 'm':
        bench->modules = optarg;
        break;
    case 'r':
        bench->rows = atoll(optarg);
        break;
    case 't':
        bench->tokens = atoll(optarg);
        break;
    case 's':
        bench->side = atoll(optarg);
        break;
    case 'w':
        bench->weight = optarg;
        break;
    case 'i':
        bench->inputs = optarg;
        break;
    case 'o':
        bench->result = optarg;
        break;
    default:
        return false;
    }
    return true;
}

static bool parse(struct bench *bench, int argc, char **argv)
{
    static const struct option options[] = {
        {"device", required_argument, NULL, 'd'},
        {"modules", required_argument, NULL, 'm'},
        {"rows", required_argument, NULL, 'r'},
        {"tokens", required_argument, NULL, 't'},
        {"weight", required_argument, NULL, 'w'},
        {"inputs", required_argument, NULL, 'i'},
        {"result", required_argument, NULL, 'o'},
        {"roof", required_argument, NULL, 's'},
        {0},
    };
    int option;

    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (!take(bench, option)) {
            return false;
        }
    }
    bench->threads = optind < argc ? atoi(argv[optind]) : 0;
    bench->n = optind + 1 < argc ? atoll(argv[optind + 1]) : 4096;
    bench->repeats = optind + 2 < argc ? atoi(argv[optind + 2]) : 5;
    bench->rows = bench->rows > 0 ? bench->rows : bench->n;
    bench->tokens = bench->tokens > 0 ? bench->tokens : 2 * bench->n;
    return bench->n >= 128 && bench->n <= 32768 && bench->n % 128 == 0 && bench->rows <= 1 << 20 &&
           bench->tokens <= 1 << 22 && bench->side >= 128 && bench->side <= 32768 && bench->repeats >= 1 &&
           bench->repeats <= REPEATS_MAX;
}

int main(int argc, char **argv)
{
    struct bench bench = {.device = "cpu", .side = 4096};

    if (!parse(&bench, argc, argv)) {
        fprintf(stderr, "bench: n is a multiple of 128 up to 32768, repeats 1 to %d\n", REPEATS_MAX);
        return EXIT_FAILURE;
    }
    must(gpu_load_backends(bench.modules));
    if (gpu_open(bench.device, bench.threads, &bench.gpu) != 0) {
        fprintf(stderr, "bench: no device '%s': %s", bench.device, gpu_backend_notes());
        return EXIT_SKIP;
    }
    must(bench.gpu.ops->stream_new(bench.gpu.device, &bench.stream));
    bench.w = load(&bench, bench.weight, bench.rows, bench.n, 4);
    measure_roof(&bench);
    measure_hessian(&bench);
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
