/* The kernels of gpu/cuda as plain loops: what goes between products, sums and copies. Grids and sweeps are in
 * shim_solve.c. */

#include "tests/unit/gpu/cuda/shim.h"

#include "gpu/cuda/launch.h"
#include "gpu/tensor.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static float load(const void *x, enum dtype dtype, int64_t i)
{
    return dtype == DTYPE_F32   ? ((const float *)x)[i]
           : dtype == DTYPE_F16 ? dtype_f16_to_f32(((const uint16_t *)x)[i])
                                : dtype_bf16_to_f32(((const uint16_t *)x)[i]);
}

static void store(void *y, enum dtype dtype, int64_t i, float value)
{
    if (dtype == DTYPE_F32) {
        ((float *)y)[i] = value;
    } else {
        ((uint16_t *)y)[i] = dtype == DTYPE_F16 ? dtype_f32_to_f16(value) : dtype_f32_to_bf16(value);
    }
}

#define ENTER()                         \
    do {                                \
        cudaError_t rc_ = shim_enter(); \
        if (rc_ != cudaSuccess) {       \
            return (int)rc_;            \
        }                               \
        shim_flush();                   \
    } while (0)

int launch_convert(void *y, enum dtype y_dtype, const void *x, enum dtype x_dtype, int64_t count, cudaStream_t stream)
{
    ENTER();
    for (int64_t i = 0; i < count; i++) {
        store(y, y_dtype, i, load(x, x_dtype, i));
    }
    return 0;
}

int launch_find_nonfinite(int64_t *index, const void *x, enum dtype dtype, int64_t count, cudaStream_t stream)
{
    ENTER();
    *index = INT64_MAX;
    for (int64_t i = 0; i < count && *index == INT64_MAX; i++) {
        *index = isfinite(load(x, dtype, i)) ? INT64_MAX : i;
    }
    return 0;
}

int launch_embed(float *y, const void *table, enum dtype dtype, const int32_t *ids, int64_t tokens, int64_t width,
                 cudaStream_t stream)
{
    ENTER();
    for (int64_t i = 0; i < tokens * width; i++) {
        y[i] = load(table, dtype, ids[i / width] * width + i % width);
    }
    return 0;
}

int launch_norm(float *y, const float *x, const float *weight, const float *bias, const struct launch_norm *spec,
                cudaStream_t stream)
{
    ENTER();
    float offset = spec->unit_offset ? 1.0f : 0.0f;
    for (int64_t at = 0; at < spec->groups * spec->size; at += spec->size) {
        double mean = 0, sum = 0;
        for (int64_t i = 0; i < spec->size && spec->layer; i++) {
            mean += (double)x[at + i] / (double)spec->size;
        }
        for (int64_t i = 0; i < spec->size; i++) {
            sum += ((double)x[at + i] - mean) * ((double)x[at + i] - mean);
        }
        float factor = (float)(1.0 / sqrt(sum / (double)spec->size + (double)spec->eps));
        for (int64_t i = 0; i < spec->size; i++) {
            float scaled = (float)((double)x[at + i] - mean) * factor;
            scaled *= weight != NULL ? offset + weight[i] : 1.0f;
            y[at + i] = bias != NULL ? scaled + bias[i] : scaled;
        }
    }
    return 0;
}

int launch_rope(float *x, const float *cosine, const float *sine, const struct launch_rope *spec, cudaStream_t stream)
{
    ENTER();
    int64_t half = spec->rotated / 2;
    for (int64_t at = 0; at < spec->rows * spec->cols; at += spec->head_dim) {
        int64_t position = at / spec->cols % spec->length;
        for (int64_t i = 0; i < half; i++) {
            int64_t low = at + (spec->interleaved ? 2 * i : i), high = low + (spec->interleaved ? 1 : half);
            float a = x[low], b = x[high];
            float c = cosine[position * half + i], s = sine[position * half + i] * spec->turn;
            x[low] = a * c - b * s;
            x[high] = b * c + a * s;
        }
    }
    return 0;
}

