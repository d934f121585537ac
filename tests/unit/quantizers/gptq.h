#pragma once
/* GPTQ on small problems, and rounding to compare it with. */

#include "tests/unit/quantizers/reference.h"

#define N 24
#define K 192

static inline struct linear_job gptq(struct problem *p, const char *text)
{
    return solve_one(&p->rig, "gptq", text, DTYPE_F16, &p->stats, &p->w);
}

static inline struct linear_job rtn(struct problem *p, const char *text)
{
    return solve_one(&p->rig, "rtn", text, DTYPE_F16, NULL, &p->w);
}

static inline void zero_hessian(struct problem *p)
{
    memset(p->stats.hessian.data, 0, tensor_bytes(&p->stats.hessian));
}

static inline float *hessian_at(struct problem *p, int64_t i, int64_t j)
{
    return floats(&p->stats.hessian) + i * p->stats.columns + j;
}
