/* The sizes that gpu/cpu's operations reserve: their tiles by shape, a slice for each thread. */

#include "gpu/scratch.h"

#define LINE 64

static int64_t scratch_lines(int64_t count, int64_t element)
{
    return (count * element + LINE - 1) / LINE * LINE;
}

static int64_t scratch_floats(int64_t count)
{
    return scratch_lines(count, sizeof(float));
}

static int64_t scratch_tiles(int64_t count, int64_t tile)
{
    return (count + tile - 1) / tile;
}

static int64_t scratch_of(int threads, int64_t shared, int64_t slice)
{
    return threads > 0 ? shared + threads * slice : 0;
}

int64_t gpu_scratch_attention(int threads, int64_t length, int64_t reach)
{
    enum { QUERIES = 64 };
    int64_t span = reach < length - QUERIES ? reach + QUERIES : length;

    return scratch_of(threads, 0, scratch_floats(span * QUERIES));
}

int64_t gpu_scratch_linear(int threads, int64_t cols)
{
    enum { ROWS = 256 };

    return scratch_of(threads, 0, scratch_floats(ROWS * cols));
}

/* Rows by elements of the sum, rounded to BF16 and packed. */
static int64_t scratch_packed(int64_t rows, int64_t sum)
{
    enum { TILE_ROWS = 16, TILE_SUM = 32, BF16 = 2 };

    return scratch_tiles(rows, TILE_ROWS) * scratch_tiles(sum, TILE_SUM) * TILE_ROWS * TILE_SUM * BF16;
}

int64_t gpu_scratch_rounded_linear(int threads, int64_t tokens, int64_t rows, int64_t cols)
{
    enum { CHUNK = 2048, TILE = 128 };

    return scratch_of(threads, scratch_packed(tokens < CHUNK ? tokens : CHUNK, cols),
                      scratch_packed(rows < TILE ? rows : TILE, cols));
}

int64_t gpu_scratch_rounded_gram(int threads, int64_t tokens, int64_t cols)
{
    enum { CHUNK = 2048 };

    return scratch_of(threads, 2 * scratch_packed(cols, tokens < CHUNK ? tokens : CHUNK), 0);
}

int64_t gpu_scratch_factor(int threads, int64_t n)
{
    enum { BLOCK = 256, COLUMNS = 128 };

    return scratch_of(threads, scratch_floats(BLOCK * n), scratch_floats(BLOCK * COLUMNS));
}

int64_t gpu_scratch_sweep(int threads, int64_t rows, int64_t cols, int64_t group_size)
{
    enum { LANES = 16, TALL = 256, MANY = 4096, BLOCK = 128 };
    int64_t tile = rows >= MANY ? TALL : TALL / 2, groups = cols / group_size;
    int64_t slice = scratch_floats(cols * (tile + LANES)) + 2 * scratch_floats(groups * tile) + BLOCK * LANES;

    return scratch_of(threads, scratch_lines(scratch_tiles(rows, tile), sizeof(double)) + scratch_floats(cols), slice);
}

int64_t gpu_scratch_descend(int threads, int64_t rows, int64_t cols, int64_t group_size)
{
    enum { ROWS = 128 };
    int64_t sums = scratch_lines(scratch_tiles(rows, ROWS), sizeof(double));

    return scratch_of(threads, 2 * sums + scratch_floats(cols),
                      scratch_floats(ROWS * cols) + 3 * scratch_floats(ROWS * group_size));
}

int64_t gpu_scratch_descend_both(int threads, int64_t rows, int64_t cols, int64_t group_size)
{
    enum { TILE = 64, BLOCK = 64 };
    int64_t weights = scratch_floats(rows * cols), group = scratch_floats(rows * group_size);

    return scratch_of(threads,
                      2 * weights + 2 * group + scratch_floats(BLOCK * rows) +
                          scratch_lines(scratch_tiles(rows, TILE), sizeof(double)),
                      0);
}

int64_t gpu_scratch_clip(int threads, int64_t group_size)
{
    enum { ROWS = 32 };

    return scratch_of(threads, 0, scratch_floats(2 * ROWS * group_size) + scratch_lines(group_size, 1));
}

int64_t gpu_scratch_solve(int threads, int64_t cols)
{
    enum { ROWS = 64 };

    return scratch_of(threads, 0, scratch_floats(ROWS * cols));
}

int64_t gpu_scratch_output_error(int threads, int64_t rows, int64_t cols)
{
    enum { ROWS = 128, COLUMNS = 256 };

    return scratch_of(threads, scratch_lines(2 * scratch_tiles(rows, ROWS), sizeof(double)),
                      scratch_floats(2 * ROWS * (COLUMNS + cols)));
}

int64_t gpu_scratch_cluster(int threads, int64_t cols, int bits)
{
    enum { POINT = 16 };

    return scratch_of(threads, 0,
                      scratch_lines(cols, POINT) + 5 * scratch_lines(cols + 1, sizeof(double)) +
                          scratch_floats(((int64_t)1 << bits) * (cols + 1)));
}

int64_t gpu_scratch_code_search(int threads, int64_t rows, int64_t cols, int64_t group, int books, int bits)
{
    enum { LANES = 16, ROWS = 32, COLUMNS = 128 };
    int64_t stride = scratch_tiles((int64_t)1 << bits, LANES) * LANES, groups = cols / group;
    int64_t block = COLUMNS / group < groups ? COLUMNS / group : groups;

    return scratch_of(threads,
                      scratch_floats(books * group * stride) + scratch_floats(block * books * stride) +
                          scratch_lines(scratch_tiles(rows, ROWS), sizeof(double)),
                      scratch_floats(ROWS * block * group));
}

int64_t gpu_scratch_code_reduce(int threads, int64_t group, int books, int bits)
{
    enum { SLICES = 8 };

    return scratch_of(threads, scratch_lines(SLICES * books * ((int64_t)1 << bits) * group, sizeof(double)), 0);
}
