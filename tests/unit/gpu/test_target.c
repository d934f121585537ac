/* combine, cross and solve against sums, and an inverse, in double. */

#include "tests/unit/gpu/support.h"

static struct tensor copy_of(struct rig *rig, const struct tensor *from)
{
    struct tensor copy = rig_tensor(rig, DTYPE_F32, from->shape[0], from->shape[1]);
    memcpy(copy.data, from->data, tensor_bytes(from));
    return copy;
}

static void free_all(struct rig *rig, struct tensor *const *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        gpu_tensor_free(&rig->gpu, list[i]);
    }
}

#define FREE(rig, ...)                                     \
    free_all((rig), (struct tensor *const[]){__VA_ARGS__}, \
             sizeof((struct tensor *const[]){__VA_ARGS__}) / sizeof(struct tensor *))

/* y = alpha a + beta b: each rounding is one of single precision, whatever y is. */
static void check_combine_of(int64_t rows, int64_t cols)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor a = rig_random(&rig, rows, cols, 1), b = rig_random(&rig, rows, cols, 2);
    struct tensor y = rig_random(&rig, rows, cols, 3), onto_a = copy_of(&rig, &a), onto_b = copy_of(&rig, &b);
    struct tensor alone = copy_of(&rig, &a);

    ck_assert_rc_ok(rig.ops->combine(rig.stream, &y, 0.3, &a, -1.7, &b));
    ck_assert_rc_ok(rig.ops->combine(rig.stream, &onto_a, 0.3, &onto_a, -1.7, &b));
    ck_assert_rc_ok(rig.ops->combine(rig.stream, &onto_b, 0.3, &a, -1.7, &onto_b));
    ck_assert_rc_ok(rig.ops->combine(rig.stream, &alone, 0.3, &alone, 5, NULL));
    for (int64_t i = 0; i < rows * cols; i++) {
        double first = (double)0.3f * (double)floats(&a)[i], second = (double)-1.7f * (double)floats(&b)[i];
        ck_assert_near(floats(&y)[i], first + second, 0x1p-23 * (fabs(first) + fabs(second)));
        ck_assert_near(floats(&alone)[i], first, 0x1p-24 * fabs(first));
    }
    ck_assert_int_eq(memcmp(y.data, onto_a.data, tensor_bytes(&y)), 0);
    ck_assert_int_eq(memcmp(y.data, onto_b.data, tensor_bytes(&y)), 0);
    FREE(&rig, &a, &b, &y, &onto_a, &onto_b, &alone);
    rig_close(&rig);
}

START_TEST(combine_is_right)
{
    check_combine_of(1, 1);
    check_combine_of(7, 129);
    check_combine_of(131, 517); /* past a tile */
}
END_TEST

static void check_cross_of(int64_t tokens, int64_t m, int64_t k)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor a = rig_random(&rig, tokens, m, 5), b = rig_random(&rig, tokens, k, 6);
    struct tensor c = rig_random(&rig, m, k, 7), before = copy_of(&rig, &c), own = rig_tensor(&rig, DTYPE_F32, m, m);

    ck_assert_rc_ok(rig.ops->cross(rig.stream, &c, &a, &b)); /* it adds */
    ck_assert_rc_ok(rig.ops->cross(rig.stream, &own, &a, &a));
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < k; j++) {
            double want = (double)floats(&before)[i * k + j];
            for (int64_t t = 0; t < tokens; t++) {
                want += (double)floats(&a)[t * m + i] * (double)floats(&b)[t * k + j];
            }
            ck_assert_near(floats(&c)[i * k + j], want, 1e-5 * (double)(tokens + 1));
        }
        for (int64_t j = 0; j <= i; j++) {
            ck_assert_near(floats(&own)[i * m + j], floats(&own)[j * m + i], 1e-5 * (double)(tokens + 1));
        }
    }
    FREE(&rig, &a, &b, &c, &before, &own);
    rig_close(&rig);
}

