/* What a device reaches in single operations, through the table that jobs use: the roofs that a job's phases are held
 * to. Prints rows of a markdown table; each figure is the median of five runs behind a warm-up.
 *
 *   bench_roofs DEVICE MODULE_DIR [SCALE]
 *
 * SCALE divides every size (default 1; 16 lets a CPU try the program in seconds). Exit 77 when there is no such device.
 */

#include "base/err.h"
#include "gpu/gpu.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define RUNS 5
#define EXIT_SKIP 77

struct bench {
    struct gpu gpu;
    const struct gpu_ops *ops;
    struct gpu_stream *stream;
    int64_t scale;
};

static void must(int rc)
{
    if (rc != 0) {
        fprintf(stderr, "bench_roofs: %s: %s\n", err_api_code(rc), err_last()->message);
        exit(EXIT_FAILURE);
    }
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static struct tensor empty(struct bench *b, enum dtype dtype, int64_t rows, int64_t cols)
{
    struct tensor tensor;
    must(gpu_tensor_new(&b->gpu, dtype, 2, (const int64_t[]){rows, cols}, &tensor));
    return tensor;
}

/* Never zeros: a chip is faster on them than on anything real. */
static struct tensor filled(struct bench *b, int64_t rows, int64_t cols, uint32_t seed)
{
    struct tensor tensor = empty(b, DTYPE_F32, rows, cols);
    float *host = malloc(tensor_bytes(&tensor));
    if (host == NULL) {
        must(err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld numbers", (long long)tensor_count(&tensor)));
    }
    for (int64_t i = 0; i < tensor_count(&tensor); i++) {
        seed = seed * 1664525u + 1013904223u;
        host[i] = (float)(int32_t)seed * 0x1p-31f;
    }
    must(b->ops->upload(b->stream, tensor.data, host, tensor_bytes(&tensor)));
    must(b->ops->stream_sync(b->stream));
    free(host);
    return tensor;
}

static void drop(struct bench *b, struct tensor *tensor)
{
    gpu_tensor_free(&b->gpu, tensor);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median_of(struct bench *b, void (*run)(struct bench *, void *), void *context)
{
    double seconds[RUNS];

    run(b, context);
    must(b->ops->stream_sync(b->stream));
    for (int i = 0; i < RUNS; i++) {
        double start = now();
        run(b, context);
        must(b->ops->stream_sync(b->stream));
        seconds[i] = now() - start;
    }
    qsort(seconds, RUNS, sizeof(seconds[0]), by_value);
    return seconds[RUNS / 2];
}

static void row(const char *what, int64_t a, int64_t n, double seconds, double work, const char *unit)
{
    printf("| %s | %lld | %lld | %.3f | %.2f %s |\n", what, (long long)a, (long long)n, seconds * 1e3, work / seconds,
           unit);
    fflush(stdout);
}

struct operands {
    struct tensor x, w, y, h, u, scale, zero, codes, work;
    struct gpu_grid grid;
    void *host;
    size_t bytes;
};

static void run_linear(struct bench *b, void *context)
{
    struct operands *o = context;
    must(b->ops->linear(b->stream, &o->y, &o->x, &o->w, NULL));
}

static void run_gram(struct bench *b, void *context)
{
    struct operands *o = context;
    must(b->ops->gram(b->stream, &o->h, &o->x));
}

static void run_convert(struct bench *b, void *context)
{
    struct operands *o = context;
    must(b->ops->convert(b->stream, &o->y, &o->x));
}

static void run_upload(struct bench *b, void *context)
{
    struct operands *o = context;
    must(b->ops->upload(b->stream, o->x.data, o->host, o->bytes));
}

static void run_download(struct bench *b, void *context)
{
    struct operands *o = context;
    must(b->ops->download(b->stream, o->host, o->x.data, o->bytes));
}

static void run_factor(struct bench *b, void *context)
{
    struct operands *o = context;
    must(b->ops->factor(b->stream, &o->u, &o->h, &(struct gpu_factor){.damp_percent = 0.01}));
}

static void run_grid(struct bench *b, void *context)
{
    struct operands *o = context;
    must(b->ops->grid(b->stream, &o->scale, &o->zero, &o->w, NULL, &o->grid));
}

static void run_sweep(struct bench *b, void *context)
{
    struct operands *o = context;
    double loss;
    must(b->ops->convert(b->stream, &o->work, &o->w));
    must(b->ops->sweep(b->stream, &o->codes, &o->work, &o->u, &o->scale, &o->zero, NULL, 128, &o->grid, &loss));
}

static void run_output_error(struct bench *b, void *context)
{
    struct operands *o = context;
    double error, signal;
    must(b->ops->output_error(b->stream, &error, &signal, &o->w, &o->work, &o->h));
}

static void time_linear(struct bench *b, int64_t tokens, int64_t in, int64_t out)
{
    struct operands o = {.x = filled(b, tokens, in, 1), .w = filled(b, out, in, 2)};
    o.y = empty(b, DTYPE_F32, tokens, out);
    row("linear, F32 in and out", tokens, out, median_of(b, run_linear, &o),
        2e-12 * (double)tokens * (double)in * (double)out, "TFLOP/s");
    drop(b, &o.x);
    drop(b, &o.w);
    drop(b, &o.y);
}

static void time_copies(struct bench *b, int64_t tokens, int64_t width)
{
    struct operands o = {.x = filled(b, tokens, width, 3), .y = empty(b, DTYPE_F32, tokens, width)};
    double bytes = (double)tensor_bytes(&o.x);
    o.bytes = tensor_bytes(&o.x);
    o.host = calloc(1, o.bytes);
    if (o.host == NULL) {
        must(err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for copies"));
    }
    row("copy on the device", tokens, width, median_of(b, run_convert, &o), 2e-9 * bytes, "GB/s");
    drop(b, &o.y);
    o.y = empty(b, DTYPE_BF16, tokens, width);
    row("F32 to BF16", tokens, width, median_of(b, run_convert, &o), 1.5e-9 * bytes, "GB/s");
    row("host to device", tokens, width, median_of(b, run_upload, &o), 1e-9 * bytes, "GB/s");
    row("device to host", tokens, width, median_of(b, run_download, &o), 1e-9 * bytes, "GB/s");
    drop(b, &o.x);
    drop(b, &o.y);
    free(o.host);
}

static void time_solve(struct bench *b, int64_t tokens, int64_t rows, int64_t n)
{
    int64_t group = n % 128 == 0 ? 128 : n;
    double cubed = (double)n * (double)n * (double)n, product = (double)rows * (double)n * (double)n;
    struct operands o = {.x = filled(b, tokens, n, 4),
                         .w = filled(b, rows, n, 5),
                         .h = empty(b, DTYPE_F32, n, n),
                         .u = empty(b, DTYPE_F32, n, n),
                         .scale = empty(b, DTYPE_F32, rows, n / group),
                         .zero = empty(b, DTYPE_F32, rows, n / group),
                         .codes = empty(b, DTYPE_U8, rows, n),
                         .work = empty(b, DTYPE_F32, rows, n),
                         .grid = {.bits = 4,
                                  .group_size = group,
                                  .mse = true,
                                  .norm = 2.4,
                                  .max_shrink = 0.8,
                                  .steps = 100,
                                  .scale_dtype = DTYPE_BF16}};
    row("gram, useful half", tokens, n, median_of(b, run_gram, &o), 1e-12 * (double)tokens * (double)n * (double)n,
        "TFLOP/s");
    must(b->ops->symmetrize(b->stream, &o.h, 2.0 / (double)tokens));
    row("factor", n, n, median_of(b, run_factor, &o), 2e-12 / 3 * cubed, "TFLOP/s");
    row("grid with search", rows, n, median_of(b, run_grid, &o), 1e-9 * (double)rows * (double)n, "G weights/s");
    double seconds = median_of(b, run_sweep, &o);
    row("sweep", rows, n, seconds, 1e-12 * product, "TFLOP/s");
    row("sweep, by column", rows, n, seconds, 1e-6 * (double)n, "M columns/s");
    row("output_error, both", rows, n, median_of(b, run_output_error, &o), 2e-12 * product, "TFLOP/s");
    struct tensor *const all[] = {&o.x, &o.w, &o.h, &o.u, &o.scale, &o.zero, &o.codes, &o.work};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        drop(b, all[i]);
    }
}

int main(int argc, char **argv)
{
    struct bench b = {.scale = argc > 3 ? atoll(argv[3]) : 1};

    if (argc < 3 || b.scale < 1) {
        fprintf(stderr, "usage: bench_roofs DEVICE MODULE_DIR [SCALE]\n");
        return 2;
    }
    must(gpu_load_backends(argv[2]));
    if (gpu_open(argv[1], 0, &b.gpu) != 0) {
        printf("no device '%s': %s", argv[1], gpu_backend_notes());
        return EXIT_SKIP;
    }
    b.ops = b.gpu.ops;
    must(b.ops->stream_new(b.gpu.device, &b.stream));
    int64_t tokens = 8192 / b.scale, h = 4096 / b.scale, f = 11008 / b.scale;
    printf("\n%s: %s, %s\n\n| operation | rows | columns | ms | rate |\n|---|---|---|---|---|\n", b.gpu.info.id,
           b.gpu.info.name, b.gpu.info.detail);
    time_linear(&b, tokens, h, h);
    time_linear(&b, tokens, h, f);
    time_linear(&b, tokens, f, h);
    time_copies(&b, tokens, f);
    time_solve(&b, tokens, 3 * h, h);
    time_solve(&b, tokens, 2 * f, h);
    time_solve(&b, tokens, h, 2 * h);
    time_solve(&b, tokens, h, f);
    b.ops->stream_free(b.stream);
    gpu_close(&b.gpu);
    return EXIT_SUCCESS;
}
