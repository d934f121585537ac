/* config.json to a model_config: every member that changes the arithmetic is read and bounded, and a value that this
 * forward pass does not know is refused with its name. Members that only steer training or generation are ignored,
 * auto_map above all: no code comes from a checkpoint. */

#include "models/arch.h"

#include "base/err.h"
#include "base/json.h"
#include "gpu/gpu.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define HIDDEN_MAX ((int64_t)1 << 20)
#define WIDE_MAX ((int64_t)1 << 22)
#define LAYERS_MAX ARCH_LAYERS_MAX
#define HEADS_MAX 8192
#define HEAD_DIM_MAX 4096
#define VOCAB_MAX ((int64_t)1 << 24)
#define POSITION_MAX ((int64_t)1 << 31)
#define EXPERTS_MAX ARCH_EXPERTS_MAX

/* An error found by base's getters, which speak of request members, as one of the checkpoint. */
static int in_config(int rc)
{
    return rc >= 0 ? rc : err_raise(ERR_INVALID_MODEL, "config.json: %s", err_last()->message);
}

/* A required integer; with a fallback > 0 it may be absent or null. */
static int config_int(const json_t *config, const char *key, int64_t max, int64_t fallback, int64_t *out)
{
    int rc = in_config(json_get_int(config, key, 1, max, out));

    if (rc != 0) {
        return rc < 0 ? rc : 0;
    }
    if (fallback <= 0) {
        return err_raise(ERR_INVALID_MODEL, "config.json: %s is missing", key);
    }
    *out = fallback;
    return 0;
}

/* A number in (0, max]; absent: *out stays. */
static int read_positive(const json_t *object, const char *key, double max, double *out)
{
    double value = *out;
    int rc = in_config(json_get_number(object, key, &value));

    if (rc == 1 && !(value > 0 && value <= max)) {
        return err_raise(ERR_INVALID_MODEL, "config.json: %s = %g is not in (0, %g]", key, value, max);
    }
    if (rc == 1) {
        *out = value;
    }
    return rc < 0 ? rc : 0;
}

/* Absent or null: *out stays. */
static int read_flag(const json_t *config, const char *key, bool *out)
{
    int rc = in_config(json_get_bool(config, key, out));
    return rc < 0 ? rc : 0;
}

static int unsupported(const char *what, const char *value)
{
    char known[256] = "";

    for (const struct arch *const *row = arch_list(); *row != NULL; row++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof(known) - used, "%s%s", used > 0 ? ", " : "", (*row)->name);
    }
    int rc = err_raise(ERR_UNSUPPORTED_ARCHITECTURE, "%s \"%.100s\" is not supported", what, value);
    return err_set_hint(rc, "supported architectures: %s; rope types default, linear, llama3; hidden_act silu", known);
}

/* Some loaders go by model_type and some by architectures: where the two disagree, so would their results. */
static int check_model_type(const json_t *config, const struct arch *arch)
{
    const json_t *value = json_object_get(config, "model_type");
    const char *type = json_string_value(value);

    if (value == NULL || json_is_null(value) || (type != NULL && strcmp(type, arch->model_type) == 0)) {
        return 0;
    }
    if (type == NULL) {
        return err_raise(ERR_INVALID_MODEL, "config.json: model_type is not a string");
    }
    return err_set_hint(err_raise(ERR_INVALID_MODEL, "config.json: model_type \"%.60s\" contradicts architectures, %s",
                                  type, arch->name),
                        "the model_type of %s is \"%s\"", arch->name, arch->model_type);
}

static int find_arch(const json_t *config, const struct arch **out)
{
    const json_t *list = json_object_get(config, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));

    if (name == NULL) {
        return unsupported("an architecture without a name in config.json's list \"architectures\",", "");
    }
    for (const struct arch *const *row = arch_list(); *row != NULL; row++) {
        if (strcmp((*row)->name, name) == 0) {
            *out = *row;
            return check_model_type(config, *row);
        }
    }
    return unsupported("architecture", name);
}

