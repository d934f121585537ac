/* factor against Cholesky, full inverse and Cholesky again, all in double. */

#include "tests/unit/gpu/support.h"

/* Lower Cholesky in place; false when a pivot is not positive. */
static bool cholesky(double *a, int64_t n)
{
    for (int64_t j = 0; j < n; j++) {
        for (int64_t i = j; i < n; i++) {
            double sum = a[i * n + j];
            for (int64_t k = 0; k < j; k++) {
                sum -= a[i * n + k] * a[j * n + k];
            }
            if (i == j && sum <= 0) {
                return false;
            }
            a[i * n + j] = i == j ? sqrt(sum) : sum / a[j * n + j];
        }
    }
    return true;
}

/* inverse = (l l^T)^-1, column by column. */
static void invert(double *inverse, const double *l, int64_t n)
{
    for (int64_t c = 0; c < n; c++) {
        for (int64_t i = 0; i < n; i++) {
            double sum = i == c;
            for (int64_t k = 0; k < i; k++) {
                sum -= l[i * n + k] * inverse[k * n + c];
            }
            inverse[i * n + c] = sum / l[i * n + i];
        }
        for (int64_t i = n - 1; i >= 0; i--) {
            double sum = inverse[i * n + c];
            for (int64_t k = i + 1; k < n; k++) {
                sum -= l[k * n + i] * inverse[k * n + c];
            }
            inverse[i * n + c] = sum / l[i * n + i];
        }
    }
}

/* The upper factor, by the textbook's route. */
static double *reference(const struct tensor *h, double damp, const int32_t *order)
{
    int64_t n = h->shape[0];
    double *a = calloc((size_t)(n * n), sizeof(double)), *inverse = calloc((size_t)(n * n), sizeof(double)), mean = 0;
    ck_assert(a != NULL && inverse != NULL);
    for (int64_t i = 0; i < n; i++) {
        double diagonal = (double)floats(h)[i * n + i];
        mean += (diagonal == 0 ? 1 : diagonal) / (double)n;
    }
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n; j++) {
            int64_t p = order != NULL ? order[i] : i, q = order != NULL ? order[j] : j;
            a[i * n + j] = (double)floats(h)[p * n + q];
            if (i == j) {
                a[i * n + j] = (a[i * n + j] == 0 ? 1 : a[i * n + j]) + damp * mean;
            }
        }
    }
    ck_assert(cholesky(a, n));
    invert(inverse, a, n);
    ck_assert(cholesky(inverse, n)); /* lower factor of the inverse: its transpose is u */
    free(a);
    return inverse;
}

static void shuffle(int32_t *order, int64_t n)
{
    uint64_t seed = 99;
    for (int32_t i = 0; i < n; i++) {
        order[i] = i;
    }
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = (int64_t)(random_bits(&seed) % (uint64_t)(i + 1));
        int32_t kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
}

static void check_factor(int64_t n, bool permuted, bool with_dead, double damp)
{
    struct rig rig;
    int32_t *order = malloc((size_t)n * sizeof(*order));
    rig_open(&rig, 2);
    struct tensor x = rig_correlated(&rig, 3 * n + 5, n, 11), u = rig_tensor(&rig, DTYPE_F32, n, n);
    for (int64_t t = 0; with_dead && t < x.shape[0]; t++) {
        floats(&x)[t * n + n / 2] = 0;
        floats(&x)[t * n] = 0;
    }
    struct tensor h = rig_hessian(&rig, &x);
    shuffle(order, n);
    double *want = reference(&h, damp, permuted ? order : NULL), most = 0;

    memset(u.data, 0xff, tensor_bytes(&u));
    ck_assert_rc_ok(rig.ops->factor(rig.stream, &u, &h,
                                    &(struct gpu_factor){.damp_percent = damp, .order = permuted ? order : NULL}));
    for (int64_t i = 0; i < n * n; i++) {
        most = fabs(want[i]) > most ? fabs(want[i]) : most;
    }
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n; j++) {
            ck_assert_near(floats(&u)[i * n + j], j < i ? 0 : want[j * n + i], j < i ? 0 : 2e-4 * most);
        }
    }
    free(want);
    free(order);
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &u);
    gpu_tensor_free(&rig.gpu, &h);
    rig_close(&rig);
}

