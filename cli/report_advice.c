/* quantctl report: the sentences of a report and its suggestions, and a request with one of them. */

#include "cli/report_advice.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/json.h"
#include "cli/print.h"
#include "cli/safe.h"

#include <math.h>
#include <stdlib.h>

static void show_worst(const json_t *worst)
{
    const json_t *item;
    size_t i;

    json_array_foreach(worst, i, item)
    {
        safe_printf(stdout, "  %s\n", print_text(item, "module"));
        safe_printf(stdout, "    %s\n", print_text(item, "sentence"));
    }
}

/* "removes 12.3 % of the error for 1.5 MiB"; what is not predicted is left out. */
static void show_effect(const json_t *suggestion)
{
    const json_t *removed = json_object_get(suggestion, "error_removed");
    double bytes = json_number_value(json_object_get(suggestion, "bytes_added"));
    char a[PRINT_SIZE], effect[64] = "effect not predicted";

    if (json_is_number(removed)) {
        (void)snprintf(effect, sizeof(effect), "removes about %.3g %% of the error", 100 * json_number_value(removed));
    }
    safe_printf(stdout, "     %s, %s%s\n", effect, bytes > 0 ? "adds " : "adds no bytes",
                bytes > 0 ? print_bytes(bytes, a) : "");
}

static void show_suggestions(const json_t *suggestions)
{
    const json_t *item;
    size_t i;

    if (!json_is_array(suggestions)) {
        return;
    }
    printf("\nsuggestions%s\n",
           json_array_size(suggestions) > 0 ? "" : ": none would remove a notable part of the error");
    json_array_foreach(suggestions, i, item)
    {
        char *patch = json_dumps(json_object_get(item, "patch"), JSON_COMPACT | JSON_ENSURE_ASCII);
        safe_printf(stdout, "  %zu. %s\n", i + 1, print_text(item, "reason"));
        show_effect(item);
        safe_printf(stdout, "     basis: %s\n", print_text(item, "basis"));
        safe_printf(stdout, "     %s\n", patch != NULL ? patch : "-");
        free(patch);
    }
}

void report_advice_show(const json_t *report)
{
    const json_t *anatomy = json_object_get(report, "anatomy");

    if (json_is_object(anatomy)) {
        safe_printf(stdout, "\n%s\n", print_text(anatomy, "summary"));
        show_worst(json_object_get(anatomy, "worst"));
    }
    show_suggestions(json_object_get(report, "suggestions"));
}

int report_advice_apply(const json_t *report, int64_t number)
{
    const json_t *suggestions = json_object_get(report, "suggestions");
    const json_t *chosen = number >= 1 ? json_array_get(suggestions, (size_t)number - 1) : NULL;

    if (chosen == NULL) {
        int rc = err_raise(ERR_CONFIG, "the report has no suggestion %lld", (long long)number);
        return err_set_hint(rc, "it has %zu", json_array_size(suggestions));
    }
    AUTO_JSON json_t *body = json_merge_patch(json_object_get(report, "request"), json_object_get(chosen, "patch"));
    if (body == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a request");
    }
    print_json(body);
    return 0;
}