static int check_float(const json_t *config)
{
    static const char *const keys[] = {"quantization_config", "compression_config"};

    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        const json_t *value = json_object_get(config, keys[i]);
        if (value != NULL && !json_is_null(value)) {
            const char *method = json_get_string(value, "quant_method");
            return err_raise(ERR_ALREADY_QUANTIZED, "config.json has a %s of method \"%.60s\"", keys[i],
                             method != NULL ? method : "unknown");
        }
    }
    return 0;
}

static int parse_shape(const json_t *config, struct model_config *c)
{
    const struct arch *arch = c->arch;

    TRY(config_int(config, "hidden_size", HIDDEN_MAX, 0, &c->hidden_size));
    TRY(config_int(config, "intermediate_size", WIDE_MAX, 0, &c->intermediate_size));
    TRY(config_int(config, "num_hidden_layers", LAYERS_MAX, 0, &c->num_layers));
    TRY(config_int(config, "num_attention_heads", HEADS_MAX, 0, &c->num_heads));
    TRY(config_int(config, "vocab_size", VOCAB_MAX, 0, &c->vocab_size));
    TRY(config_int(config, "max_position_embeddings", POSITION_MAX, arch->default_max_position, &c->max_position));
    bool said = json_object_get(config, "num_key_value_heads") != NULL; /* null is said: as many as heads */
    int64_t kv_heads = !said && arch->default_kv_heads > 0 ? arch->default_kv_heads : c->num_heads;
    TRY(config_int(config, "num_key_value_heads", HEADS_MAX, kv_heads, &c->num_kv_heads));
    said = json_object_get(config, "head_dim") != NULL;
    int64_t head_dim = !said && arch->default_head_dim > 0 ? arch->default_head_dim : c->hidden_size / c->num_heads;
    TRY(config_int(config, "head_dim", HEAD_DIM_MAX, head_dim, &c->head_dim));
    if (c->num_heads % c->num_kv_heads != 0) {
        return err_raise(ERR_INVALID_MODEL, "config.json: num_key_value_heads %lld does not divide %lld heads",
                         (long long)c->num_kv_heads, (long long)c->num_heads);
    }
    if (c->head_dim % 2 != 0 || c->head_dim > HEAD_DIM_MAX || c->num_heads * c->head_dim > WIDE_MAX) {
        return err_raise(ERR_INVALID_MODEL,
                         "config.json: %lld heads of %lld: head_dim must be even, at most %d, and "
                         "all heads together at most %lld",
                         (long long)c->num_heads, (long long)c->head_dim, HEAD_DIM_MAX, (long long)WIDE_MAX);
    }
    return 0;
}

/* layer_types: what the window covers, where it is some prefix-free tail of the layers. */
static int parse_layer_types(const json_t *list, struct model_config *c)
{
    int64_t from = c->num_layers;

    if ((int64_t)json_array_size(list) != c->num_layers) {
        return err_raise(ERR_INVALID_MODEL, "config.json: layer_types has %zu entries for %lld layers",
                         json_array_size(list), (long long)c->num_layers);
    }
    for (int64_t i = 0; i < c->num_layers; i++) {
        const char *type = json_string_value(json_array_get(list, (size_t)i));
        bool sliding = type != NULL && strcmp(type, "sliding_attention") == 0;
        if (!sliding && (type == NULL || strcmp(type, "full_attention") != 0)) {
            return unsupported("layer type", type != NULL ? type : "(not a string)");
        }
        if (!sliding && from < i) {
            return unsupported("layer_types with", "full_attention after sliding_attention");
        }
        from = sliding && i < from ? i : from;
    }
    if (from < c->num_layers && c->sliding_window == 0) {
        return err_raise(ERR_INVALID_MODEL, "config.json: layer_types asks for a window, but there is none");
    }
    c->sliding_from_layer = from;
    return 0;
}

static int parse_window(const json_t *config, struct model_config *c)
{
    bool use = c->arch->window == WINDOW_ALL;
    int64_t from = 28; /* max_window_layers' default */

    if (c->arch->window == WINDOW_NEVER) {
        return 0;
    }
    const json_t *window = json_object_get(config, "sliding_window");
    if (window == NULL) {
        c->sliding_window = c->arch->default_window;
    }
    int rc = in_config(json_get_int(config, "sliding_window", 1, POSITION_MAX, &c->sliding_window));
    if (rc < 0 || c->arch->window == WINDOW_ALL) {
        return rc < 0 ? rc : 0;
    }
    TRY(read_flag(config, "use_sliding_window", &use));
    rc = in_config(json_get_int(config, "max_window_layers", 0, POSITION_MAX, &from));
    if (rc < 0) {
        return rc;
    }
    c->sliding_window = use ? c->sliding_window : 0;
    c->sliding_from_layer = from;
    const json_t *types = json_object_get(config, "layer_types");
    return json_is_array(types) ? parse_layer_types(types, c) : 0;
}

