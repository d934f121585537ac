/* Products of BF16 operands with F32 sums: linear, gram and cross on devices that have instructions for them.
 *
 * The left operand is packed by all threads first, up to CHUNK rows of x or of the sum at a time, which bounds the
 * memory; the right one of `linear` by each task for itself, since a weight meets all rows of the chunk there. Tasks
 * may be cut in any way (gpu/cpu/products.h), so they are cut by the number of threads too. */

#include "gpu/cpu/products.h"

#include "gpu/cpu/internal.h"

#include <string.h>

#define CHUNK 2048   /* rows of x that are packed at a time */
#define N_TILE 128   /* rows of w in a task */
#define T_TILE 256   /* rows of x in a task, at least */
#define PACK_ROWS 64 /* rows or columns that a task packs */
#define SUM_TILES 24 /* of the sum that are multiplied before the next ones: they stay in the first-level cache */
#define ROW_PANEL 512

/* Packed rows, `tiles` tiles each block of 16. */
struct operand {
    uint16_t *data;
    int64_t tiles;
};

static uint16_t *operand_rows(const struct operand *o, int64_t row)
{
    return o->data + row / PRODUCTS_ROWS * o->tiles * PRODUCTS_TILE;
}

static int64_t operand_size(int64_t rows, int64_t sum)
{
    return tiles_of(rows, PRODUCTS_ROWS) * tiles_of(sum, PRODUCTS_SUM) * PRODUCTS_TILE;
}

/* A part of a product: c[rows, cols] from packed rows on both sides. */
struct region {
    const struct products *products;
    struct operand left, right;
    float *c;
    int64_t ld, rows, cols;
    bool add;   /* c += */
    bool upper; /* only blocks that reach the diagonal or are above it */
};

/* One block of c, which may have fewer than 32 rows or columns: those that it lacks are made in a buffer. */
static void region_block(const struct region *r, int64_t m, int64_t n, int64_t first, int64_t tiles)
{
    int64_t rows = r->rows - m < PRODUCTS_BLOCK ? r->rows - m : PRODUCTS_BLOCK;
    int64_t cols = r->cols - n < PRODUCTS_BLOCK ? r->cols - n : PRODUCTS_BLOCK;
    int64_t second_row = rows > PRODUCTS_ROWS ? m + PRODUCTS_ROWS : m;
    int64_t second_col = cols > PRODUCTS_ROWS ? n + PRODUCTS_ROWS : n;
    int64_t skip = first * PRODUCTS_TILE;
    const uint16_t *a[2] = {operand_rows(&r->left, m) + skip, operand_rows(&r->left, second_row) + skip};
    const uint16_t *b[2] = {operand_rows(&r->right, n) + skip, operand_rows(&r->right, second_col) + skip};
    float *c = r->c + m * r->ld + n;
    bool add = r->add || first > 0;

    if (rows == PRODUCTS_BLOCK && cols == PRODUCTS_BLOCK) {
        r->products->block(tiles, a, b, c, r->ld, add);
        return;
    }
    float buffer[PRODUCTS_BLOCK * PRODUCTS_BLOCK] __attribute__((aligned(64))) = {0};
    for (int64_t i = 0; i < rows && add; i++) {
        memcpy(buffer + i * PRODUCTS_BLOCK, c + i * r->ld, (size_t)cols * sizeof(*c));
    }
    r->products->block(tiles, a, b, buffer, PRODUCTS_BLOCK, add);
    for (int64_t i = 0; i < rows; i++) {
        memcpy(c + i * r->ld, buffer + i * PRODUCTS_BLOCK, (size_t)cols * sizeof(*c));
    }
}

static void region_panel(const struct region *r, int64_t begin, int64_t end)
{
    for (int64_t first = 0; first < r->left.tiles; first += SUM_TILES) {
        int64_t tiles = r->left.tiles - first < SUM_TILES ? r->left.tiles - first : SUM_TILES;
        for (int64_t m = begin; m < end; m += PRODUCTS_BLOCK) {
            for (int64_t n = r->upper ? m : 0; n < r->cols; n += PRODUCTS_BLOCK) {
                region_block(r, m, n, first, tiles);
            }
        }
    }
}

