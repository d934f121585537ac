#pragma once
/* GPTQ by the paper, in double and without any cleverness: what the method is held to. */

#include "tests/unit/quantizers/support.h"

struct reference {
    int64_t n;
    double *a, *inverse, *u; /* [n, n] */
};

/* a = L L^T, L in a's lower triangle. */
static inline void reference_cholesky(double *a, int64_t n)
{
    for (int64_t j = 0; j < n; j++) {
        for (int64_t k = 0; k < j; k++) {
            a[j * n + j] -= a[j * n + k] * a[j * n + k];
        }
        ck_assert_double_gt(a[j * n + j], 0);
        a[j * n + j] = sqrt(a[j * n + j]);
        for (int64_t i = j + 1; i < n; i++) {
            for (int64_t k = 0; k < j; k++) {
                a[i * n + j] -= a[i * n + k] * a[j * n + k];
            }
            a[i * n + j] /= a[j * n + j];
        }
    }
}

/* inverse of L L^T by solving for each unit vector. */
static inline void reference_invert(const double *l, double *inverse, int64_t n)
{
    ck_assert_int_gt(n, 0);
    double *x = calloc((size_t)n, sizeof(double));
    ck_assert_ptr_nonnull(x);
    for (int64_t c = 0; c < n; c++) {
        for (int64_t i = 0; i < n; i++) {
            x[i] = i == c;
            for (int64_t k = 0; k < i; k++) {
                x[i] -= l[i * n + k] * x[k];
            }
            x[i] /= l[i * n + i];
        }
        for (int64_t i = n - 1; i >= 0; i--) {
            for (int64_t k = i + 1; k < n; k++) {
                x[i] -= l[k * n + i] * x[k];
            }
            x[i] /= l[i * n + i];
            inverse[i * n + c] = x[i];
        }
    }
    free(x);
}

/* u upper, u^T u = inverse of the damped h in visiting order. */
static inline void reference_factor(struct reference *r, const struct tensor *h, const int32_t *order, double damp)
{
    int64_t n = r->n = h->shape[0];
    double mean = 0;
    r->a = calloc((size_t)(n * n), sizeof(double));
    r->inverse = calloc((size_t)(n * n), sizeof(double));
    r->u = calloc((size_t)(n * n), sizeof(double));
    ck_assert(r->a != NULL && r->inverse != NULL && r->u != NULL);
    for (int64_t j = 0; j < n; j++) {
        double diagonal = (double)floats(h)[j * (n + 1)];
        mean += (diagonal == 0 ? 1.0 : diagonal) / (double)n;
    }
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n; j++) {
            r->a[i * n + j] = (double)floats(h)[order[i] * n + order[j]];
        }
        r->a[i * n + i] = (r->a[i * n + i] == 0 ? 1.0 : r->a[i * n + i]) + damp * mean;
    }
    reference_cholesky(r->a, n);
    reference_invert(r->a, r->inverse, n);
    reference_cholesky(r->inverse, n);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = i; j < n; j++) {
            r->u[i * n + j] = r->inverse[j * n + i];
        }
    }
}

static inline void reference_free(struct reference *r)
{
    free(r->a);
    free(r->inverse);
    free(r->u);
}

/* Sweep one row w [n], on the grid of q's row, into codes [n]; returns its loss. */
static inline double reference_sweep(const struct reference *r, const struct qtensor *q, int64_t row, const float *w,
                                     const int32_t *order, uint8_t *codes)
{
    double *left = calloc((size_t)r->n, sizeof(double)), loss = 0, top = (1 << q->scheme.bits) - 1;

    ck_assert_ptr_nonnull(left);
    for (int64_t i = 0; i < r->n; i++) {
        left[i] = (double)w[order[i]];
    }
    for (int64_t i = 0; i < r->n; i++) {
        int64_t point = row * q->groups + order[i] / q->scheme.group_size;
        double scale = (double)q->scales[point], zero = q->zeros[point];
        double code = rint(left[i] / scale) + zero;
        code = code < 0 ? 0 : code > top ? top : code;
        codes[order[i]] = (uint8_t)code;
        double error = (left[i] - scale * (code - zero)) / r->u[i * r->n + i];
        loss += error * error;
        for (int64_t j = i + 1; j < r->n; j++) {
            left[j] -= error * r->u[i * r->n + j];
        }
    }
    free(left);
    return loss;
}
