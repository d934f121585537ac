#pragma once
/* What the files that read config.json share. Not for other files. All raise what is wrong as an error of the
 * checkpoint that names the member. */

#include "models/arch.h"

#include <stdint.h>

#define CONFIG_HIDDEN_MAX ((int64_t)1 << 20)
#define CONFIG_WIDE_MAX ((int64_t)1 << 22)
#define CONFIG_HEADS_MAX 8192
#define CONFIG_HEAD_DIM_MAX 4096
#define CONFIG_VOCAB_MAX ((int64_t)1 << 24)
#define CONFIG_POSITION_MAX ((int64_t)1 << 31)

/* --- config_read.c: members. */
/* An error found by base's getters, which speak of request members, as one of the checkpoint. */
int config_check(int rc);
/* A required integer in [1, max]; with a fallback > 0 it may be absent or null. */
int config_int(const json_t *config, const char *key, int64_t max, int64_t fallback, int64_t *out);
/* A number in (0, max]; absent or null: *out stays. */
int config_positive(const json_t *object, const char *key, double max, double *out);
/* Absent or null: *out stays. */
int config_flag(const json_t *config, const char *key, bool *out);
/* A number in [0, 1e6]; absent or null: *out stays. */
int config_optional(const json_t *object, const char *key, double *out);
/* An integer in [0, max]; absent or null: *out stays. */
int config_count(const json_t *config, const char *key, int64_t max, int64_t *out);
/* ERR_UNSUPPORTED_ARCHITECTURE: <what> "<value>" is not supported. */
int config_unsupported(const char *what, const char *value);

/* --- Parts of a configuration, in this order. */
int config_shape(const json_t *config, struct model_config *c);
int config_latent(const json_t *config, struct model_config *c);
int config_activation(const json_t *config, struct model_config *c);
int config_norms(const json_t *config, struct model_config *c);
int config_layers(const json_t *config, struct model_config *c);
int config_full_heads(const json_t *config, struct model_config *c);
int config_recurrent(const json_t *config, struct model_config *c);
/* How many layers the lists of a hybrid name; 0: it has none. */
int64_t config_recurrent_layers(const json_t *config);
int config_rope(const json_t *config, struct model_config *c);
int config_factors(const json_t *config, struct model_config *c);
int config_experts(const json_t *config, struct model_config *c);
