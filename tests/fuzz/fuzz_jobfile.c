/* Job files of quantctl: text -> jobfile_parse, in YAML or JSON. What is accepted is an object that JSON can carry; a
 * refusal is a sentence. */

#include "base/err.h"
#include "cli/jobfile.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *value = NULL, *again = NULL;

    int rc = jobfile_parse("job", (const char *)data, size, &value);
    if (rc != 0) {
        if (value != NULL || err_last()->message[0] == '\0') {
            abort();
        }
        return 0;
    }
    char *text = json_dumps(value, JSON_COMPACT);
    if (!json_is_object(value) || text == NULL || jobfile_parse("again", text, strlen(text), &again) != 0 ||
        json_equal(value, again) != 1) {
        abort();
    }
    free(text);
    json_decref(again);
    json_decref(value);
    return 0;
}