START_TEST(cross_is_right)
{
    check_cross_of(0, 3, 2);
    check_cross_of(3, 1, 1);
    check_cross_of(50, 37, 21);
    check_cross_of(20, 300, 7);
    check_cross_of(9, 17, 515);
}
END_TEST

/* inverse of a [n, n] by Gauss and Jordan; a is used up. */
static double *invert(double *a, int64_t n)
{
    double *inverse = calloc((size_t)(n * n), sizeof(double));
    ck_assert_ptr_nonnull(inverse);

    for (int64_t i = 0; i < n; i++) {
        inverse[i * n + i] = 1;
    }
    for (int64_t c = 0; c < n; c++) { /* positive definite: no pivot is zero */
        double pivot = a[c * n + c];
        ck_assert_double_gt(pivot, 0);
        for (int64_t j = 0; j < n; j++) {
            a[c * n + j] /= pivot;
            inverse[c * n + j] /= pivot;
        }
        for (int64_t i = 0; i < n; i++) {
            double factor = i == c ? 0 : a[i * n + c];
            for (int64_t j = 0; factor != 0 && j < n; j++) {
                a[i * n + j] -= factor * a[c * n + j];
                inverse[i * n + j] -= factor * inverse[c * n + j];
            }
        }
    }
    return inverse;
}

/* (H + damp)^-1 as `factor` damps it. */
static double *damped_inverse(const struct tensor *h, double damp)
{
    int64_t n = h->shape[0];
    double *a = calloc((size_t)(n * n), sizeof(double)), mean = 0;
    ck_assert_ptr_nonnull(a);

    for (int64_t i = 0; i < n * n; i++) {
        a[i] = (double)floats(h)[i];
    }
    for (int64_t i = 0; i < n; i++) {
        a[i * (n + 1)] = a[i * (n + 1)] == 0 ? 1 : a[i * (n + 1)];
        mean += a[i * (n + 1)] / (double)n;
    }
    for (int64_t i = 0; i < n; i++) {
        a[i * (n + 1)] += damp * mean;
    }
    double *inverse = invert(a, n);
    free(a);
    return inverse;
}

/* Every 7th column. */
static void order_of(int32_t *order, int64_t k)
{
    ck_assert(k % 7 != 0 || k == 0);
    for (int64_t i = 0; i < k; i++) {
        order[i] = (int32_t)(i * 7 % k);
    }
}

struct solving {
    int64_t rows, k;
    bool order;
    double damp;
};

static void check_solve_of(const struct solving *s)
{
    struct rig rig;
    int64_t k = s->k;
    int32_t *order = calloc((size_t)k, sizeof(*order));
    rig_open(&rig, 2);
    struct tensor x = rig_correlated(&rig, 3 * k + 5, k, 11), u = rig_tensor(&rig, DTYPE_F32, k, k);
    struct tensor g = rig_random(&rig, s->rows, k, 12), onto = copy_of(&rig, &g), kept = copy_of(&rig, &g);
    struct tensor y = rig_random(&rig, s->rows, k, 13);

    ck_assert_ptr_nonnull(order);
    order_of(order, k);
    for (int64_t t = 0; k > 2 && t < x.shape[0]; t++) { /* dead columns */
        floats(&x)[t * k] = 0;
        floats(&x)[t * k + k / 2] = 0;
    }
    struct tensor h = rig_hessian(&rig, &x);
    const struct gpu_factor spec = {.damp_percent = s->damp, .order = s->order ? order : NULL};
    ck_assert_rc_ok(rig.ops->factor(rig.stream, &u, &h, &spec));
    ck_assert_rc_ok(rig.ops->solve(rig.stream, &y, &g, &u, spec.order));
    ck_assert_rc_ok(rig.ops->solve(rig.stream, &onto, &onto, &u, spec.order));
    ck_assert_int_eq(memcmp(onto.data, y.data, tensor_bytes(&y)), 0);
    ck_assert_int_eq(memcmp(g.data, kept.data, tensor_bytes(&g)), 0);

    double *inverse = damped_inverse(&h, s->damp), error = 0, size = 0;
    for (int64_t i = 0; i < s->rows; i++) {
        for (int64_t j = 0; j < k; j++) {
            double want = 0;
            for (int64_t l = 0; l < k; l++) {
                want += (double)floats(&g)[i * k + l] * inverse[l * k + j];
            }
            double off = (double)floats(&y)[i * k + j] - want;
            error += off * off;
            size += want * want;
        }
    }
    ck_assert_msg(error <= 1e-8 * size, "[%lld, %lld]: %g", (long long)s->rows, (long long)k, error / size);
    free(inverse);
    free(order);
    FREE(&rig, &x, &u, &g, &onto, &kept, &y, &h);
    rig_close(&rig);
}

