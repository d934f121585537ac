/* Weights as sums of codebook vectors: row n, group i of g inputs is scale_n * sum_m C_m[code(n,i,m)].
 *
 * code_search lowers tr(D H D^T), D = W - W^ [N, K], one group of a row at a time with all others fixed (Egiazarian et
 * al. 2024, arXiv 2401.06118, §3.2; coordinate descent, or a small beam over the codebooks of the group). With v the
 * group's sum of vectors, s its row's scale and t = (D H)_i + s v H_ii what the group is asked for,
 *   loss(v) = const + s^2 v^T H_ii v - 2 s v^T t,
 * so a code costs s^2 C^T H_ii C, which is the same for all rows, and a dot product of g terms. The codes that are
 * there always compete and give way to lower losses alone. Without H the objective is sum f_j d_j^2: H_ii = diag f, and
 * groups do not see each other.
 *
 * Rows are independent: a task takes a tile of them. Columns go in blocks of about 128: D H for a block is one product
 * when the block is entered, and inside it each group's change is passed on to the block's other columns. The costs of
 * a block's codes are computed before its tasks start. */

#include "gpu/cpu/internal.h"

#include <math.h>
#include <string.h>

#define ROW_TILE 32
#define BLOCK_COLUMNS 128
#define CHUNK_CODES 1024

static int64_t codebook_padded(int64_t count)
{
    return (count + LANES - 1) / LANES * LANES;
}

struct search {
    struct gpu_stream *stream;
    uint16_t *entries;
    float *d;
    const float *scale, *table, *h, *importance;
    int64_t rows, cols, groups, g, codes, stride; /* codes of a codebook, padded */
    int books, beam;
    float *turned;                    /* [books][g][stride]: the codebooks, codes along the row */
    float *costs;                     /* [groups of a block][books][stride]: C^T H_ii C */
    double *gains;                    /* [tiles], summed over blocks */
    int64_t first_group, group_count; /* of the block */
};

/* H_ii, or diag f. */
static void group_metric(const struct search *job, int64_t group, float *m)
{
    for (int64_t a = 0; a < job->g; a++) {
        for (int64_t b = 0; b < job->g; b++) {
            int64_t row = group * job->g + a, col = group * job->g + b;
            float weight = job->importance != NULL ? job->importance[row] : 1.0f;
            m[a * job->g + b] = job->h != NULL ? job->h[row * job->cols + col] : a == b ? weight : 0.0f;
        }
    }
}

/* One codebook under one group's metric. */
static void cost_task(void *ctx, int64_t task)
{
    const struct search *job = ctx;
    int64_t group = task / job->books, book = task % job->books, g = job->g;
    const float *turned = job->turned + book * g * job->stride;
    float *costs = job->costs + task * job->stride;
    float m[GPU_CODE_GROUP_MAX * GPU_CODE_GROUP_MAX], sum[LANES];

    group_metric(job, job->first_group + group, m);
    for (int64_t c = 0; c < job->stride; c += LANES) {
        memset(costs + c, 0, sizeof(sum));
        for (int64_t a = 0; a < g; a++) {
            memset(sum, 0, sizeof(sum));
            for (int64_t b = 0; b < g; b++) {
                for (int64_t l = 0; l < LANES; l++) {
                    sum[l] += m[a * g + b] * turned[b * job->stride + c + l];
                }
            }
            for (int64_t l = 0; l < LANES; l++) {
                costs[c + l] += sum[l] * turned[a * job->stride + c + l];
            }
        }
    }
}

/* A way to code one group. */
struct state {
    float score; /* loss(v) less its constant */
    float v[GPU_CODE_GROUP_MAX];
    uint16_t codes[GPU_CODE_BOOKS_MAX];
};

struct found {
    float score;
    int32_t code, parent;
};

/* Keep the best `beam` of what is found, ties in order of coming. */
static void beam_keep(struct found *best, int *count, int beam, struct found one)
{
    int at = *count < beam ? (*count)++ : beam - 1;

    while (at > 0 && best[at - 1].score > one.score) {
        best[at] = best[at - 1];
        at--;
    }
    best[at] = one;
}

/* All codes of one codebook in a state's place: score(c) = base + s^2 cost(c) + q c^T */
static void scan(const struct search *job, const float *costs, const float *turned, float weight, const float *query,
                 float base, int parent, struct found *best, int *count)
{
    const struct kernels *kernels = job->stream->device->kernels;
    float scores[CHUNK_CODES];

    for (int64_t first = 0; first < job->codes; first += CHUNK_CODES) {
        int64_t n = job->codes - first < CHUNK_CODES ? job->codes - first : CHUNK_CODES;
        kernels->code_scores(scores, turned + first, job->stride, n, costs + first, weight, query, job->g);
        for (int i = 0; i < job->beam && i < n; i++) {
            int64_t at = kernels->argmin(scores, n);
            float score = base + scores[at];
            if (*count == job->beam && !(score < best[*count - 1].score)) {
                break;
            }
            beam_keep(best, count, job->beam, (struct found){score, (int32_t)(first + at), parent});
            scores[at] = INFINITY;
        }
    }
}

