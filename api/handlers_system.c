/* Health, the descriptions of the API and of the daemon, and the methods. */

#include "api/handlers.h"

#include "api/counters.h"
#include "api/openapi.h"
#include "api/reply.h"
#include "base/cleanup.h"
#include "base/metrics.h"

#include <stdio.h>
#include <string.h>

int handlers_get_liveness(struct request *request)
{
    return reply_json_take(request, 200, json_pack("{s:s}", "status", "ok"));
}

int handlers_get_readiness(struct request *request)
{
    if (atomic_load(&request->context->draining)) {
        return err_raise(ERR_DRAINING, "the daemon is shutting down");
    }
    int rc = service_ready(request->context->service);
    if (rc < 0) {
        reply_problem(request, rc, 503);
        return 0;
    }
    return reply_json_take(request, 200, json_pack("{s:s}", "status", "ready"));
}

int handlers_get_metrics(struct request *request)
{
    AUTO_FREE char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    bool written = out != NULL;

    if (out != NULL) {
        metrics_family(out, "quantd_build_info", "gauge", "The build that runs; its value is 1.");
        const struct metrics_label labels[] = {{"version", QUANTD_VERSION}, {"compiler", __VERSION__}, {NULL, NULL}};
        metrics_count(out, "quantd_build_info", labels, 1);
        counters_write(out);
        if (request->context->tls) {
            metrics_family(out, "quantd_tls_certificate_expiry_timestamp_seconds", "gauge",
                           "End of the server's certificate, in Unix seconds.");
            metrics_count(out, "quantd_tls_certificate_expiry_timestamp_seconds", NULL,
                          (uint64_t)atomic_load(&request->context->certificate_ends_at));
        }
        service_metrics(request->context->service, out);
        written = ferror(out) == 0;
        written = fclose(out) == 0 && written;
    }
    if (!written) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "not enough memory for the metrics");
    }
    return reply_text_take(request, 200, "text/plain; version=0.0.4; charset=utf-8", MOVE(text), size);
}

int handlers_get_system(struct request *request)
{
    return reply_object_take(request, service_system(request->context->service, request->who));
}

int handlers_list_methods(struct request *request)
{
    return reply_object_take(request, service_methods(request->context->service));
}

int handlers_list_architectures(struct request *request)
{
    return reply_object_take(request, service_architectures());
}

int handlers_list_runtimes(struct request *request)
{
    return reply_object_take(request, service_runtimes());
}

int handlers_get_method(struct request *request)
{
    json_t *method = NULL;
    int rc = service_method(request->context->service, request->captures[0], &method);
    return rc < 0 ? rc : reply_object_take(request, method);
}

int handlers_get_openapi(struct request *request)
{
    char *text = NULL;
    TRY(openapi_text(&text));
    TRY(reply_text_take(request, 200, "application/json", text, strlen(text)));
    return reply_tag(request);
}
