#pragma once
/* Gradients against central differences, in double, of a plain formula of the loss: what the tests of the group `grad`
 * share. A job's inputs come from a seed; its loss is a function of all of them, linear in the outputs of the forward
 * operation, so that the weights of that sum are the gradient that the operation is given. */

#include "tests/unit/gpu/support.h"

#include <stdlib.h>

#define GRAD_TENSORS 8
#define GRAD_SAMPLES 160 /* elements of a gradient that are compared */

struct grad_job;
struct grad_shape {
    int64_t rows, cols;
    float spread; /* of the normal numbers; 0: left zero */
};
struct grad_job {
    struct grad_shape inputs[GRAD_TENSORS]; /* up to one without rows */
    int of[GRAD_TENSORS];                   /* output i is the gradient of input of[i] ... */
    int outputs;                            /* ... i < outputs */
    int (*run)(struct rig *rig, const struct grad_job *job);
    double (*loss)(const struct grad_job *job, double *const *x);
    void (*prepare)(const struct grad_job *job); /* changes inputs; or NULL */
    const void *spec;
    double loose; /* of the largest gradient; 0: 3e-6 */

    struct tensor in[GRAD_TENSORS], out[GRAD_TENSORS]; /* out: of the inputs' shapes */
    int only;                                          /* the output that is asked for; -1: all */
};

/* Output i, or NULL where it is not asked for. */
static inline const struct tensor *grad_out(const struct grad_job *job, int i)
{
    return job->only < 0 || job->only == i ? &job->out[i] : NULL;
}

static inline int grad_input_count(const struct grad_job *job)
{
    int count = 0;

    while (count < GRAD_TENSORS && job->inputs[count].rows > 0) {
        count++;
    }
    return count;
}

static inline void grad_open(struct grad_job *job, struct rig *rig, int threads)
{
    rig_open(rig, threads);
    job->only = -1;
    for (int i = 0; i < grad_input_count(job); i++) {
        const struct grad_shape *shape = &job->inputs[i];
        job->in[i] = rig_random(rig, shape->rows, shape->cols, (uint64_t)(i + 1));
        for (int64_t j = 0; j < tensor_count(&job->in[i]); j++) {
            floats(&job->in[i])[j] *= shape->spread;
        }
    }
    if (job->prepare != NULL) {
        job->prepare(job);
    }
    for (int i = 0; i < job->outputs; i++) {
        const struct tensor *like = &job->in[job->of[i]];
        job->out[i] = rig_tensor(rig, DTYPE_F32, like->shape[0], like->shape[1]);
    }
}

static inline void grad_close(struct grad_job *job, struct rig *rig)
{
    for (int i = 0; i < grad_input_count(job); i++) {
        gpu_tensor_free(&rig->gpu, &job->in[i]);
    }
    for (int i = 0; i < job->outputs; i++) {
        gpu_tensor_free(&rig->gpu, &job->out[i]);
    }
    rig_close(rig);
}

/* A copy of the outputs, side by side. */
static inline float *grad_copy(const struct grad_job *job, size_t *size)
{
    size_t at = 0;

    *size = 0;
    for (int i = 0; i < job->outputs; i++) {
        *size += tensor_bytes(&job->out[i]);
    }
    float *copy = malloc(*size + 1);
    for (int i = 0; i < job->outputs; i++) {
        memcpy((char *)copy + at, job->out[i].data, tensor_bytes(&job->out[i]));
        at += tensor_bytes(&job->out[i]);
    }
    return copy;
}

/* Each output alone is what it is together with the others. */
static inline void grad_alone(struct grad_job *job, struct rig *rig)
{
    for (int i = 0; i < job->outputs && job->outputs > 1; i++) {
        struct tensor all = job->out[i];
        job->out[i] = rig_tensor(rig, DTYPE_F32, all.shape[0], all.shape[1]);
        job->only = i;
        ck_assert_rc_ok(job->run(rig, job));
        job->only = -1;
        ck_assert_msg(memcmp(all.data, job->out[i].data, tensor_bytes(&all)) == 0, "output %d alone differs", i);
        gpu_tensor_free(&rig->gpu, &job->out[i]);
        job->out[i] = all;
    }
}

static inline void grad_compare(struct grad_job *job)
{
    int count = grad_input_count(job);
    double *x[GRAD_TENSORS] = {NULL}, loose = job->loose > 0 ? job->loose : 3e-6;

    for (int i = 0; i < count; i++) {
        int64_t n = tensor_count(&job->in[i]);
        x[i] = malloc((size_t)(n + 1) * sizeof(double));
        for (int64_t j = 0; j < n; j++) {
            x[i][j] = (double)floats(&job->in[i])[j];
        }
    }
    for (int i = 0; i < job->outputs; i++) {
        const float *got = floats(&job->out[i]);
        double *at = x[job->of[i]], largest = 0;
        int64_t n = tensor_count(&job->out[i]), step = n / GRAD_SAMPLES + 1;
        for (int64_t j = 0; j < n; j++) {
            largest = fmax(largest, fabs((double)got[j]));
        }
        ck_assert_msg(largest > 0, "output %d is all zeros", i);
        for (int64_t j = 0; j < n; j += step) {
            double was = at[j], h = 1e-5 * fmax(1, fabs(was));
            at[j] = was + h;
            double above = job->loss(job, x);
            at[j] = was - h;
            double below = job->loss(job, x), want = (above - below) / (2 * h);
            at[j] = was;
            ck_assert_msg(fabs((double)got[j] - want) <= 1e-4 * fabs(want) + loose * largest,
                          "output %d, element %lld: %.9g, by differences %.9g, largest %.3g", i, (long long)j,
                          (double)got[j], want, largest);
        }
    }
    for (int i = 0; i < count; i++) {
        free(x[i]);
    }
}

/* A second run adds the same again. */
static inline void grad_twice(struct grad_job *job, struct rig *rig, const float *once)
{
    ck_assert_rc_ok(job->run(rig, job));
    for (int i = 0; i < job->outputs; i++) {
        const float *twice = floats(&job->out[i]);
        int64_t n = tensor_count(&job->out[i]);
        double largest = 0;
        for (int64_t j = 0; j < n; j++) {
            largest = fmax(largest, fabs((double)twice[j]));
        }
        for (int64_t j = 0; j < n; j++) {
            ck_assert_near((double)twice[j], 2 * (double)once[j], 1e-6 * largest);
        }
        once += n;
    }
}

/* All of it: right, the same bytes with any number of threads and without the other outputs, and added to. */
static inline void grad_verify(struct grad_job job)
{
    float *first = NULL;
    size_t size = 0;

    for (int threads = 1; threads <= 3; threads += 2) {
        struct rig rig;
        grad_open(&job, &rig, threads);
        ck_assert_rc_ok(job.run(&rig, &job));
        if (first == NULL) {
            first = grad_copy(&job, &size);
            grad_compare(&job);
            grad_alone(&job, &rig);
            grad_twice(&job, &rig, first);
        } else {
            float *again = grad_copy(&job, &size);
            ck_assert_msg(memcmp(first, again, size) == 0, "%d threads give other bytes", threads);
            free(again);
        }
        grad_close(&job, &rig);
    }
    free(first);
}

/* Tensors that a check of arguments refuses: f, with the operation's name in the message. */
#define ck_assert_refused(call, what)                             \
    do {                                                          \
        ck_assert_int_eq((call), ERR_INTERNAL);                   \
        ck_assert_ptr_nonnull(strstr(err_last()->message, what)); \
    } while (0)