int launch_copy_columns(float *y, const float *x, const struct launch_columns *spec, cudaStream_t stream)
{
    ENTER();
    for (int64_t i = 0; i < spec->rows * spec->heads * spec->count; i++) {
        int64_t col = i % spec->count, head = i / spec->count % spec->heads, row = i / spec->count / spec->heads;
        y[row * spec->to_cols + head * spec->to_stride + spec->to + col] =
            x[row * spec->from_cols + head * spec->from_stride + spec->from + col];
    }
    return 0;
}

static double shim_activated(double g, double u, enum gpu_activation activation)
{
    double low = fmin(g, 7), cut = fmin(fmax(u, -7), 7);

    switch (activation) {
    case GPU_GELU:
        return g / 2 * erfc(-g / sqrt(2)) * u;
    case GPU_GELU_TANH:
        return g / 2 * (1 + tanh(sqrt(2 / acos(-1)) * (g + 0.044715 * g * g * g))) * u;
    case GPU_RELU:
        return fmax(g, 0) * u;
    case GPU_RELU2:
        return fmax(g, 0) * fmax(g, 0) * u;
    case GPU_SIGMOID:
        return u / (exp(-g) + 1);
    default:
        return low / (exp(-1.702 * low) + 1) * (cut + 1);
    }
}

int launch_activate(float *y, const float *gate, int one, const float *up, int64_t count, int64_t cols,
                    enum gpu_activation activation, cudaStream_t stream)
{
    ENTER();
    for (int64_t i = 0; i < count; i++) {
        float g = gate[one ? i / cols : i], u = up != NULL ? up[i] : 1.0f;
        y[i] = activation == GPU_SILU ? g / (expf(-g) + 1.0f) * u
                                      : (float)shim_activated((double)g, (double)u, activation);
    }
    return 0;
}

int launch_soft_cap(float *y, const float *x, float cap, int64_t count, cudaStream_t stream)
{
    ENTER();
    for (int64_t i = 0; i < count; i++) {
        y[i] = (float)((double)cap * tanh((double)x[i] / (double)cap));
    }
    return 0;
}

int launch_add(float *y, const float *x, int64_t count, cudaStream_t stream)
{
    ENTER();
    for (int64_t i = 0; i < count; i++) {
        y[i] += x[i];
    }
    return 0;
}

int launch_add_rows(float *y, const float *bias, int64_t rows, int64_t cols, cudaStream_t stream)
{
    ENTER();
    for (int64_t i = 0; i < rows * cols; i++) {
        y[i] += bias[i % cols];
    }
    return 0;
}

int launch_subtract(float *d, const float *a, const float *b, int64_t count, cudaStream_t stream)
{
    ENTER();
    for (int64_t i = 0; i < count; i++) {
        d[i] = a[i] - b[i];
    }
    return 0;
}

int launch_combine(float *y, float alpha, const float *a, float beta, const float *b, int64_t count,
                   cudaStream_t stream)
{
    ENTER();
    for (int64_t i = 0; i < count; i++) {
        y[i] = alpha * a[i] + (b != NULL ? beta * b[i] : 0.0f);
    }
    return 0;
}

int launch_column_stats(float *absmax, float *abssum, const float *x, int64_t rows, int64_t cols, float *most,
                        double *sum, cudaStream_t stream)
{
    ENTER();
    shim_check("partial maxima", most,
               (size_t)((rows + LAUNCH_STATS_ROWS - 1) / LAUNCH_STATS_ROWS * cols) * sizeof(float));
    for (int64_t col = 0; col < cols; col++) {
        double total = 0;
        for (int64_t t = 0; t < rows; t++) {
            float magnitude = fabsf(x[t * cols + col]);
            total += (double)magnitude;
            if (absmax != NULL && magnitude > absmax[col]) {
                absmax[col] = magnitude;
            }
        }
        if (abssum != NULL) {
            abssum[col] = (float)((double)abssum[col] + total);
        }
    }
    return 0;
}