START_TEST(factor_is_right)
{
    check_factor(1, false, false, 0.01);
    check_factor(2, false, false, 0);
    check_factor(37, true, false, 0.01);
    check_factor(64, true, true, 0.01);
    check_factor(256, false, true, 0.05);
    check_factor(300, true, false, 0.01);
    check_factor(530, true, true, 0.01);
}
END_TEST

/* Worked out by hand: H' = [[2,1],[1,2]]. */
START_TEST(factor_of_two_by_two)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor h = rig_tensor(&rig, DTYPE_F32, 2, 2), u = rig_tensor(&rig, DTYPE_F32, 2, 2);
    memcpy(h.data, (const float[]){2, 1, 1, 2}, 16);
    ck_assert_rc_ok(rig.ops->factor(rig.stream, &u, &h, &(struct gpu_factor){0}));
    ck_assert_near(floats(&u)[0], 0.81649658, 1e-6);
    ck_assert_near(floats(&u)[1], -0.40824829, 1e-6);
    ck_assert_near(floats(&u)[2], 0, 0);
    ck_assert_near(floats(&u)[3], 0.70710678, 1e-6);
    gpu_tensor_free(&rig.gpu, &h);
    gpu_tensor_free(&rig.gpu, &u);
    rig_close(&rig);
}
END_TEST

START_TEST(factor_is_equal_for_any_threads)
{
    void *first = NULL;
    for (int threads = 1; threads <= 3; threads++) {
        struct rig rig;
        rig_open(&rig, threads);
        struct tensor x = rig_correlated(&rig, 900, 800, 1), h = rig_hessian(&rig, &x);
        struct tensor u = rig_tensor(&rig, DTYPE_F32, 800, 800);
        ck_assert_rc_ok(rig.ops->factor(rig.stream, &u, &h, &(struct gpu_factor){.damp_percent = 0.01}));
        if (first == NULL) {
            first = malloc(tensor_bytes(&u));
            memcpy(first, u.data, tensor_bytes(&u));
        }
        ck_assert_int_eq(memcmp(first, u.data, tensor_bytes(&u)), 0);
        gpu_tensor_free(&rig.gpu, &x);
        gpu_tensor_free(&rig.gpu, &h);
        gpu_tensor_free(&rig.gpu, &u);
        rig_close(&rig);
    }
    free(first);
}
END_TEST

static int factor_of(struct rig *rig, const struct tensor *h, const int32_t *order)
{
    struct tensor u = rig_tensor(rig, DTYPE_F32, h->shape[0], h->shape[0]);
    int rc = rig->ops->factor(rig->stream, &u, h, &(struct gpu_factor){.order = order});
    gpu_tensor_free(&rig->gpu, &u);
    return rc;
}

START_TEST(factor_refuses)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor x = rig_correlated(&rig, 900, 400, 1), h = rig_hessian(&rig, &x);
    float kept = floats(&h)[350 * 400 + 350];
    int32_t order[400];

    ck_assert_rc_ok(factor_of(&rig, &h, NULL));
    floats(&h)[350 * 400 + 350] = -1.0f;
    ck_assert_int_eq(factor_of(&rig, &h, NULL), ERR_NOT_POSITIVE_DEFINITE);
    floats(&h)[350 * 400 + 350] = NAN;
    ck_assert_int_eq(factor_of(&rig, &h, NULL), ERR_NOT_POSITIVE_DEFINITE);
    floats(&h)[350 * 400 + 350] = INFINITY;
    ck_assert_int_eq(factor_of(&rig, &h, NULL), ERR_NOT_POSITIVE_DEFINITE);
    floats(&h)[350 * 400 + 350] = kept;
    shuffle(order, 400);
    ck_assert_rc_ok(factor_of(&rig, &h, order));
    order[7] = order[8];
    ck_assert_int_eq(factor_of(&rig, &h, order), ERR_INTERNAL);
    order[7] = 400;
    ck_assert_int_eq(factor_of(&rig, &h, order), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->factor(rig.stream, &h, &h, &(struct gpu_factor){0}), ERR_INTERNAL);
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &h);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("gpu/factor", factor_is_right, factor_of_two_by_two, factor_is_equal_for_any_threads, factor_refuses)
