#pragma once
/* The bodies of the rows of ops_cases. `variant` is the number in the row; each body says what it means. */

#include "base/err.h"
#include "tests/conformance/ops.h"

/* --- ops_forward.c: what a decoder block is made of */
int body_copies(struct ops_rig *rig, int variant, struct ops_output *out);
int body_events(struct ops_rig *rig, int variant, struct ops_output *out);
int body_convert(struct ops_rig *rig, int variant, struct ops_output *out);
int body_linear(struct ops_rig *rig, int variant, struct ops_output *out);
int body_embed(struct ops_rig *rig, int variant, struct ops_output *out);
int body_norm(struct ops_rig *rig, int variant, struct ops_output *out);
int body_rope(struct ops_rig *rig, int variant, struct ops_output *out);
int body_copy_columns(struct ops_rig *rig, int variant, struct ops_output *out);
int body_attention(struct ops_rig *rig, int variant, struct ops_output *out);
int body_activate(struct ops_rig *rig, int variant, struct ops_output *out);
int body_soft_cap(struct ops_rig *rig, int variant, struct ops_output *out);
int body_add(struct ops_rig *rig, int variant, struct ops_output *out);
int body_nll(struct ops_rig *rig, int variant, struct ops_output *out);
int body_find_nonfinite(struct ops_rig *rig, int variant, struct ops_output *out);

/* --- ops_solve.c: statistics, grids, solves and what they lose */
#define OPS_FACTOR_MAX 600
/* Every 7th step, which is a permutation while 7 does not divide n. */
void ops_shuffle(int32_t *order, int n);
/* H = X^T X / T of columns that lean on each other, one of them dead; the same on every backend. */
int ops_hessian(struct ops_rig *rig, int n, struct tensor *h);
/* An upper factor with what GPTQ meets: a diagonal well away from zero, the rest smaller. */
int ops_upper(struct ops_rig *rig, int64_t n, struct tensor *u);
int body_gram(struct ops_rig *rig, int variant, struct ops_output *out);
int body_symmetrize(struct ops_rig *rig, int variant, struct ops_output *out);
int body_column_stats(struct ops_rig *rig, int variant, struct ops_output *out);
int body_grid(struct ops_rig *rig, int variant, struct ops_output *out);
int body_round(struct ops_rig *rig, int variant, struct ops_output *out);
int body_factor(struct ops_rig *rig, int variant, struct ops_output *out);
int body_factor_refuses(struct ops_rig *rig, int variant, struct ops_output *out);
int body_sweep_levels(struct ops_rig *rig, int variant, struct ops_output *out);
int body_sweep(struct ops_rig *rig, int variant, struct ops_output *out);
int body_descend(struct ops_rig *rig, int variant, struct ops_output *out);
int body_descend_both(struct ops_rig *rig, int variant, struct ops_output *out);
int body_residual(struct ops_rig *rig, int variant, struct ops_output *out);
int body_distribution(struct ops_rig *rig, int variant, struct ops_output *out);
int body_column_energy(struct ops_rig *rig, int variant, struct ops_output *out);
int body_output_error(struct ops_rig *rig, int variant, struct ops_output *out);
int body_zero_dead(struct ops_rig *rig, int variant, struct ops_output *out);
int body_scale(struct ops_rig *rig, int variant, struct ops_output *out);
int body_quantize_input(struct ops_rig *rig, int variant, struct ops_output *out);
int body_tiles(struct ops_rig *rig, int variant, struct ops_output *out);

/* --- ops_grad.c: the backward pass */
int body_linear_grad(struct ops_rig *rig, int variant, struct ops_output *out);
int body_column_sums(struct ops_rig *rig, int variant, struct ops_output *out);
int body_norm_grad(struct ops_rig *rig, int variant, struct ops_output *out);
int body_attention_grad(struct ops_rig *rig, int variant, struct ops_output *out);
int body_activate_grad(struct ops_rig *rig, int variant, struct ops_output *out);
int body_soft_cap_grad(struct ops_rig *rig, int variant, struct ops_output *out);
int body_add_columns(struct ops_rig *rig, int variant, struct ops_output *out);
int body_quantize_input_grad(struct ops_rig *rig, int variant, struct ops_output *out);
int body_row_dots(struct ops_rig *rig, int variant, struct ops_output *out);
int body_route_grad(struct ops_rig *rig, int variant, struct ops_output *out);
int body_loss_grad(struct ops_rig *rig, int variant, struct ops_output *out);
int body_fake_round(struct ops_rig *rig, int variant, struct ops_output *out);
int body_fake_levels(struct ops_rig *rig, int variant, struct ops_output *out);
int body_optimizers(struct ops_rig *rig, int variant, struct ops_output *out);

/* --- ops_target.c */
int body_combine(struct ops_rig *rig, int variant, struct ops_output *out);
int body_cross(struct ops_rig *rig, int variant, struct ops_output *out);
int body_solve(struct ops_rig *rig, int variant, struct ops_output *out);
int body_solve_hessian(struct ops_rig *rig, int variant, struct ops_output *out);

/* --- ops_search.c */
int body_encode_blocks(struct ops_rig *rig, int variant, struct ops_output *out);
int body_row_dot(struct ops_rig *rig, int variant, struct ops_output *out);
int body_refine(struct ops_rig *rig, int variant, struct ops_output *out);
int body_cluster_rows(struct ops_rig *rig, int variant, struct ops_output *out);
int body_multiply(struct ops_rig *rig, int variant, struct ops_output *out);
int body_codebook_nonfinite(struct ops_rig *rig, int variant, struct ops_output *out);
int body_codebook(struct ops_rig *rig, int variant, struct ops_output *out);
int body_cache(struct ops_rig *rig, int variant, struct ops_output *out);
int body_attention_error(struct ops_rig *rig, int variant, struct ops_output *out);

/* --- ops_experts.c */
int body_route(struct ops_rig *rig, int variant, struct ops_output *out);
int body_experts(struct ops_rig *rig, int variant, struct ops_output *out);

/* --- ops_recurrent.c */
int body_causal_conv(struct ops_rig *rig, int variant, struct ops_output *out);
int body_delta_rule(struct ops_rig *rig, int variant, struct ops_output *out);
int body_state_scan(struct ops_rig *rig, int variant, struct ops_output *out);
int body_gated_norm(struct ops_rig *rig, int variant, struct ops_output *out);