int launch_symmetrize(float *h, int64_t n, float scale, cudaStream_t stream)
{
    ENTER();
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = i; j < n; j++) {
            h[i * n + j] *= scale;
            h[j * n + i] = h[i * n + j];
        }
    }
    return 0;
}

int launch_zero_dead(float *w, const float *h, int64_t rows, int64_t n, cudaStream_t stream)
{
    ENTER();
    for (int64_t i = 0; i < rows * n; i++) {
        w[i] = h[i % n * n + i % n] == 0.0f ? 0.0f : w[i];
    }
    return 0;
}

int launch_diagonal(float *diagonal, const float *h, int64_t n, cudaStream_t stream)
{
    ENTER();
    for (int64_t i = 0; i < n; i++) {
        diagonal[i] = h[i * n + i];
    }
    return 0;
}

int launch_floor_diagonal(float *h, int64_t n, float least, cudaStream_t stream)
{
    ENTER();
    for (int64_t i = 0; i < n; i++) {
        h[i * n + i] = h[i * n + i] != 0.0f && h[i * n + i] < least ? least : h[i * n + i];
    }
    return 0;
}

int launch_scale(float *w, const float *rows, const float *cols, int64_t count, int64_t width, cudaStream_t stream)
{
    ENTER();
    for (int64_t i = 0; i < count * width; i++) {
        float row = rows != NULL ? rows[i / width] : 1.0f;
        w[i] *= cols != NULL ? row * cols[i % width] : row;
    }
    return 0;
}

int launch_quantize_input(float *y, const float *x, const float *keep, const struct launch_input *spec,
                          cudaStream_t stream)
{
    ENTER();
    int64_t runs = (spec->cols + spec->group_size - 1) / spec->group_size;
    for (int64_t k = 0; k < spec->rows * runs; k++) {
        int64_t col = k % runs * spec->group_size, at = k / runs * spec->cols + col;
        int64_t count = spec->cols - col < spec->group_size ? spec->cols - col : spec->group_size;
        const float *kept = keep != NULL ? keep + col : NULL;
        float most = 0, scale = spec->scale;
        for (int64_t i = 0; i < count; i++) {
            most = kept == NULL || kept[i] == 0.0f ? fmaxf(most, fabsf(x[at + i])) : most;
        }
        scale = spec->dynamic ? most / ((float)dtype_max(spec->element)) : scale;
        float multiplier = spec->half ? dtype_round(scale, DTYPE_F16) : scale;
        for (int64_t i = 0; i < count; i++) {
            float value = x[at + i];
            float code = spec->element == DTYPE_F8_E4M3 ? dtype_e4m3_to_f32(dtype_f32_to_e4m3(value / scale))
                                                        : fminf(fmaxf(rintf(value / scale), -127.0f), 127.0f);
            y[at + i] = scale == 0.0f || (kept != NULL && kept[i] != 0.0f) ? value : code * multiplier;
        }
    }
    return 0;
}

static bool shim_sees(const struct launch_softmax *spec, int64_t query, int64_t key)
{
    return key <= query && (spec->window == 0 || key > query - spec->window) &&
           (spec->chunk == 0 || key / spec->chunk == query / spec->chunk);
}

static float shim_score(const struct launch_softmax *spec, float score)
{
    return spec->cap > 0 ? spec->cap * tanhf(score * spec->scale / spec->cap) : score * spec->scale;
}

/* Against the largest score, `most`. */
static float shim_weight(const struct launch_softmax *spec, float score, float most)
{
    return spec->cap > 0 ? expf(shim_score(spec, score) - shim_score(spec, most)) : expf((score - most) * spec->scale);
}