static void region_multiply(const struct region *r)
{
    r->products->begin();
    for (int64_t m = 0; m < r->rows; m += ROW_PANEL) {
        region_panel(r, m, r->rows - m < ROW_PANEL ? r->rows : m + ROW_PANEL);
    }
    r->products->end();
}

/* --- packing by all threads */

struct pack {
    enum products_side side;
    struct operand to;
    const float *x;
    int64_t ld, rows, count; /* rows: to pack; count: elements of the sum */
    bool columns;            /* of x, else rows */
};

static void pack_task(void *ctx, int64_t task)
{
    const struct pack *job = ctx;
    int64_t end = task * PACK_ROWS + tile_size(job->rows, PACK_ROWS, task);

    for (int64_t row = task * PACK_ROWS; row < end; row += PRODUCTS_ROWS) {
        int64_t rows = end - row < PRODUCTS_ROWS ? end - row : PRODUCTS_ROWS;
        if (job->columns) {
            products_pack_columns(job->side, operand_rows(&job->to, row), job->x + row, job->ld, rows, job->count);
        } else {
            products_pack_rows(job->side, operand_rows(&job->to, row), DTYPE_F32, job->x + row * job->ld, job->ld, rows,
                               job->count);
        }
    }
}

static void pack_all(struct gpu_stream *stream, struct pack *job)
{
    job->to.tiles = tiles_of(job->count, PRODUCTS_SUM);
    stream_run(stream, tiles_of(job->rows, PACK_ROWS), pack_task, job);
}

/* --- linear */

struct bf16_linear {
    struct gpu_stream *stream;
    struct operand left;
    float *y;
    const struct tensor *w;
    const float *bias;
    int64_t rows, in, out, t_tile;
};

static void bf16_linear_task(void *ctx, int64_t task)
{
    const struct bf16_linear *job = ctx;
    int64_t out_tiles = tiles_of(job->out, N_TILE), t = task / out_tiles * job->t_tile, n = task % out_tiles * N_TILE;
    struct region region = {.products = job->stream->device->products,
                            .left = {operand_rows(&job->left, t), job->left.tiles},
                            .right = {scratch_slice(job->stream), job->left.tiles},
                            .c = job->y + t * job->out + n,
                            .ld = job->out,
                            .rows = tile_size(job->rows, job->t_tile, task / out_tiles),
                            .cols = tile_size(job->out, N_TILE, task % out_tiles),
                            .add = job->bias != NULL};

    for (int64_t i = 0; i < region.cols; i += PRODUCTS_ROWS) {
        const char *from = (const char *)job->w->data + (n + i) * job->in * (int64_t)dtype_rows[job->w->dtype].bytes;
        products_pack_rows(PRODUCTS_RIGHT, operand_rows(&region.right, i), job->w->dtype, from, job->in,
                           region.cols - i < PRODUCTS_ROWS ? region.cols - i : PRODUCTS_ROWS, job->in);
    }
    for (int64_t i = 0; i < region.rows && region.add; i++) {
        memcpy(region.c + i * job->out, job->bias + n, (size_t)region.cols * sizeof(float));
    }
    region_multiply(&region);
}

int products_linear(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, const struct tensor *w,
                    const struct tensor *bias)
{
    int64_t total = matrix_rows(x), in = matrix_cols(x), out = matrix_rows(w);
    int64_t wanted = 4 * (int64_t)pool_threads(stream->device->pool);

    TRY(scratch_reserve(stream, scratch_size(operand_size(total < CHUNK ? total : CHUNK, in), sizeof(uint16_t)),
                        scratch_size(operand_size(out < N_TILE ? out : N_TILE, in), sizeof(uint16_t))));
    for (int64_t first = 0; first < total; first += CHUNK) {
        struct pack pack = {.side = PRODUCTS_LEFT,
                            .to.data = scratch_shared(stream),
                            .x = (const float *)x->data + first * in,
                            .ld = in,
                            .rows = total - first < CHUNK ? total - first : CHUNK,
                            .count = in};
        pack_all(stream, &pack);
        struct bf16_linear job = {.stream = stream,
                                  .left = pack.to,
                                  .y = (float *)y->data + first * out,
                                  .w = w,
                                  .bias = bias != NULL ? bias->data : NULL,
                                  .rows = pack.rows,
                                  .in = in,
                                  .out = out,
                                  .t_tile = CHUNK};
        while (job.t_tile > T_TILE && tiles_of(job.rows, job.t_tile) * tiles_of(out, N_TILE) < wanted) {
            job.t_tile /= 2;
        }
        stream_run(stream, tiles_of(job.rows, job.t_tile) * tiles_of(out, N_TILE), bf16_linear_task, &job);
    }
    return 0;
}

