/* Bodies of the operations of a layer of experts. */

#include "tests/conformance/ops_bodies.h"

#include <math.h>
#include <stdlib.h>

/* Logits with ties, infinities and one that is not a number, so that the order of equals shows. */
static int uneven_logits(struct ops_rig *rig, int64_t tokens, int64_t experts, struct tensor *logits)
{
    uint64_t seed = 91;
    float *host = malloc((size_t)(tokens * experts) * sizeof(float));

    if (host == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a body's input");
    }
    for (int64_t i = 0; i < tokens * experts; i++) {
        host[i] = i % 3 == 0 ? ops_normal(&seed) * 4 : rintf(ops_normal(&seed) * 2);
    }
    for (int64_t e = 0; e < experts; e++) {
        host[experts + e] = 1.5f;                              /* all the same */
        host[2 * experts + e] = e % 2 == 0 ? -INFINITY : 2.0f; /* half of them impossible */
    }
    int rc = ops_upload(rig, host, tokens, experts, logits);
    free(host);
    return rc;
}

struct routing {
    int64_t experts;
    bool bias;
    struct gpu_route spec;
};

static const struct routing routings[] = {
    {8, false, {.top_k = 2, .scores = GPU_SCORES_ALL, .factor = 1}},
    {128, false, {.top_k = 8, .scores = GPU_SCORES_CHOSEN, .factor = 1}},
    {37, false, {.top_k = 3, .scores = GPU_SCORES_ALL, .normalize = true, .factor = 2.5f}},
    {6, false, {.top_k = 6, .scores = GPU_SCORES_ALL, .factor = 1}},
    {16, true, {.top_k = 3, .scores = GPU_SCORES_SIGMOID, .normalize = true, .factor = 2.5f, .epsilon = 1e-20f}},
    {1, false, {.top_k = 1, .scores = GPU_SCORES_SIGMOID, .factor = 1}},
    {64,
     true,
     {.top_k = 6,
      .scores = GPU_SCORES_SIGMOID,
      .normalize = true,
      .groups = 8,
      .group_top_k = 3,
      .group_pairs = true,
      .factor = 2.5f}},
    {160, false, {.top_k = 6, .scores = GPU_SCORES_ALL, .groups = 8, .group_top_k = 3, .factor = 16}},
    {64, true, {.top_k = 8, .scores = GPU_SCORES_ALL, .normalize = true, .factor = 1}},
    {12, false, {.top_k = 4, .scores = GPU_SCORES_CHOSEN, .groups = 4, .group_top_k = 2, .factor = 1}},
};

/* variant: a row of routings. */
int body_route(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct routing *r = &routings[variant];
    struct tensor logits, ids, weights, own;
    const struct tensor *bias = r->bias ? &own : NULL;

    TRY(ops_random(rig, DTYPE_F32, 1, r->experts, 95, &own));
    TRY(uneven_logits(rig, 41, r->experts, &logits));
    TRY(ops_new(rig, DTYPE_I32, 41, r->spec.top_k, &ids));
    TRY(ops_new(rig, DTYPE_F32, 41, r->spec.top_k, &weights));
    TRY(rig->gpu.ops->route(rig->stream, &ids, &weights, &logits, bias, &r->spec));
    TRY(ops_put(rig, out, &ids));
    return ops_put(rig, out, &weights);
}

#define EXPERTS 9
#define CHOICES 3
#define TOKENS 700

/* All experts' rows, in order: gathered, and added back. */
static int through_experts(struct ops_rig *rig, int64_t tokens, const struct tensor *ids, struct ops_output *out)
{
    const struct gpu_ops *ops = rig->gpu.ops;
    int64_t offsets[EXPERTS + 1];
    struct tensor places, x, y, rows, weights;

    TRY(ops_new(rig, DTYPE_I32, tokens, CHOICES, &places));
    TRY(ops_random(rig, DTYPE_F32, tokens, 37, 92, &x));
    TRY(ops_random(rig, DTYPE_F32, tokens, CHOICES, 93, &weights));
    TRY(ops_random(rig, DTYPE_F32, tokens, 37, 94, &y));
    TRY(ops_new(rig, DTYPE_F32, tokens, 37, &rows));
    TRY(ops->group_places(rig->stream, &places, offsets, ids, EXPERTS));
    for (int e = 0; e < EXPERTS; e++) {
        struct tensor own = tensor_1d((int32_t *)places.data + offsets[e], DTYPE_I32, offsets[e + 1] - offsets[e]);
        struct tensor gathered = tensor_rows(&rows, 0, own.shape[0]);
        TRY(ops_put_number(out, (double)offsets[e + 1]));
        TRY(ops_put(rig, out, &own));
        TRY(ops->gather_rows(rig->stream, &gathered, &x, &own, e % 2 == 0 ? NULL : &weights, CHOICES));
        TRY(ops_put(rig, out, &gathered));
        TRY(ops->scatter_rows(rig->stream, &y, &gathered, &own, e == 4 ? NULL : &weights, CHOICES));
    }
    return ops_put(rig, out, &y);
}

/* variant 0: each token's choices are different experts; 1: one expert has nearly all first choices and some have none;
 * 2: some ids are outside; 3: no tokens. */
int body_experts(struct ops_rig *rig, int variant, struct ops_output *out)
{
    int32_t host[TOKENS * CHOICES];
    int64_t tokens = variant == 3 ? 0 : TOKENS;
    struct tensor ids;

    for (int t = 0; t < TOKENS; t++) {
        for (int c = 0; c < CHOICES; c++) {
            int id = (t * 5 + t / 7 + c * 2) % EXPERTS;
            host[t * CHOICES + c] = variant == 1 ? (c == 0 && t % 50 != 0 ? 4 : c + 5) : id;
            if (variant == 2 && (t + c) % 11 == 0) {
                host[t * CHOICES + c] = t % 2 == 0 ? -1 : EXPERTS + t;
            }
        }
    }
    TRY(ops_new(rig, DTYPE_I32, tokens, CHOICES, &ids));
    TRY(rig->gpu.ops->upload(rig->stream, ids.data, host, tensor_bytes(&ids)));
    return through_experts(rig, tokens, &ids, out);
}