int launch_softmax(void *out, enum dtype out_dtype, const float *scores, const struct launch_softmax *spec,
                   cudaStream_t stream)
{
    ENTER();
    for (int64_t r = 0; r < spec->heads * spec->queries; r++) {
        int64_t query = spec->first + r % spec->queries, at = r * spec->keys;
        float most = -INFINITY, sum = 0;
        for (int64_t i = 0; i <= query; i++) {
            most = shim_sees(spec, query, i) ? fmaxf(most, scores[at + i]) : most;
        }
        for (int64_t i = 0; i <= query; i++) {
            sum += shim_sees(spec, query, i) ? shim_weight(spec, scores[at + i], most) : 0.0f;
        }
        if (spec->sinks != NULL) {
            sum += expf(spec->sinks[r / spec->queries * spec->sink_step] - shim_score(spec, most));
        }
        for (int64_t i = 0; i < spec->keys; i++) {
            bool visible = shim_sees(spec, query, i);
            store(out, out_dtype, at + i, visible ? shim_weight(spec, scores[at + i], most) / sum : 0.0f);
        }
    }
    return 0;
}

/* One query of one head, as flash.cu rounds: weights to BF16 before they are divided. */
static void shim_flash_query(const struct launch_flash *f, int64_t row, int64_t query, int64_t head, float *weights)
{
    const struct launch_softmax spec = {.window = f->window, .chunk = f->chunk, .scale = f->scale, .cap = f->cap};
    int64_t kv_head = head / (f->heads / f->kv_heads);
    const uint16_t *q = (const uint16_t *)f->q + ((row + query) * f->heads + head) * f->dim;
    float most = -INFINITY, sum = 0, *out = f->out + ((row + query) * f->heads + head) * f->value_dim;

    for (int64_t i = 0; i <= query; i++) {
        const uint16_t *k = (const uint16_t *)f->k + ((row + i) * f->kv_heads + kv_head) * f->dim;
        float score = 0;
        for (int64_t d = 0; d < f->dim; d++) {
            score += dtype_bf16_to_f32(q[d]) * dtype_bf16_to_f32(k[d]);
        }
        weights[i] = shim_sees(&spec, query, i) ? shim_score(&spec, score) : -INFINITY;
        most = fmaxf(most, weights[i]);
    }
    memset(out, 0, (size_t)f->value_dim * sizeof(*out));
    for (int64_t i = 0; i <= query; i++) {
        const uint16_t *v = (const uint16_t *)f->v + ((row + i) * f->kv_heads + kv_head) * f->value_dim;
        float weight = expf(weights[i] - most);
        sum += weight;
        for (int64_t d = 0; d < f->value_dim; d++) {
            out[d] += dtype_round(weight, DTYPE_BF16) * dtype_bf16_to_f32(v[d]);
        }
    }
    sum += f->sinks != NULL ? expf(f->sinks[head] - most) : 0.0f;
    for (int64_t d = 0; d < f->value_dim; d++) {
        out[d] /= sum;
    }
}

int launch_flash(const struct launch_flash *spec, cudaStream_t stream)
{
    ENTER();
    float *weights = malloc((size_t)spec->length * sizeof(*weights));

    for (int64_t s = 0; s < spec->sequences; s++) {
        for (int64_t h = 0; h < spec->heads; h++) {
            for (int64_t t = 0; t < spec->length; t++) {
                shim_flash_query(spec, s * spec->length, t, h, weights);
            }
        }
    }
    free(weights);
    return 0;
}

int launch_row_dot(double *out, const float *a, const float *b, int64_t rows, int64_t cols, cudaStream_t stream)
{
    ENTER();
    for (int64_t r = 0; r < rows; r++) {
        out[r] = 0;
        for (int64_t i = r * cols; i < (r + 1) * cols; i++) {
            out[r] += (double)a[i] * (double)b[i];
        }
    }
    return 0;
}

int launch_row_dot_narrow(float *out, const float *a, const float *b, int64_t rows, int64_t cols, cudaStream_t stream)
{
    ENTER();
    for (int64_t r = 0; r < rows; r++) {
        double sum = 0;
        for (int64_t i = r * cols; i < (r + 1) * cols; i++) {
            sum += (double)a[i] * (double)b[i];
        }
        out[r] = (float)sum;
    }
    return 0;
}