struct group_work {
    const float *costs; /* [books][stride] */
    float m[GPU_CODE_GROUP_MAX * GPU_CODE_GROUP_MAX];
    float t[GPU_CODE_GROUP_MAX]; /* what the group is asked for */
    float s;
};

static float loss_of(const struct group_work *work, int64_t g, const float *v)
{
    float sum = 0;

    for (int64_t a = 0; a < g; a++) {
        float dot = 0;
        for (int64_t b = 0; b < g; b++) {
            dot += work->m[a * g + b] * v[b];
        }
        sum += v[a] * (work->s * dot - 2.0f * work->t[a]);
    }
    return work->s * sum;
}

/* query = 2 s (s H u - t), where u is v without one codebook's vector. */
static void make_query(const struct group_work *work, int64_t g, const float *u, float *query)
{
    for (int64_t a = 0; a < g; a++) {
        float dot = 0;
        for (int64_t b = 0; b < g; b++) {
            dot += work->m[a * g + b] * u[b];
        }
        query[a] = 2.0f * work->s * (work->s * dot - work->t[a]);
    }
}

/* One codebook's code chosen again in each state; states becomes the best of the results. */
static void beam_advance(const struct search *job, const struct group_work *work, int book, struct state *states,
                         int *count)
{
    struct found best[GPU_CODE_BEAM_MAX];
    struct state next[GPU_CODE_BEAM_MAX];
    const float *table = job->table + (int64_t)book * job->codes * job->g;
    float u[GPU_CODE_BEAM_MAX][GPU_CODE_GROUP_MAX], query[GPU_CODE_GROUP_MAX];
    int survivors = 0;

    for (int i = 0; i < *count; i++) {
        for (int64_t a = 0; a < job->g; a++) {
            u[i][a] = states[i].v[a] - table[states[i].codes[book] * job->g + a];
        }
        make_query(work, job->g, u[i], query);
        scan(job, work->costs + book * job->stride, job->turned + book * job->g * job->stride, work->s * work->s, query,
             loss_of(work, job->g, u[i]), i, best, &survivors);
    }
    for (int i = 0; i < survivors; i++) {
        next[i] = states[best[i].parent];
        next[i].score = best[i].score;
        next[i].codes[book] = (uint16_t)best[i].code;
        for (int64_t a = 0; a < job->g; a++) {
            next[i].v[a] = u[best[i].parent][a] + table[best[i].code * job->g + a];
        }
    }
    memcpy(states, next, (size_t)survivors * sizeof(*states));
    *count = survivors;
}

/* The sum of a group's vectors, in the order in which readers add them. */
static void add_vectors(const struct search *job, const uint16_t *codes, float *v)
{
    memset(v, 0, (size_t)job->g * sizeof(*v));
    for (int book = 0; book < job->books; book++) {
        const float *vector = job->table + ((int64_t)book * job->codes + codes[book]) * job->g;
        for (int64_t a = 0; a < job->g; a++) {
            v[a] += vector[a];
        }
    }
}

/* Better codes for one group of one row; change = D's change. Returns what it gained, 0 when nothing changes. */
static float codebook_group(const struct search *job, struct group_work *work, uint16_t *codes, const float *product,
                            float *change)
{
    struct state states[GPU_CODE_BEAM_MAX];
    float v[GPU_CODE_GROUP_MAX];
    int count = 1;

    add_vectors(job, codes, v);
    for (int64_t a = 0; a < job->g; a++) {
        float dot = 0;
        for (int64_t b = 0; b < job->g; b++) {
            dot += work->m[a * job->g + b] * v[b];
        }
        work->t[a] = product[a] + work->s * dot;
    }
    memcpy(states[0].v, v, (size_t)job->g * sizeof(*v));
    memcpy(states[0].codes, codes, (size_t)job->books * sizeof(*codes));
    float before = loss_of(work, job->g, v);
    for (int book = 0; book < job->books; book++) {
        beam_advance(job, work, book, states, &count);
    }
    if (memcmp(states[0].codes, codes, (size_t)job->books * sizeof(*codes)) == 0) {
        return 0;
    }
    add_vectors(job, states[0].codes, states[0].v);
    float after = loss_of(work, job->g, states[0].v);
    if (!(after < before)) {
        return 0;
    }
    memcpy(codes, states[0].codes, (size_t)job->books * sizeof(*codes));
    for (int64_t a = 0; a < job->g; a++) {
        change[a] = work->s * (v[a] - states[0].v[a]);
    }
    return before - after;
}