static int parse_rope_type(const char *type, const char *place, enum rope_type *out)
{
    static const char *const names[] = {[ROPE_DEFAULT] = "default", [ROPE_LINEAR] = "linear", [ROPE_LLAMA3] = "llama3"};
    char what[64];

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(type, names[i]) == 0) {
            *out = (enum rope_type)i;
            return 0;
        }
    }
    snprintf(what, sizeof(what), "config.json: %s: rope type", place);
    return unsupported(what, type);
}

/* The type in either spelling. Readers disagree on which of two wins, so two must agree. */
static int read_rope_type(const json_t *rope, const char *place, enum rope_type *out)
{
    static const char *const keys[] = {"rope_type", "type"};
    enum rope_type types[] = {ROPE_DEFAULT, ROPE_DEFAULT};
    bool said[] = {false, false};

    for (int i = 0; i < 2; i++) {
        const json_t *value = json_object_get(rope, keys[i]);
        if (value == NULL || json_is_null(value)) {
            continue;
        }
        if (!json_is_string(value)) {
            return err_raise(ERR_INVALID_MODEL, "config.json: %s.%s is not a string", place, keys[i]);
        }
        TRY(parse_rope_type(json_string_value(value), place, &types[i]));
        said[i] = true;
    }
    if (said[0] && said[1] && types[0] != types[1]) {
        return err_raise(ERR_INVALID_MODEL, "config.json: %s names two types, rope_type \"%s\" and type \"%s\"", place,
                         json_get_string(rope, "rope_type"), json_get_string(rope, "type"));
    }
    *out = said[0] ? types[0] : types[1];
    return 0;
}

/* One of the two members: what it holds, or NULL when it is absent, null or empty, which all mean the same. Its type is
 * judged even where the other member counts: a type that is not computed here would show that the checkpoint is meant
 * for another forward pass. */
static int read_rope(const json_t *config, const char *place, const json_t **rope, enum rope_type *type)
{
    const char *key;
    json_t *value;

    *rope = json_object_get(config, place);
    if (*rope == NULL || json_is_null(*rope)) {
        *rope = NULL;
        return 0;
    }
    if (!json_is_object(*rope)) {
        return err_raise(ERR_INVALID_MODEL, "config.json: %s is not an object", place);
    }
    if (json_object_size(*rope) == 0) {
        *rope = NULL;
        return 0;
    }
    json_object_foreach((json_t *)*rope, key, value)
    {
        if (json_is_object(value)) { /* by layer type, as families with two kinds of layers write it */
            return unsupported("config.json: rope parameters by layer type, here", key);
        }
    }
    return read_rope_type(*rope, place, type);
}

/* Where it is given inside and outside of the parameters, versions of the same library take one or the other. */
static int read_original_max(const json_t *config, const json_t *rope, struct model_config *c)
{
    double outer = 0;

    TRY(read_positive(config, "original_max_position_embeddings", 1e10, &outer));
    c->rope_original_max = outer;
    TRY(read_positive(rope, "original_max_position_embeddings", 1e10, &c->rope_original_max));
    if (outer > 0 && outer != c->rope_original_max) {
        return err_raise(ERR_INVALID_MODEL,
                         "config.json: original_max_position_embeddings is %g, and %g in the rope parameters", outer,
                         c->rope_original_max);
    }
    return 0;
}

