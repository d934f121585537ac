/* Cholesky factor and its inverse of one block of up to 128 x 128, by one sweep over the pivots, in the registers of
 * one block of threads.
 *
 * Step k divides by the pivot's root and takes what row k of the inverse and column k of the factor do to the rows
 * below: line holds the one left of the diagonal and the other right of it, so that both are one update. Afterwards row
 * k is the inverse's, and the factor's column k is not needed any more.
 *
 * Thread (y, x) holds rows y + 16 a and columns x + 32 b. The step's part of a and b is a constant in unrolled code,
 * and only the lines go through shared memory, two by turns, so that one barrier a step will do. */

#include "gpu/cuda/device.cuh"

#define SIZE LAUNCH_TRIANGLE
#define COLS WARP
#define ROWS 16
#define THREADS (ROWS * COLS)
#define HELD_ROWS (SIZE / ROWS)
#define HELD_COLS (SIZE / COLS)

struct held {
    float at[HELD_ROWS][HELD_COLS];
};

/* Of step k: the row left of the pivot, the pivot, the column below it, before any division. */
template <int A> static __device__ void put_line(float *line, const struct held &held, int k, int x, int y)
{
    const int B = A * ROWS / COLS;

    if (y == k % ROWS) {
#pragma unroll
        for (int b = 0; b <= B; b++) {
            if (x + b * COLS <= k) {
                line[x + b * COLS] = held.at[A][b];
            }
        }
    }
    if (x == k % COLS) {
#pragma unroll
        for (int a = A; a < HELD_ROWS; a++) {
            if (y + a * ROWS > k) {
                line[y + a * ROWS] = held.at[a][B];
            }
        }
    }
}

template <int A> static __device__ void update(struct held &held, const float *line, int k, int x, int y)
{
    const int B = A * ROWS / COLS;
    float d = 1.0f / sqrtf(line[k]), across[HELD_COLS];

#pragma unroll
    for (int b = 0; b < HELD_COLS; b++) {
        across[b] = x + b * COLS == k ? d : line[x + b * COLS] * d;
    }
#pragma unroll
    for (int a = A; a < HELD_ROWS; a++) {
        int row = y + a * ROWS;
        float down = line[row] * d;
#pragma unroll
        for (int b = 0; b < HELD_COLS; b++) {
            float saved = b == B && x + b * COLS == k ? 0.0f : held.at[a][b];
            float below = saved - down * across[b];
            held.at[a][b] = row > k ? below : row == k && x + b * COLS <= k ? across[b] : held.at[a][b];
        }
    }
}

/* Steps [16 A, 16 A + 16). */
template <int A>
static __device__ void steps(struct held &held, float lines[2][SIZE], int size, int64_t at, int *info, int x, int y)
{
    for (int k = A * ROWS; k < (A + 1) * ROWS && k < size; k++) {
        float *line = lines[k % 2];
        put_line<A>(line, held, k, x, y);
        __syncthreads();
        if (x == 0 && y == 0 && !(line[k] > 0.0f) && *info == 0) {
            *info = (int)(at + k + 1);
        }
        update<A>(held, line, k, x, y);
    }
}

static __global__ void __launch_bounds__(THREADS)
    triangle_kernel(float *inverse, const float *matrix, int64_t n, int64_t at, int size, int *info)
{
    __shared__ float lines[2][SIZE];
    int x = threadIdx.x % COLS, y = threadIdx.x / COLS;
    int64_t corner = at * n + at;
    struct held held;

    static_assert(HELD_ROWS == 8 && COLS % ROWS == 0, "the steps below");
#pragma unroll
    for (int a = 0; a < HELD_ROWS; a++) {
#pragma unroll
        for (int b = 0; b < HELD_COLS; b++) {
            int i = y + a * ROWS, j = x + b * COLS;
            held.at[a][b] = i < size && j <= i ? matrix[corner + i * n + j] : 0.0f;
        }
    }
    for (int i = threadIdx.x; i < 2 * SIZE; i += THREADS) {
        lines[i / SIZE][i % SIZE] = 0.0f; /* past the end nobody writes */
    }
    __syncthreads();
    steps<0>(held, lines, size, at, info, x, y);
    steps<1>(held, lines, size, at, info, x, y);
    steps<2>(held, lines, size, at, info, x, y);
    steps<3>(held, lines, size, at, info, x, y);
    steps<4>(held, lines, size, at, info, x, y);
    steps<5>(held, lines, size, at, info, x, y);
    steps<6>(held, lines, size, at, info, x, y);
    steps<7>(held, lines, size, at, info, x, y);
#pragma unroll
    for (int a = 0; a < HELD_ROWS; a++) {
#pragma unroll
        for (int b = 0; b < HELD_COLS; b++) {
            int i = y + a * ROWS, j = x + b * COLS;
            if (i < size && j <= i) {
                inverse[corner + i * n + j] = held.at[a][b];
            }
        }
    }
}

int launch_triangle(float *inverse, const float *matrix, int64_t n, int64_t at, int size, int *info,
                    cudaStream_t stream)
{
    launch(triangle_kernel, 1, THREADS, 0, stream, inverse, matrix, n, at, size, info);
    return (int)cudaGetLastError();
}