START_TEST(solve_is_right)
{
    static const struct solving rows[] = {
        {1, 1, false, 0.01},   {3, 2, true, 0},       {5, 37, true, 0.01},
        {64, 64, false, 0.01}, {65, 130, true, 0.05}, {130, 300, true, 0.01}, /* past a tile of rows */
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        check_solve_of(&rows[i]);
    }
}
END_TEST

/* u^T u = [[4,6],[6,34]], by hand. */
START_TEST(solve_of_two_by_two)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor u = rig_tensor(&rig, DTYPE_F32, 2, 2), g = rig_tensor(&rig, DTYPE_F32, 1, 2);
    const int32_t turned[2] = {1, 0};

    memcpy(u.data, (const float[]){2, 3, 0, 5}, 16);
    memcpy(g.data, (const float[]){1, 10}, 8);
    ck_assert_rc_ok(rig.ops->solve(rig.stream, &g, &g, &u, NULL));
    ck_assert_near(floats(&g)[0], 64, 0);
    ck_assert_near(floats(&g)[1], 346, 0);
    memcpy(g.data, (const float[]){1, 10}, 8); /* (10, 1) in the order, (46, 94) there */
    ck_assert_rc_ok(rig.ops->solve(rig.stream, &g, &g, &u, turned));
    ck_assert_near(floats(&g)[0], 94, 0);
    ck_assert_near(floats(&g)[1], 46, 0);
    FREE(&rig, &u, &g);
    rig_close(&rig);
}
END_TEST

/* Results of the three with some threads, one behind the other. */
static float *results_with(int threads, int64_t *count)
{
    enum { ROWS = 301, M = 270, COLS = 530 };
    struct rig rig;
    int32_t order[COLS];
    rig_open(&rig, threads);
    struct tensor x = rig_correlated(&rig, ROWS, COLS, 21), a = rig_random(&rig, ROWS, M, 22);
    struct tensor c = rig_tensor(&rig, DTYPE_F32, M, COLS), u = rig_tensor(&rig, DTYPE_F32, COLS, COLS);
    struct tensor y = rig_tensor(&rig, DTYPE_F32, ROWS, COLS), h = rig_hessian(&rig, &x);

    order_of(order, COLS);
    ck_assert_rc_ok(rig.ops->factor(rig.stream, &u, &h, &(struct gpu_factor){.damp_percent = 0.05, .order = order}));
    ck_assert_rc_ok(rig.ops->combine(rig.stream, &y, 0.1, &x, 0.7, &x));
    ck_assert_rc_ok(rig.ops->cross(rig.stream, &c, &a, &x));
    struct tensor solved = copy_of(&rig, &c);
    ck_assert_rc_ok(rig.ops->solve(rig.stream, &solved, &c, &u, order));
    const struct tensor *all[] = {&y, &c, &solved};
    *count = 0;
    float *out = calloc((size_t)((ROWS + 2 * M) * COLS), sizeof(float));
    ck_assert_ptr_nonnull(out);
    for (size_t i = 0; i < 3; i++) {
        memcpy(out + *count, all[i]->data, tensor_bytes(all[i]));
        *count += tensor_count(all[i]);
    }
    FREE(&rig, &x, &a, &c, &u, &y, &h, &solved);
    rig_close(&rig);
    return out;
}

