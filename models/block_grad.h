#pragma once
/* Derivatives of a block and of what comes after the last one: reverse-mode differentiation over the steps of a plan
 * (Griewank and Walther 2008, "Evaluating Derivatives", chapter 3), one vector-Jacobian product for each kind of step.
 *
 * tape      the memory of one micro-batch in which every value of a plan has storage of its own, so that all of them
 *           are there when the steps are taken in reverse, next to the gradients of values. One tape serves all blocks
 *           of a model, one after another; a pass of it is for one block
 * gradient  dL/dv of a scalar L that the caller has: [tokens, width] F32, as the value. Gradients of parameters are
 *           added to what is there, so that micro-batches add up in their order
 *
 * What is quantized at run time (a linear's input, the cache of keys and values) is quantized in the forward pass and
 * straight-through in the backward pass: its derivative is 1, of an element that a static range clips 0 (Bengio et al.
 * 2013, arXiv 1308.3432; Esser et al. 2019, arXiv 1902.08153). Choices of experts are constants. What a layer gets of
 * its tokens (STEP_TOKENS) is a constant. Steps along a sequence (CONV, DELTA, SCAN, GATED_NORM) have no backward pass:
 * plan_differentiable.
 *
 * Same inputs and device give the same bits, whatever the thread count. A tape is used by one thread at a time, that of
 * its stream. */

#include "models/block.h"

#include <stdbool.h>

/* Whether all steps of a layer, and of its experts, have a backward pass. *reason (may be NULL): static text of the
 * first that has none, "a gated delta rule (DELTA)"; of a bare model's layer that its steps are not known. */
bool plan_differentiable(const struct plan *plan, const char **reason);
/* The same of all layers of a model. */
bool plans_differentiable(const struct plans *plans, const char **reason);

/* --- The tape. */

struct block_tape_spec {
    const struct plans *plans; /* outlive the tape */
    int64_t sequences, length; /* of the largest micro-batch */
    bool rounds;               /* some linears have an input that is quantized at run time (block_module.input) */
};

struct block_tape;
/* Device memory, F32, in bytes, of a tape for any layer of the model: values, gradients, an expert's rows of all
 * tokens, what `rounds` adds, rotary tables. -1: it does not fit an int64_t, or a layer is not differentiable. */
int64_t block_tape_bytes(const struct block_tape_spec *spec);
/* Of these, gradients: what nothing has touched as long as there was no backward pass. */
int64_t block_tape_gradient_bytes(const struct block_tape_spec *spec);
/* Allocates all of that, and nothing later. The gpu (copied) and the stream outlive the tape. ERR_INTERNAL where a
 * layer is not differentiable; ERR_DEVICE_OUT_OF_MEMORY and the like from the device. Sets *out on success only. */
int block_tape_new(const struct block_tape_spec *spec, const struct gpu *gpu, struct gpu_stream *stream,
                   struct block_tape **out);
void block_tape_free(struct block_tape *tape); /* NULL is fine */
CLEANUP_FREE(block_tape, struct block_tape, block_tape_free)

/* The tape is of this layer and of so many sequences (at most the spec's) from now on; what it held is lost. Its values
 * are undefined, its gradients too. ids: of the tokens [sequences * length], the caller's, for a step TOKENS; else
 * NULL. */
int block_tape_begin(struct block_tape *tape, const struct plan *plan, int64_t sequences, const int32_t *ids);
/* Views of a value [tokens, width] and of its gradient, in the tape. Before block_tape_forward the caller fills the
 * values of plan->inputs (value 0, and what the layer takes of earlier ones). */
struct tensor block_tape_value(const struct block_tape *tape, int value);
struct tensor block_tape_gradient(const struct block_tape *tape, int value);
/* All steps of the plan. The gradients of the output and of what the layer gives to later ones (plan->given) are zeros
 * afterwards: the caller adds what L has of them. A block that views another one (block_view), with other weights,
 * takes part as that view has them. Every module must be loaded, those of experts too. */
int block_tape_forward(const struct block *block, struct block_tape *tape);

/* Where gradients of a block's tensors are summed: lists like the block's own, of tensors of the same shapes, F32, the
 * caller's. data NULL: not wanted, and not computed; a list may be NULL. A linear's bias may be wanted where it has
 * none: as of one that is zero. */
struct block_grads {
    struct block_module_grad {
        struct tensor weight; /* [out, in]: with a quantized input, of the product with what that became */
        struct tensor bias;   /* [out] */
        struct tensor
            moments; /* [out, out], upper triangle: sum over tokens of the products of its output's gradients */
    } * modules;     /* [plan->module_count] */
    struct block_norm_grad {
        struct tensor weight, bias;
    } * norms;            /* [plan->norm_count] */
    struct tensor *sinks; /* [plan->parameter_count]: of attention's sinks alone; the other parameters are constants */
};
/* The steps in reverse, from the gradients of the output and of what the layer gives: adds to `grads` (NULL: none), and
 * leaves the gradients of the values `want`, some of plan->inputs, in the tape. Steps from which neither follows are
 * not computed. Once for each forward pass, with the block as it was then. */
int block_tape_backward(const struct block *block, struct block_tape *tape, const struct block_grads *grads,
                        plan_set want);

/* --- The head: the final norm, the output projection (tied or not), the configuration's factor and cap of logits, and
 * a loss. Logits exist for `chunk` tokens at a time. */

struct head_loss {
    /* One of these three: */
    const int32_t *labels; /* on the host [T], -1: the token does not count: L = -sum log p(label) */
    const struct head
        *teacher; /* L = sum KL(softmax(its logits) || softmax(logits)) over the tokens, its logits being those */
    const struct tensor *hidden; /* that this head gives to `hidden` [T, h], which is left as it is */
    const struct tensor *logits; /* or the teacher's logits themselves, F32 [T, V] */
    double factor;               /* of gradients: they are of factor * L */
};

struct head_grads {
    struct tensor norm, norm_bias; /* F32 [h]; data NULL: not wanted */
    struct tensor lm_head;         /* F32 [V, h] */
    struct tensor bias;            /* F32 [V] */
};

struct head_tape;
/* Device memory of a tape for `chunk` tokens at a time, bytes; teacher: for a loss with `teacher`. -1: too large. */
int64_t head_tape_bytes(const struct model_config *config, int64_t chunk, bool teacher);
/* The gpu, the stream and the configuration outlive it. Sets *out on success only. */
int head_tape_new(const struct model_config *config, int64_t chunk, bool teacher, const struct gpu *gpu,
                  struct gpu_stream *stream, struct head_tape **out);
void head_tape_free(struct head_tape *tape); /* NULL is fine */
CLEANUP_FREE(head_tape, struct head_tape, head_tape_free)

/* *total += L (not times the factor) of the hidden states x [T, h] F32 that the last block gives, which stay; dx [T, h]
 * (may be NULL) = the gradient with respect to them, overwritten; grads (may be NULL) gains its own. dx may be x. A
 * token without a label has a gradient of 0. Waits. ERR_INVALID_PARAMETER: a label is not in the vocabulary. */
int head_backward(const struct head *head, struct head_tape *tape, const struct tensor *x, const struct head_loss *loss,
                  const struct tensor *dx, const struct head_grads *grads, double *total);
