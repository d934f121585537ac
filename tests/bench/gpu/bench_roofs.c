/* What a device reaches in single operations, through the table that jobs use: the peaks that a job's phases are
 * compared with. Prints rows of a markdown table as they come; each figure is the median of five runs after a warm-up,
 * of fewer where they take long.
 *
 *   bench_roofs DEVICE MODULE_DIR [SCALE [VALUES]]
 *
 * SCALE divides every size (default 1; 16 lets a CPU try the program in seconds; 0 only names the device). The file
 * VALUES gets what job.py reads, a line "name value" each: TFLOP/s of the best products, GB/s of copies. The last
 * column is the share of the best product with BF16 operands so far, or of the copy on the device. Products with F32
 * operands come from a second handle of the device, opened with QUANTD_CUDA_MATH=fp32. Exit 77 when there is no such
 * device. */

#include "base/err.h"
#include "gpu/gpu.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RUNS 5
#define PATIENCE 2.0 /* seconds: no further run of what has taken as long */
#define LAUNCHES 1000
#define EXIT_SKIP 77

struct bench {
    struct gpu gpu;
    const struct gpu_ops *ops;
    struct gpu_stream *stream;
    FILE *values; /* or NULL */
    int64_t scale, tokens;
    double product, product_f32, copy, h2d, d2h; /* the best so far: TFLOP/s, GB/s */
};

struct operands {
    struct tensor x, w, y, h, u, scale, zero, codes, work;
    struct gpu_grid grid;
    struct gpu_attention attention;
    void *host;
    size_t bytes;
};

typedef void operation(struct bench *b, struct operands *o);

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

/* `count` numbers, another stretch for each seed below 64. Never zeros: a chip is faster on them than on anything real.
 * One buffer that grows, since the host would take longer to make new ones than the device to use them. */
