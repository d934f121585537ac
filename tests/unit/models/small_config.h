#pragma once
/* The smallest config.json of a family, with members added or (null) taken back by `more`. */

#include "base/err.h"
#include "models/arch.h"
#include "tests/unit/json.h"

#include <check.h>
#include <string.h>

/* What is refused: with which code, and a word of the reason. */
struct refused_config {
    const char *architecture, *more;
    int code;
    const char *word;
};

static inline int small_config(const char *architecture, const char *more, struct model_config *out)
{
    json_t *config = json_pack("{s:[s], s:i, s:i, s:i, s:i, s:i, s:i}", "architectures", architecture, "hidden_size",
                               64, "intermediate_size", 96, "num_hidden_layers", 4, "num_attention_heads", 4,
                               "num_key_value_heads", 2, "vocab_size", 100);
    json_t *extra = json_of(more);

    json_object_update(config, extra);
    int rc = arch_parse_config(config, out);
    json_decref(extra);
    json_decref(config);
    return rc;
}

/* Returns the code. */
static inline int check_refused(const struct refused_config *row, struct model_config *out)
{
    int rc = small_config(row->architecture, row->more, out);

    ck_assert_msg(rc == row->code, "%s: %d for %s: %s", row->architecture, rc, row->more, err_last()->message);
    ck_assert_msg(strstr(err_last()->message, row->word) != NULL, "%s: %s says: %s", row->architecture, row->more,
                  err_last()->message);
    return rc;
}