/* --- gram and cross */

struct bf16_cross {
    const struct products *products;
    struct operand left, right;
    float *c;
    int64_t m, k, tile, across; /* across: tiles along k */
    bool upper;                 /* the square's upper triangle */
};

/* The task-th tile: of a square those on the diagonal last, since they take half as long. */
static void cross_place(const struct bf16_cross *job, int64_t task, int64_t *i, int64_t *j)
{
    int64_t pairs = job->across * (job->across - 1) / 2;

    if (!job->upper) {
        *i = task / job->across;
        *j = task % job->across;
    } else if (task >= pairs) {
        *i = *j = task - pairs;
    } else {
        gram_pair(task, job->across, i, j);
    }
}

static void bf16_cross_task(void *ctx, int64_t task)
{
    const struct bf16_cross *job = ctx;
    int64_t i, j;

    cross_place(job, task, &i, &j);
    const struct region region = {.products = job->products,
                                  .left = {operand_rows(&job->left, i * job->tile), job->left.tiles},
                                  .right = {operand_rows(&job->right, j * job->tile), job->right.tiles},
                                  .c = job->c + i * job->tile * job->k + j * job->tile,
                                  .ld = job->k,
                                  .rows = tile_size(job->m, job->tile, i),
                                  .cols = tile_size(job->k, job->tile, j),
                                  .add = true,
                                  .upper = job->upper && i == j};
    region_multiply(&region);
}

int products_cross(struct gpu_stream *stream, const struct tensor *c, const struct tensor *a, const struct tensor *b,
                   bool upper)
{
    int64_t rows = matrix_rows(a), m = matrix_cols(a), k = matrix_cols(b);
    size_t left = scratch_size(operand_size(m, rows < CHUNK ? rows : CHUNK), sizeof(uint16_t));
    size_t right = scratch_size(operand_size(k, rows < CHUNK ? rows : CHUNK), sizeof(uint16_t));

    TRY(scratch_reserve(stream, left <= SIZE_MAX - right ? left + right : SIZE_MAX, 0));
    for (int64_t first = 0; first < rows; first += CHUNK) {
        int64_t count = rows - first < CHUNK ? rows - first : CHUNK;
        struct pack packs[2] = {{.side = PRODUCTS_LEFT,
                                 .to.data = scratch_shared(stream),
                                 .x = (const float *)a->data + first * m,
                                 .ld = m,
                                 .rows = m,
                                 .count = count,
                                 .columns = true},
                                {.side = PRODUCTS_RIGHT,
                                 .to.data = (uint16_t *)scratch_shared(stream) + left / sizeof(uint16_t),
                                 .x = (const float *)b->data + first * k,
                                 .ld = k,
                                 .rows = k,
                                 .count = count,
                                 .columns = true}};
        pack_all(stream, &packs[0]);
        pack_all(stream, &packs[1]);
        struct bf16_cross job = {.products = stream->device->products,
                                 .left = packs[0].to,
                                 .right = packs[1].to,
                                 .c = c->data,
                                 .m = m,
                                 .k = k,
                                 .tile = gram_tile_size(k),
                                 .upper = upper};
        job.across = tiles_of(k, job.tile);
        int64_t tasks = upper ? job.across * (job.across + 1) / 2 : tiles_of(m, job.tile) * job.across;
        stream_run(stream, tasks, bf16_cross_task, &job);
    }
    return 0;
}