START_TEST(threads_give_the_same_bits)
{
    int64_t count;
    float *one = results_with(1, &count);
    for (int threads = 2; threads <= 3; threads++) {
        float *more = results_with(threads, &count);
        ck_assert_int_eq(memcmp(one, more, (size_t)count * sizeof(float)), 0);
        free(more);
    }
    free(one);
}
END_TEST

START_TEST(refusals)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor a = rig_random(&rig, 6, 5, 1), b = rig_random(&rig, 6, 4, 2), c = rig_tensor(&rig, DTYPE_F32, 5, 4);
    struct tensor u = rig_random(&rig, 5, 5, 3), half = rig_tensor(&rig, DTYPE_F16, 6, 5);
    struct tensor turned = rig_tensor(&rig, DTYPE_F32, 4, 5), y = rig_tensor(&rig, DTYPE_F32, 6, 5);
    const int32_t good[5] = {4, 3, 2, 1, 0}, twice[5] = {0, 1, 2, 2, 4}, beyond[5] = {0, 1, 2, 3, 5};
    const int32_t below[5] = {0, 1, 2, 3, -1};
    const struct gpu_ops *ops = rig.ops;
    struct gpu_stream *stream = rig.stream;

    ck_assert_int_eq(ops->combine(stream, &y, 1, &b, 0, NULL), ERR_INTERNAL);
    ck_assert_int_eq(ops->combine(stream, &y, 1, &a, 1, &b), ERR_INTERNAL);
    ck_assert_int_eq(ops->combine(stream, &half, 1, &a, 1, &a), ERR_INTERNAL);
    ck_assert_int_eq(ops->combine(stream, &y, 1, &half, 1, &a), ERR_INTERNAL);
    ck_assert_int_eq(ops->combine(stream, &y, 1, &a, 1, &half), ERR_INTERNAL);
    ck_assert_int_eq(ops->cross(stream, &turned, &a, &b), ERR_INTERNAL);
    ck_assert_int_eq(ops->cross(stream, &c, &a, &c), ERR_INTERNAL);
    ck_assert_int_eq(ops->cross(stream, &c, &half, &b), ERR_INTERNAL);
    ck_assert_rc_ok(ops->cross(stream, &c, &a, &b));
    ck_assert_int_eq(ops->solve(stream, &y, &b, &u, NULL), ERR_INTERNAL);
    ck_assert_int_eq(ops->solve(stream, &b, &a, &u, NULL), ERR_INTERNAL);
    ck_assert_int_eq(ops->solve(stream, &y, &a, &c, NULL), ERR_INTERNAL);
    ck_assert_int_eq(ops->solve(stream, &y, &half, &u, NULL), ERR_INTERNAL);
    ck_assert_int_eq(ops->solve(stream, &y, &a, &u, twice), ERR_INTERNAL);
    ck_assert_int_eq(ops->solve(stream, &y, &a, &u, beyond), ERR_INTERNAL);
    ck_assert_int_eq(ops->solve(stream, &y, &a, &u, below), ERR_INTERNAL);
    for (int64_t i = 0; i < tensor_count(&y); i++) { /* nothing was written */
        ck_assert_float_eq(floats(&y)[i], 0);
    }
    ck_assert_rc_ok(ops->solve(stream, &y, &a, &u, good));
    FREE(&rig, &a, &b, &c, &u, &half, &turned, &y);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("gpu/target", combine_is_right, cross_is_right, solve_is_right, solve_of_two_by_two,
          threads_give_the_same_bits, refusals)
