/* Options to the members of a recommendation. */

#include "cli/jobgoal.h"

#include "base/err.h"
#include "cli/members.h"

bool jobgoal_given(const struct jobgoal *options)
{
    return options->goal != NULL || options->accelerator != NULL || options->runtime != NULL ||
           options->batch != OPTION_UNSET || options->prompt_tokens != OPTION_UNSET ||
           options->output_tokens != OPTION_UNSET;
}

int jobgoal_members(const struct jobgoal *options, json_t *object)
{
    json_error_t error;

    TRY(members_text(object, "goal", options->goal));
    TRY(members_text(object, "runtime", options->runtime));
    if (options->accelerator != NULL && options->accelerator[0] == '{') {
        json_t *numbers = json_loads(options->accelerator, JSON_REJECT_DUPLICATES, &error);
        if (numbers == NULL) {
            return err_set_hint(err_raise(ERR_CONFIG, "--accelerator is not JSON: %.100s", error.text),
                                "{\"memory_bytes\": 24e9, \"bandwidth_bytes_per_second\": 9e11, \"bf16_tflops\": 80}");
        }
        (void)json_object_set_new(object, "accelerator", numbers);
    } else {
        TRY(members_text(object, "accelerator", options->accelerator));
    }
    members_int(object, "batch", options->batch);
    members_int(object, "prompt_tokens", options->prompt_tokens);
    members_int(object, "output_tokens", options->output_tokens);
    return 0;
}