/* D H for the tile's rows in the block's columns: product [ROW_TILE, BLOCK_COLUMNS or g]. */
static void block_product(const struct search *job, const float *d, int64_t rows, float *product, int64_t width)
{
    int64_t col = job->first_group * job->g;

    if (job->h != NULL) {
        blas_gemm(0, 0, (int)rows, (int)width, (int)job->cols, 1.0f, d, (int)job->cols, job->h + col, (int)job->cols,
                  0.0f, product, (int)width);
        return;
    }
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t k = 0; k < width; k++) {
            float weight = job->importance != NULL ? job->importance[col + k] : 1.0f;
            product[r * width + k] = d[r * job->cols + col + k] * weight;
        }
    }
}

/* product += change H[group, block]; the group's own columns are not read again. */
static void pass_on(const struct search *job, int64_t group, const float *change, float *product, int64_t width)
{
    int64_t col = job->first_group * job->g;

    for (int64_t a = 0; job->h != NULL && a < job->g; a++) {
        const float *row = job->h + (group * job->g + a) * job->cols + col;
        for (int64_t k = 0; k < width; k++) {
            product[k] += change[a] * row[k];
        }
    }
}

static void search_tile(void *ctx, int64_t task)
{
    const struct search *job = ctx;
    int64_t first = task * ROW_TILE, rows = tile_size(job->rows, ROW_TILE, task), width = job->group_count * job->g;
    float *product = scratch_slice(job->stream), change[GPU_CODE_GROUP_MAX] = {0};
    struct group_work work;
    double gain = 0;

    block_product(job, job->d + first * job->cols, rows, product, width);
    for (int64_t i = 0; i < job->group_count; i++) {
        int64_t group = job->first_group + i;
        group_metric(job, group, work.m);
        work.costs = job->costs + i * job->books * job->stride;
        for (int64_t r = 0; r < rows; r++) {
            uint16_t *codes = job->entries + ((first + r) * job->groups + group) * job->books;
            work.s = job->scale != NULL ? job->scale[first + r] : 1.0f;
            float won = codebook_group(job, &work, codes, product + r * width + i * job->g, change);
            if (won > 0) {
                float *d = job->d + (first + r) * job->cols + group * job->g;
                for (int64_t a = 0; a < job->g; a++) {
                    d[a] += change[a];
                }
                pass_on(job, group, change, product + r * width, width);
                gain += (double)won;
            }
        }
    }
    job->gains[task] += gain;
}

static void turn_tables(const struct search *job)
{
    memset(job->turned, 0, (size_t)(job->books * job->g * job->stride) * sizeof(float));
    for (int64_t book = 0; book < job->books; book++) {
        for (int64_t c = 0; c < job->codes; c++) {
            for (int64_t a = 0; a < job->g; a++) {
                job->turned[(book * job->g + a) * job->stride + c] = job->table[(book * job->codes + c) * job->g + a];
            }
        }
    }
}

static int codebook_prepare(struct search *job, int64_t block)
{
    size_t turned = scratch_size(job->books * job->g * job->stride, sizeof(float));
    size_t costs = scratch_size(block * job->books * job->stride, sizeof(float));
    size_t gains = scratch_size(tiles_of(job->rows, ROW_TILE), sizeof(double));
    int64_t width = block * job->g;

    TRY(scratch_reserve(job->stream, turned + costs + gains, scratch_size(ROW_TILE * width, sizeof(float))));
    char *shared = scratch_shared(job->stream);
    job->turned = (float *)(void *)shared;
    job->costs = (float *)(void *)(shared + turned);
    job->gains = (double *)(void *)(shared + turned + costs);
    memset(job->gains, 0, gains);
    turn_tables(job);
    return 0;
}

int cpu_code_search(struct gpu_stream *stream, const struct tensor *entries, const struct tensor *d,
                    const struct tensor *scale, const struct tensor *table, const struct tensor *h,
                    const struct tensor *importance, const struct gpu_codebook *spec, double *gain)
{
    struct search job = {.stream = stream,
                         .entries = entries->data,
                         .d = d->data,
                         .scale = scale != NULL ? scale->data : NULL,
                         .table = table->data,
                         .h = h != NULL ? h->data : NULL,
                         .importance = importance != NULL ? importance->data : NULL,
                         .rows = matrix_rows(d),
                         .cols = matrix_cols(d),
                         .g = spec->group_size,
                         .books = spec->codebooks,
                         .beam = spec->beam > 0 ? spec->beam : 1};
    job.groups = job.cols / job.g;
    job.codes = (int64_t)1 << spec->bits;
    job.stride = codebook_padded(job.codes);
    int64_t block = BLOCK_COLUMNS / job.g < job.groups ? BLOCK_COLUMNS / job.g : job.groups;
    TRY(codebook_prepare(&job, block));
    for (int64_t first = 0; first < job.groups; first += block) {
        job.first_group = first;
        job.group_count = job.groups - first < block ? job.groups - first : block;
        stream_run(stream, job.group_count * job.books, cost_task, &job);
        stream_run(stream, tiles_of(job.rows, ROW_TILE), search_tile, &job);
    }
    double sum = 0;
    for (int64_t i = 0; i < tiles_of(job.rows, ROW_TILE); i++) {
        sum += job.gains[i];
    }
    *gain = sum;
    return 0;
}