static int parse_rope_scaling(const json_t *config, const json_t *rope, struct model_config *c)
{
    TRY(read_positive(rope, "factor", 1e6, &c->rope_factor));

    if (c->rope_factor < 1) {
        return err_raise(ERR_INVALID_MODEL, "config.json: a rope factor of at least 1 is needed");
    }
    if (c->rope_type == ROPE_LINEAR) {
        return 0;
    }
    TRY(read_positive(rope, "low_freq_factor", 1e6, &c->rope_low_freq));
    TRY(read_positive(rope, "high_freq_factor", 1e6, &c->rope_high_freq));
    TRY(read_original_max(config, rope, c));
    if (!(c->rope_low_freq > 0 && c->rope_high_freq > c->rope_low_freq && c->rope_original_max > 0)) {
        return err_raise(ERR_INVALID_MODEL, "config.json: llama3 rope needs low_freq_factor < high_freq_factor and "
                                            "original_max_position_embeddings");
    }
    return 0;
}

/* rope_scaling (transformers 4) and rope_parameters (5). With both, transformers 5 takes rope_scaling and forgets the
 * other, its rope_theta too; where that would change theta unseen, the pair is refused. */
static int parse_rope(const json_t *config, struct model_config *c)
{
    const json_t *scaling, *parameters;
    enum rope_type scaling_type = ROPE_DEFAULT, parameters_type = ROPE_DEFAULT;
    double partial = 1, other;

    c->rope_theta = c->arch->default_rope_theta > 0 ? c->arch->default_rope_theta : 10000;
    TRY(read_positive(config, "rope_theta", 1e15, &c->rope_theta));
    TRY(read_positive(config, "partial_rotary_factor", 1, &partial));
    TRY(read_rope(config, "rope_scaling", &scaling, &scaling_type));
    TRY(read_rope(config, "rope_parameters", &parameters, &parameters_type));
    const json_t *rope = scaling != NULL ? scaling : parameters;
    if (rope != NULL) {
        c->rope_type = scaling != NULL ? scaling_type : parameters_type;
        TRY(read_positive(rope, "rope_theta", 1e15, &c->rope_theta));
        TRY(read_positive(rope, "partial_rotary_factor", 1, &partial));
        if (c->rope_type != ROPE_DEFAULT) {
            TRY(parse_rope_scaling(config, rope, c));
        }
    }
    other = c->rope_theta;
    if (parameters != NULL) {
        TRY(read_positive(parameters, "rope_theta", 1e15, &other));
    }
    if (other != c->rope_theta) {
        return err_raise(ERR_INVALID_MODEL,
                         "config.json: rope_scaling replaces rope_parameters, and with it rope_theta = %g by %g; write "
                         "rope_theta into rope_scaling, or keep one of the two members",
                         other, c->rope_theta);
    }
    if (c->rope_theta < 1) {
        return err_raise(ERR_INVALID_MODEL, "config.json: rope_theta = %g is below 1", c->rope_theta);
    }
    return partial < 1 ? unsupported("rope with", "partial_rotary_factor below 1") : 0;
}

/* How many experts there are, in either spelling: transformers 5 writes num_local_experts for every family. */
static int read_experts(const json_t *config, struct model_config *c)
{
    int64_t local = 0;

    TRY(config_int(config, "num_experts", EXPERTS_MAX, c->arch->default_experts, &c->num_experts));
    TRY(config_int(config, "num_local_experts", EXPERTS_MAX, c->num_experts, &local));
    if (local != c->num_experts && json_is_integer(json_object_get(config, "num_experts"))) {
        return err_raise(ERR_INVALID_MODEL, "config.json: num_experts %lld and num_local_experts %lld differ",
                         (long long)c->num_experts, (long long)local);
    }
    c->num_experts = local;
    return 0;
}

static int parse_dense_layers(const json_t *config, struct model_config *c)
{
    const json_t *list = json_object_get(config, "mlp_only_layers");

    if (list != NULL && !json_is_null(list) && !json_is_array(list)) {
        return err_raise(ERR_INVALID_MODEL, "config.json: mlp_only_layers is not a list");
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        json_int_t layer = json_integer_value(entry);
        if (!json_is_integer(entry) || layer < 0 || layer >= c->num_layers) {
            return err_raise(ERR_INVALID_MODEL,
                             "config.json: mlp_only_layers[%zu] is not the number of a layer, 0 to %lld", i,
                             (long long)c->num_layers - 1);
        }
        c->dense_layers[layer / 64] |= (uint64_t)1 << (layer % 64);
    }
    return config_int(config, "decoder_sparse_step", LAYERS_MAX, 1, &c->sparse_step);
}

