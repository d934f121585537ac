#pragma once
/* Configurations of two small models, and the check of a checkpoint that is refused. */

#include "tests/unit/models/support.h"

static const char config[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":8,\"intermediate_size\":12,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"vocab_size\":10,\"max_position_embeddings\":32}";
static const char tied[] =
    "{\"architectures\":[\"Qwen2ForCausalLM\"],\"hidden_size\":8,\"intermediate_size\":12,\"num_hidden_layers\":1,"
    "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"vocab_size\":10,\"tie_word_embeddings\":true}";

static inline void expect(const struct support *s, int code, const char *word)
{
    struct model *model = NULL;
    int rc = support_open(s, ".", &model);

    ck_assert_msg(rc == code, "%d, not %d: %s", rc, code, err_last()->message);
    ck_assert_msg(strstr(err_last()->message, word) != NULL, "says: %s", err_last()->message);
    ck_assert_ptr_null(model);
}
