/* OLMo 2 (OLMo Team 2024, arXiv 2501.00656) and EXAONE 4 (LG AI Research 2025, arXiv 2507.11407): Llama's attention and
 * MLP read the residual stream itself, and RMS norms follow them; queries and keys have norms over all heads together
 * (OLMo 2) or of each head (EXAONE 4, whose layers of full attention do not rotate next to layers with windows). */

#include "models/families/families.h"

#include "base/err.h"

#include <string.h>

static int olmo2_plan(const struct model_config *c, int64_t layer, struct plan_builder *b, enum family_norms norms)
{
    int out = families_attention(b, c, layer, 0, norms);
    int x = plan_add(b, 0, plan_row_norm(b, out, "post_attention_layernorm", "post_attention_norm"));

    out = families_mlp(b, c, x);
    return plan_add(b, x, plan_row_norm(b, out, "post_feedforward_layernorm", "post_ffw_norm"));
}

int family_olmo2_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    return olmo2_plan(c, layer, b, FAMILY_NORMS_ROW);
}

int family_exaone4_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    return olmo2_plan(c, layer, b, FAMILY_NORMS_HEAD);
}

/* Without sliding_window all layers rotate. Where no layer makes use of one, some programs rotate and some do not. */
int family_exaone4_configure(const json_t *config, struct model_config *c)
{
    bool listed = json_is_array(json_object_get(config, "layer_types")), used = false;

    if (c->sliding_window == 0) {
        memset(c->nope_layers, 0, sizeof(c->nope_layers));
        return 0;
    }
    if (!listed && json_is_null(json_object_get(config, "sliding_window_pattern"))) {
        return err_raise(ERR_INVALID_MODEL, "config.json: sliding_window_pattern is null, but sliding_window is not");
    }
    for (int64_t layer = 0; layer < c->num_layers; layer++) {
        used = used || arch_window(c, layer) > 0;
    }
    return used ? 0
                : err_raise(ERR_INVALID_MODEL, "config.json: sliding_window is %lld, but no layer has a window",
                            (long long)c->sliding_window);
}
