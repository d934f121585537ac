/* The dashboard: files that are compiled into the program. They hold no data, so they need no key; what they show comes
 * from the other routes, with the key of who looks at them. */

#include "api/handlers.h"

#include "api/header.h"
#include "api/reply.h"
#include "base/mem.h"
#include "dashboard/dashboard.h"

#include <string.h>

/* Scripts, styles and requests of this origin only, nothing inline, in nobody's frame. */
#define DASHBOARD_POLICY \
    "default-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'; object-src 'none'"

static int dashboard_reply(struct request *request, const struct dashboard_file *file)
{
    bool packed = header_accepts_coding(request_header(request, "Accept-Encoding"), "gzip");
    const char *etag = packed ? file->gzip_etag : file->etag;
    size_t size = packed ? file->gzip_size : file->size;
    char *body = NULL;

    if (header_etag_matches(request_header(request, "If-None-Match"), etag, true)) {
        (void)reply_empty(request, 304);
    } else {
        TRY(mem_buffer(&body, size));
        memcpy(body, packed ? file->gzip : file->data, size);
        (void)reply_text_take(request, 200, file->type, body, size);
        if (packed) {
            reply_header(&request->reply, "Content-Encoding", "gzip");
        }
    }
    reply_header(&request->reply, "ETag", "%s", etag);
    reply_header(&request->reply, "Vary", "Accept-Encoding");
    reply_header(&request->reply, "Cache-Control", "no-cache"); /* kept and asked about: an upgrade shows at once */
    reply_header(&request->reply, "Content-Security-Policy", "%s", DASHBOARD_POLICY);
    reply_header(&request->reply, "Cross-Origin-Opener-Policy", "same-origin");
    reply_header(&request->reply, "Referrer-Policy", "no-referrer");
    return 0;
}

static int dashboard_send(struct request *request, const char *path)
{
    const struct dashboard_file *file = dashboard_find(path);

    if (file != NULL) {
        return dashboard_reply(request, file);
    }
    return dashboard_files[0].path != NULL
               ? err_raise(ERR_NOT_FOUND, "the dashboard has no such file")
               : err_set_hint(err_raise(ERR_NOT_FOUND, "this daemon was built without the dashboard"),
                              "build it with -Ddashboard=enabled");
}

int handlers_get_dashboard(struct request *request)
{
    return dashboard_send(request, DASHBOARD_PAGE);
}

int handlers_get_dashboard_file(struct request *request)
{
    return dashboard_send(request, request->captures[0]);
}
