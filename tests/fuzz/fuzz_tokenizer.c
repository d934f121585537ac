/* A tokenizer.json and a text: the input is cut at its first NUL. Whatever opens must encode, or say why not, and must
 * give the same ids when asked again (the second time short words come from the cache). */

#include "models/tokenizer.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_MAX 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void encode(const struct tokenizer *tokenizer, const char *text, size_t size)
{
    struct tokenizer_scratch *scratch = NULL;
    const int32_t *ids = NULL;
    size_t count = 0, again = 0;

    if (tokenizer_scratch_new(tokenizer, &scratch) != 0) {
        return;
    }
    if (tokenizer_encode(tokenizer, scratch, text, size, true, &ids, &count) == 0) {
        int32_t *first = malloc((count + 1) * sizeof(*first));
        if (first == NULL) {
            abort();
        }
        if (count > 0) {
            memcpy(first, ids, count * sizeof(*first));
        }
        if (tokenizer_encode(tokenizer, scratch, text, size, true, &ids, &again) != 0 || again != count ||
            (count > 0 && memcmp(first, ids, count * sizeof(*first)) != 0)) {
            abort();
        }
        for (size_t i = 0; i < count; i++) {
            if (ids[i] < 0) {
                abort();
            }
        }
        free(first);
    }
    tokenizer_scratch_free(scratch);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char plain[] = "Hello  w\xc3\xb6rld's 123\r\n\t<x> \xe2\x96\x81 e\xcc\x81 \xf0\x9f\x98\x80 aaaa";
    const char *json = (const char *)data, *cut = size > 0 ? memchr(json, '\0', size) : NULL;
    size_t json_size = cut != NULL ? (size_t)(cut - json) : size;
    struct tokenizer *tokenizer = NULL;

    if (tokenizer_new(json, json_size, &tokenizer) != 0) {
        return 0;
    }
    encode(tokenizer, plain, sizeof(plain) - 1);
    if (cut != NULL && size - json_size - 1 <= TEXT_MAX) {
        encode(tokenizer, cut + 1, size - json_size - 1);
    }
    tokenizer_free(tokenizer);
    return 0;
}