static const float *noise(int64_t count, uint32_t seed)
{
    static float *data;
    static int64_t made;
    static uint32_t state = 1;
    int64_t first = 1001 * (int64_t)seed;

    if (first + count > made) {
        data = realloc(data, (size_t)(first + count) * sizeof(*data));
        if (data == NULL) {
            must(err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld numbers", (long long)(first + count)));
        }
        for (; made < first + count; made++) {
            state = state * 1664525u + 1013904223u;
            data[made] = (float)(int32_t)state * 0x1p-31f;
        }
    }
    return data + first;
}

static struct tensor filled(struct bench *b, enum dtype dtype, int64_t rows, int64_t cols, uint32_t seed)
{
    struct tensor tensor = empty(b, DTYPE_F32, rows, cols);
    must(b->ops->upload(b->stream, tensor.data, noise(rows * cols, seed), tensor_bytes(&tensor)));
    must(b->ops->stream_sync(b->stream));
    if (dtype != DTYPE_F32) {
        struct tensor narrow = empty(b, dtype, rows, cols);
        must(b->ops->convert(b->stream, &narrow, &tensor));
        must(b->ops->stream_sync(b->stream));
        gpu_tensor_free(&b->gpu, &tensor);
        return narrow;
    }
    return tensor;
}

static void drop(struct bench *b, struct operands *o)
{
    struct tensor *const all[] = {&o->x, &o->w, &o->y, &o->h, &o->u, &o->scale, &o->zero, &o->codes, &o->work};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_tensor_free(&b->gpu, all[i]);
    }
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Seconds of run, with prepare (or NULL) before each one and outside the time. */
static double median_of(struct bench *b, operation *prepare, operation *run, struct operands *o)
{
    double seconds[RUNS + 1], spent = 0;
    int count = 0;

    while (count <= RUNS && (count < 2 || spent < PATIENCE)) {
        if (prepare != NULL) {
            prepare(b, o);
        }
        must(b->ops->stream_sync(b->stream));
        double start = now();
        run(b, o);
        must(b->ops->stream_sync(b->stream));
        seconds[count] = now() - start;
        spent += seconds[count++];
    }
    qsort(seconds + 1, (size_t)count - 1, sizeof(seconds[0]), by_value); /* the first warmed up */
    return seconds[1 + (count - 1) / 2];
}

/* `best` is what the rate is a share of, or NULL. */
static void row(const char *what, int64_t a, int64_t n, double seconds, double rate, const char *unit,
                const double *best)
{
    printf("| %s | %lld | %lld | %.3f | %.2f %s |", what, (long long)a, (long long)n, seconds * 1e3, rate, unit);
    if (best != NULL && *best > 0) {
        printf(" %.1f %%", 100 * rate / *best);
    }
    printf(" |\n");
    fflush(stdout);
}

static void value(struct bench *b, const char *name, double value)
{
    if (b->values != NULL) {
        fprintf(b->values, "%s %.6g\n", name, value);
        fflush(b->values);
    }
}

static void keep_best(double *best, double rate)
{
    *best = rate > *best ? rate : *best;
}

static void run_linear(struct bench *b, struct operands *o)
{
    must(b->ops->linear(b->stream, &o->y, &o->x, &o->w, NULL));
}

static void run_gram(struct bench *b, struct operands *o)
{
    must(b->ops->gram(b->stream, &o->h, &o->x));
}

static void run_convert(struct bench *b, struct operands *o)
{
    must(b->ops->convert(b->stream, &o->y, &o->x));
}

static void run_upload(struct bench *b, struct operands *o)
{
    must(b->ops->upload(b->stream, o->x.data, o->host, o->bytes));
}

static void run_upload_pinned(struct bench *b, struct operands *o)
{
    must(b->ops->upload_pinned(b->stream, o->x.data, o->host, o->bytes));
}

static void run_download(struct bench *b, struct operands *o)
{
    must(b->ops->download(b->stream, o->host, o->x.data, o->bytes));
}

static void run_launches(struct bench *b, struct operands *o)
{
    for (int i = 0; i < LAUNCHES; i++) {
        must(b->ops->add(b->stream, &o->y, &o->x));
    }
}

static void run_attention(struct bench *b, struct operands *o)
{
    must(b->ops->attention(b->stream, &o->y, &o->x, &o->w, &o->work, &o->attention));
}

static void run_norm(struct bench *b, struct operands *o)
{
    const struct gpu_norm spec = {.size = tensor_count(&o->w), .eps = 1e-5f};
    must(b->ops->norm(b->stream, &o->y, &o->x, &o->w, NULL, &spec));
}

static void run_activate(struct bench *b, struct operands *o)
{
    must(b->ops->activate(b->stream, &o->y, &o->x, &o->work, GPU_SILU));
}

static void run_factor(struct bench *b, struct operands *o)
{
    must(b->ops->factor(b->stream, &o->u, &o->h, &(struct gpu_factor){.damp_percent = 0.01}));
}

static void run_grid(struct bench *b, struct operands *o)
{
    must(b->ops->grid(b->stream, &o->scale, &o->zero, &o->w, NULL, &o->grid));
}

static void prepare_sweep(struct bench *b, struct operands *o)
{
    must(b->ops->convert(b->stream, &o->work, &o->w));
}

static void run_sweep(struct bench *b, struct operands *o)
{
    double loss;
    must(b->ops->sweep(b->stream, &o->codes, &o->work, &o->u, &o->scale, &o->zero, NULL, 128, &o->grid, &loss));
}

static void run_output_error(struct bench *b, struct operands *o)
{
    double error, signal;
    must(b->ops->output_error(b->stream, &error, &signal, &o->w, &o->work, &o->h));
}

static void time_linear(struct bench *b, const char *what, enum dtype weights, int64_t tokens, int64_t in, int64_t out,
                        double *best)
{
    struct operands o = {.x = filled(b, DTYPE_F32, tokens, in, 1), .w = filled(b, weights, out, in, 2)};
    o.y = empty(b, DTYPE_F32, tokens, out);
    double seconds = median_of(b, NULL, run_linear, &o);
    double rate = 2e-12 * (double)tokens * (double)in * (double)out / seconds;
    char name[96];

    keep_best(best, rate);
    snprintf(name, sizeof(name), "%s, %lld inputs", what, (long long)in);
    row(name, tokens, out, seconds, rate, "TFLOP/s", &b->product);
    drop(b, &o);
}

static void time_gram(struct bench *b, int64_t n)
{
    struct operands o = {.x = filled(b, DTYPE_F32, b->tokens, n, 4), .h = empty(b, DTYPE_F32, n, n)};
    double seconds = median_of(b, NULL, run_gram, &o);
    double rate = 1e-12 * (double)b->tokens * (double)n * (double)n / seconds;

    row("gram, the half that counts", b->tokens, n, seconds, rate, "TFLOP/s", &b->product);
    drop(b, &o);
    time_linear(b, "the same in full, as a linear", DTYPE_BF16, n, b->tokens, n, &b->product);
}

static void time_hosts(struct bench *b, struct operands *o, const char *to, const char *from, bool pinned)
{
    double bytes = 1e-9 * (double)o->bytes;
    double up = median_of(b, NULL, run_upload, o), down = median_of(b, NULL, run_download, o);
    int64_t rows = o->x.shape[0], cols = o->x.shape[1];

    row(to, rows, cols, up, bytes / up, "GB/s", &b->copy);
    keep_best(&b->h2d, bytes / up);
    if (pinned) {
        up = median_of(b, NULL, run_upload_pinned, o);
        row("host to device, pinned and waited for once", rows, cols, up, bytes / up, "GB/s", &b->copy);
        keep_best(&b->h2d, bytes / up);
    }
    row(from, rows, cols, down, bytes / down, "GB/s", &b->copy);
    keep_best(&b->d2h, bytes / down);
}

static void time_copies(struct bench *b, int64_t width)
{
    struct operands o = {.x = filled(b, DTYPE_F32, b->tokens, width, 3),
                         .y = empty(b, DTYPE_F32, b->tokens, width),
                         .bytes = (size_t)(b->tokens * width) * sizeof(float)};
    double bytes = 1e-9 * (double)o.bytes, seconds = median_of(b, NULL, run_convert, &o);

    b->copy = 2 * bytes / seconds;
    row("copy on the device, read and write", b->tokens, width, seconds, b->copy, "GB/s", &b->copy);
    gpu_tensor_free(&b->gpu, &o.y);
    o.y = empty(b, DTYPE_BF16, b->tokens, width);
    seconds = median_of(b, NULL, run_convert, &o);
    row("F32 to BF16", b->tokens, width, seconds, 1.5 * bytes / seconds, "GB/s", &b->copy);
    o.host = malloc(o.bytes);
    if (o.host == NULL) {
        must(err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for copies"));
    }
    memcpy(o.host, noise(tensor_count(&o.x), 5), o.bytes);
    time_hosts(b, &o, "host to device, pageable", "device to host, pageable", false);
    free(o.host);
    must(b->ops->host_alloc(b->gpu.device, o.bytes, &o.host));
    memcpy(o.host, noise(tensor_count(&o.x), 5), o.bytes);
    time_hosts(b, &o, "host to device, pinned through the ring", "device to host, into pinned", true);
    b->ops->host_free(b->gpu.device, o.host);
    drop(b, &o);
    struct operands small = {.x = filled(b, DTYPE_F32, 1, 64, 7), .y = empty(b, DTYPE_F32, 1, 64)};
    seconds = median_of(b, NULL, run_launches, &small) / LAUNCHES;
    row("small kernel, queued a thousand times", 1, 64, seconds, 1e6 * seconds, "us each", NULL);
    drop(b, &small);
    value(b, "copy", b->copy);
    value(b, "h2d", b->h2d);
    value(b, "d2h", b->d2h);
}

/* What a block does between its products. */
static void time_elementwise(struct bench *b, int64_t h, int64_t f)
{
    int64_t length = b->tokens / 4, dim = 128, heads = h / dim > 0 ? h / dim : 1;
    struct operands o = {
        .x = filled(b, DTYPE_F32, b->tokens, heads * dim, 8),
        .w = filled(b, DTYPE_F32, b->tokens, heads * dim, 9),
        .work = filled(b, DTYPE_F32, b->tokens, heads * dim, 10),
        .y = empty(b, DTYPE_F32, b->tokens, heads * dim),
        .attention = {
            .sequences = 4, .length = length, .heads = heads, .kv_heads = heads, .head_dim = dim, .scale = 0.088f}};
    double seconds = median_of(b, NULL, run_attention, &o);
    double rate = 8e-12 * (double)length * (double)length * (double)(heads * dim) / seconds;
    row("attention, the half that counts", b->tokens, heads * dim, seconds, rate, "TFLOP/s", &b->product);
    drop(b, &o);
    o = (struct operands){.x = filled(b, DTYPE_F32, b->tokens, f, 11),
                          .work = filled(b, DTYPE_F32, b->tokens, f, 12),
                          .y = empty(b, DTYPE_F32, b->tokens, f)};
    o.w = filled(b, DTYPE_F32, 1, f, 13);
    o.w.rank = 1;
    o.w.shape[0] = f;
    o.w.shape[1] = 1;
    seconds = median_of(b, NULL, run_norm, &o);
    row("norm", b->tokens, f, seconds, 8e-9 * (double)(b->tokens * f) / seconds, "GB/s", &b->copy);
    seconds = median_of(b, NULL, run_activate, &o);
    row("activate", b->tokens, f, seconds, 12e-9 * (double)(b->tokens * f) / seconds, "GB/s", &b->copy);
    drop(b, &o);
}

/* h of [tokens, n] noise, mirrored and scaled. */
static void fill_hessian(struct bench *b, struct operands *o, int64_t n)
{
    struct operands inputs = {.x = filled(b, DTYPE_F32, b->tokens, n, 4), .h = o->h};
    run_gram(b, &inputs);
    must(b->ops->symmetrize(b->stream, &o->h, 2.0 / (double)b->tokens));
    must(b->ops->stream_sync(b->stream));
    gpu_tensor_free(&b->gpu, &inputs.x);
}

static void time_factor(struct bench *b, int64_t n)
{
    struct operands o = {.h = empty(b, DTYPE_F32, n, n), .u = empty(b, DTYPE_F32, n, n)};
    fill_hessian(b, &o, n);
    double seconds = median_of(b, NULL, run_factor, &o);
    double rate = 2e-12 / 3 * (double)n * (double)n * (double)n / seconds;

    row("factor: Cholesky and inverse", n, n, seconds, rate, "TFLOP/s", &b->product);
    drop(b, &o);
}

static void time_sweep(struct bench *b, int64_t rows, int64_t n)
{
    int64_t group = n % 128 == 0 ? 128 : n;
    double product = (double)rows * (double)n * (double)n;
    struct operands o = {.w = filled(b, DTYPE_F32, rows, n, 5),
                         .h = empty(b, DTYPE_F32, n, n),
                         .u = empty(b, DTYPE_F32, n, n),
                         .scale = empty(b, DTYPE_F32, rows, n / group),
                         .zero = empty(b, DTYPE_F32, rows, n / group),
                         .codes = empty(b, DTYPE_U8, rows, n),
                         .work = empty(b, DTYPE_F32, rows, n),
                         .grid = {.bits = 4,
                                  .group_size = group,
                                  .mse = true,
                                  .norm = 3.0,
                                  .max_shrink = 0.8,
                                  .steps = 100,
                                  .scale_dtype = DTYPE_BF16}};
    fill_hessian(b, &o, n);
    run_factor(b, &o);
    double seconds = median_of(b, NULL, run_grid, &o);
    row("grid with search", rows, n, seconds, 1e-9 * (double)(rows * n) / seconds, "G weights/s", NULL);
    seconds = median_of(b, prepare_sweep, run_sweep, &o);
    row(n > 128 ? "sweep" : "sweep of one block, its kernel alone", rows, n, seconds, 1e9 * seconds / (double)n,
        "ns a column", NULL);
    if (n > 128) {
        row("sweep, its products", rows, n, seconds, 1e-12 * product / seconds, "TFLOP/s", &b->product);
        seconds = median_of(b, NULL, run_output_error, &o);
        row("output_error, both", rows, n, seconds, 2e-12 * product / seconds, "TFLOP/s", &b->product);
    }
    drop(b, &o);
}

static void open_device(struct bench *b, const char *device)
{
    must(gpu_open(device, 0, &b->gpu));
    b->ops = b->gpu.ops;
    must(b->ops->stream_new(b->gpu.device, &b->stream));
    printf("\n%s\n\n| operation | rows | columns | ms | rate | of the best |\n|---|---|---|---|---|---|\n",
           b->gpu.info.detail);
}

static void close_device(struct bench *b)
{
    b->ops->stream_free(b->stream);
    gpu_close(&b->gpu);
}

static void time_products(struct bench *b, int64_t h, int64_t f)
{
    const char *plain = "linear, weights BF16";

    time_linear(b, plain, DTYPE_BF16, b->tokens, h, h, &b->product);
    time_linear(b, plain, DTYPE_BF16, b->tokens, h, f, &b->product);
    time_linear(b, plain, DTYPE_BF16, b->tokens, f, h, &b->product);
    time_linear(b, plain, DTYPE_BF16, 4 * b->tokens, h, f, &b->product);
    time_linear(b, "linear, weights F32", DTYPE_F32, b->tokens, h, f, &b->product);
}

/* As the sweep calls them after each block of 128 columns, and a long one. */
static void time_products_f32(struct bench *b, int64_t h, int64_t f, int64_t block)
{
    time_linear(b, "F32 operands", DTYPE_F32, b->tokens, h, h, &b->product_f32);
    time_linear(b, "F32, behind a block", DTYPE_F32, 3 * h, block, h, &b->product_f32);
    time_linear(b, "F32, behind a block", DTYPE_F32, 2 * f, block, h, &b->product_f32);
    time_linear(b, "F32, behind a block", DTYPE_F32, h, block, f, &b->product_f32);
    value(b, "product_f32", b->product_f32);
}

static void time_all(struct bench *b, const char *device)
{
    int64_t h = 4096 / b->scale, f = 11008 / b->scale, wide = 14336 / b->scale;

    open_device(b, device);
    time_products(b, h, f);
    time_copies(b, f);
    for (int i = 0; i < 3; i++) {
        time_gram(b, (const int64_t[]){h, f, wide}[i]);
    }
    value(b, "product", b->product);
    time_elementwise(b, h, f);
    for (int i = 0; i < 4; i++) {
        time_factor(b, (const int64_t[]){h, 2 * h, f, wide}[i]);
    }
    time_sweep(b, 3 * h, 128);
    time_sweep(b, 3 * h, h);
    time_sweep(b, 2 * f, h);
    time_sweep(b, h, f);
    close_device(b);
    if (setenv("QUANTD_CUDA_MATH", "fp32", 1) != 0) {
        exit(EXIT_FAILURE);
    }
    open_device(b, device);
    time_products_f32(b, h, f, 128);
    close_device(b);
}

int main(int argc, char **argv)
{
    struct bench b = {.scale = argc > 3 ? atoll(argv[3]) : 1};
    struct gpu probe;

    if (argc < 3 || b.scale < 0 || b.scale > 32) {
        fprintf(stderr, "usage: bench_roofs DEVICE MODULE_DIR [SCALE [VALUES]], SCALE 0 to 32\n");
        return 2;
    }
    must(gpu_load_backends(argv[2]));
    if (gpu_open(argv[1], 0, &probe) != 0) {
        printf("no device '%s': %s", argv[1], gpu_backend_notes());
        return EXIT_SKIP;
    }
    printf("%s: %s, %s\n", probe.info.id, probe.info.name, probe.info.detail);
    gpu_close(&probe);
    if (b.scale == 0) {
        return EXIT_SUCCESS;
    }
    if (argc > 4 && (b.values = fopen(argv[4], "w")) == NULL) {
        perror(argv[4]);
        return EXIT_FAILURE;
    }
    b.tokens = 8192 / b.scale;
    time_all(&b, argv[1]);
    printf("\nBest: %.1f TFLOP/s with BF16 operands, %.1f with F32; copy %.0f GB/s, from the host %.1f, to it %.1f.\n",
           b.product, b.product_f32, b.copy, b.h2d, b.d2h);
    return b.values == NULL || fclose(b.values) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