/* Members of other families of experts, which would change what is computed. */
static int refuse_routing(const json_t *config)
{
    static const char *const shared[] = {"n_shared_experts", "shared_expert_intermediate_size"};
    const char *scores = json_string_value(json_object_get(config, "scoring_func"));
    char value[64];

    for (size_t i = 0; i < sizeof(shared) / sizeof(shared[0]); i++) {
        json_int_t count = json_integer_value(json_object_get(config, shared[i]));
        if (count != 0) {
            snprintf(value, sizeof(value), "%s = %lld", shared[i], (long long)count);
            return unsupported("a layer of experts with", value);
        }
    }
    double factor = json_number_value(json_object_get(config, "routed_scaling_factor"));
    if (factor != 0 && factor != 1) {
        snprintf(value, sizeof(value), "routed_scaling_factor = %g", factor);
        return unsupported("a layer of experts with", value);
    }
    return scores != NULL && strcmp(scores, "softmax") != 0 ? unsupported("scoring_func", scores) : 0;
}

static int parse_experts(const json_t *config, struct model_config *c)
{
    const struct arch *arch = c->arch;

    c->sparse_step = 1;
    if (arch->experts == EXPERTS_NEVER) {
        return 0;
    }
    TRY(read_experts(config, c));
    TRY(config_int(config, "num_experts_per_tok", EXPERTS_MAX, arch->default_experts_per_token, &c->experts_per_token));
    if (c->experts_per_token > c->num_experts || c->experts_per_token > GPU_ROUTE_MAX) {
        return err_raise(ERR_INVALID_MODEL,
                         "config.json: num_experts_per_tok %lld is not in [1, %lld]: there are %lld experts, and at "
                         "most %d for each token are supported",
                         (long long)c->experts_per_token,
                         (long long)(c->num_experts < GPU_ROUTE_MAX ? c->num_experts : GPU_ROUTE_MAX),
                         (long long)c->num_experts, GPU_ROUTE_MAX);
    }
    c->expert_size = c->intermediate_size;
    c->normalize_experts = true;
    if (arch->experts == EXPERTS_SPARSE) {
        c->normalize_experts = false;
        TRY(read_flag(config, "norm_topk_prob", &c->normalize_experts));
        TRY(config_int(config, "moe_intermediate_size", WIDE_MAX, arch->default_expert_size, &c->expert_size));
        TRY(parse_dense_layers(config, c));
    }
    return refuse_routing(config);
}

static int parse_flags(const json_t *config, struct model_config *c)
{
    bool attention_bias = false, mlp_bias = false;

    TRY(read_flag(config, "tie_word_embeddings", &c->tie_word_embeddings));
    TRY(read_flag(config, "attention_bias", &attention_bias));
    TRY(read_flag(config, "mlp_bias", &mlp_bias));
    c->qkv_bias = c->arch->qkv_bias || (c->arch->attention_bias && attention_bias);
    c->o_bias = c->arch->attention_bias && attention_bias;
    c->mlp_bias = c->arch->mlp_bias && mlp_bias;
    const json_t *given = json_object_get(config, "hidden_act");
    const char *act = json_string_value(given);
    if (given != NULL && !json_is_null(given) && act == NULL) {
        return err_raise(ERR_INVALID_MODEL, "config.json: hidden_act is not a string");
    }
    if (act != NULL && strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0) {
        return unsupported("hidden_act", act);
    }
    c->rms_norm_eps = c->arch->default_norm_eps > 0 ? c->arch->default_norm_eps : 1e-6;
    return read_positive(config, "rms_norm_eps", 1, &c->rms_norm_eps);
}

int arch_parse_config(const json_t *config, struct model_config *out)
{
    struct model_config c = {0};

    if (!json_is_object(config)) {
        return err_raise(ERR_INVALID_MODEL, "config.json is not an object");
    }
    TRY(check_float(config));
    TRY(find_arch(config, &c.arch));
    TRY(parse_shape(config, &c));
    TRY(parse_flags(config, &c));
    TRY(parse_rope(config, &c));
    TRY(parse_window(config, &c));
    TRY(parse_experts(config, &c));
    *out = c;
    return 0;
}
