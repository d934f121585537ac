/* Added tokens: a list for tokenizer.json up to the first NUL, and a text; the vocabulary is always good. Ids
 * are none below zero and the same when asked again. */

#include "models/tokenizer.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_MAX 1024

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char before[] = "{\"added_tokens\":";
static const char after[] = ",\"model\":{\"type\":\"BPE\",\"byte_fallback\":false,\"vocab\":"
                            "{\"a\":0,\"b\":1,\"ab\":2,\" \":3,\"<\":4,\">\":5},\"merges\":[\"a b\"]}}";

static void encode(const struct tokenizer *tokenizer, const char *text, size_t size)
{
    struct tokenizer_scratch *scratch = NULL;
    const int32_t *ids = NULL;
    size_t count = 0, again = 0;

    if (tokenizer_scratch_new(tokenizer, &scratch) != 0) {
        return;
    }
    if (tokenizer_encode(tokenizer, scratch, text, size, true, &ids, &count) == 0) {
        for (size_t i = 0; i < count; i++) {
            if (ids[i] < 0) {
                abort();
            }
        }
        if (tokenizer_encode(tokenizer, scratch, text, size, true, &ids, &again) != 0 || again != count) {
            abort();
        }
    }
    tokenizer_scratch_free(scratch);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *cut = size > 0 ? memchr(data, '\0', size) : NULL;
    size_t list = cut != NULL ? (size_t)(cut - data) : size, text = cut != NULL ? size - list - 1 : 0;
    struct tokenizer *tokenizer = NULL;

    size_t length = strlen(before) + list + strlen(after);
    char *json = malloc(length + 1);
    if (json == NULL) {
        abort();
    }
    memcpy(json, before, strlen(before));
    if (list > 0) {
        memcpy(json + strlen(before), data, list);
    }
    memcpy(json + strlen(before) + list, after, sizeof(after));
    if (tokenizer_new(json, length, &tokenizer) == 0) {
        encode(tokenizer, "ab <a> b", 8);
        if (cut != NULL && text <= TEXT_MAX) {
            encode(tokenizer, (const char *)cut + 1, text);
        }
        tokenizer_free(tokenizer);
    }
    free(json);
    return 0;
}