static int ascending_magnitudes(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void add_distribution(struct launch_distribution_row *row, const float *w, int64_t n, float *sorted)
{
    float part = 0;

    for (int64_t i = 0; i < n; i++) {
        double square = (double)w[i] * (double)w[i];
        bool ends = i + 1 == n || (i + 1) % DISTRIBUTION_PART == 0;
        sorted[i] = fabsf(w[i]);
        row->square += square;
        row->fourth += square * square;
        part = sorted[i] > part ? sorted[i] : part;
        row->part_range_sq += ends ? (double)(i % DISTRIBUTION_PART + 1) * (double)part * (double)part : 0;
        part = ends ? 0 : part;
    }
    qsort(sorted, (size_t)n, sizeof(*sorted), ascending_magnitudes);
    uint32_t bits;
    memcpy(&bits, &sorted[(n - 1) / 2], sizeof(bits));
    double max = (double)sorted[n - 1], median = (double)dtype_bf16_to_f32((uint16_t)(bits >> 16));
    row->range_sq += (double)n * max * max;
    row->max_to_median = median > 0 ? fmax(row->max_to_median, max / median) : row->max_to_median;
    for (int64_t i = 0; median > 0 && i < n; i++) {
        row->far += sorted[i] > DISTRIBUTION_FAR * (float)median;
    }
}

int launch_distribution(struct launch_distribution_row *rows, const float *w, int64_t count, int64_t cols,
                        int64_t group, cudaStream_t stream)
{
    ENTER();
    float *sorted = malloc((size_t)group * sizeof(*sorted));
    for (int64_t r = 0; r < count; r++) {
        rows[r] = (struct launch_distribution_row){0};
        for (int64_t i = 0; i < cols; i += group) {
            add_distribution(&rows[r], w + r * cols + i, group, sorted);
        }
    }
    free(sorted);
    return 0;
}

int launch_column_energy(double *signal, double *error, const float *w, const float *wq, int64_t rows, int64_t cols,
                         cudaStream_t stream)
{
    ENTER();
    memset(signal, 0, (size_t)((rows + LAUNCH_ENERGY_ROWS - 1) / LAUNCH_ENERGY_ROWS * cols) * sizeof(*signal));
    memset(error, 0, (size_t)((rows + LAUNCH_ENERGY_ROWS - 1) / LAUNCH_ENERGY_ROWS * cols) * sizeof(*error));
    for (int64_t i = 0; i < rows * cols; i++) {
        int64_t at = i / cols / LAUNCH_ENERGY_ROWS * cols + i % cols;
        double lost = (double)w[i] - (double)wq[i];
        signal[at] += (double)w[i] * (double)w[i];
        error[at] += lost * lost;
    }
    return 0;
}

static double log_sum(const float *x, int64_t n)
{
    double sum = 0, most = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        most = fmax(most, (double)x[i]);
    }
    for (int64_t i = 0; i < n; i++) {
        sum += exp((double)x[i] - most);
    }
    return most + log(sum);
}

static int64_t first_largest(const float *x, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++) {
        best = x[i] > x[best] ? i : best;
    }
    return best;
}

int launch_nll(struct launch_nll_row *out, const float *logits, const float *reference, const int32_t *targets,
               int64_t tokens, int64_t vocabulary, cudaStream_t stream)
{
    ENTER();
    for (int64_t t = 0; t < tokens; t++) {
        const float *x = logits + t * vocabulary;
        out[t] = (struct launch_nll_row){0, 0, 0};
        if (targets[t] < 0) {
            continue;
        }
        double total = log_sum(x, vocabulary);
        out[t].nll = total - (double)x[targets[t]];
        if (reference != NULL) {
            const float *r = reference + t * vocabulary;
            double r_total = log_sum(r, vocabulary);
            out[t].agree = first_largest(x, vocabulary) == first_largest(r, vocabulary);
            for (int64_t i = 0; i < vocabulary; i++) {
                out[t].kl += exp((double)r[i] - r_total) * ((double)r[i] - r_total - ((double)x[i] - total));
            }
        }
    }
    return 0;
}
