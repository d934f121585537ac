/* Who asks. A challenge is "Basic", or "Bearer" with the address of a token server, which sells tokens for a scope
 * (distribution.github.io/distribution/spec/auth/token): anonymously, for a password, or for an identity token. */

#include "cli/registry_internal.h"

#include "base/err.h"
#include "base/json.h"
#include "base/mem.h"
#include "cli/status.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define TOKEN_MAX ((size_t)64 << 10)
#define TOKEN_ANSWER_DEPTH 8
#define FORM_MAX ((size_t)128 << 10)

struct challenge {
    char realm[REGISTRY_URL_MAX], service[512];
};

/* A token or a quoted string at *text into out; false when there is none, or it does not fit. */
static bool read_parameter(const char **text, char *out, size_t size)
{
    const char *at = *text;
    bool quoted = *at == '"';
    size_t used = 0;

    for (at += quoted; *at != '\0' && (quoted ? *at != '"' : strchr(" \t,", *at) == NULL); at++) {
        if (quoted && *at == '\\' && at[1] != '\0') {
            at++;
        }
        if (used + 1 >= size || iscntrl((unsigned char)*at)) {
            return false;
        }
        out[used++] = *at;
    }
    out[used] = '\0';
    if (quoted && *at != '"') {
        return false;
    }
    *text = at + quoted;
    return true;
}

/* name=value, name="value", ... */
static bool read_challenge(const char *text, struct challenge *out)
{
    while (*text != '\0') {
        char name[32] = "", value[REGISTRY_URL_MAX];
        text += strspn(text, " \t,");
        size_t size = strcspn(text, "=, \t");
        snprintf(name, sizeof(name), "%.*s", (int)(size < sizeof(name) ? size : 0), text);
        text += size + strspn(text + size, " \t");
        if (*text != '=') {
            break; /* the next challenge, or nothing */
        }
        text += 1 + strspn(text + 1, " \t");
        if (!read_parameter(&text, value, sizeof(value))) {
            return false;
        }
        if (strcasecmp(name, "realm") == 0) {
            snprintf(out->realm, sizeof(out->realm), "%s", value);
        } else if (strcasecmp(name, "service") == 0) {
            snprintf(out->service, sizeof(out->service), "%s", value);
        }
    }
    return out->realm[0] != '\0';
}

static int set_authorization(struct registry *registry, const char *scheme, const char *value)
{
    AUTO_FREE char *line = NULL;
    size_t size = strlen(value) + 64;

    TRY(mem_array(&line, size));
    snprintf(line, size, "Authorization: %s%s", scheme, value);
    free(registry->authorization);
    registry->authorization = MOVE(line);
    return 0;
}

static int need_credentials(const struct registry *registry)
{
    bool elsewhere = registry->options.credentials->elsewhere;
    int rc = status_fail(STATUS_REFUSED, "%s wants to know who pushes to %s", registry->name,
                         registry->options.reference->repository);

    return elsewhere ? err_set_hint(rc, "its credentials are in a credential helper, which quantctl does not ask: "
                                        "--username NAME --password-stdin")
                     : err_set_hint(rc, "docker login %s, or --username NAME --password-stdin", registry->name);
}

/* What the token server is asked: a query, or a form with an identity token. */
static int token_request(const struct registry *registry, const struct challenge *challenge, bool form, char *out,
                         size_t size)
{
    char scope[REFERENCE_REPOSITORY_MAX + 64];

    snprintf(scope, sizeof(scope), "repository:%s:pull,push", registry->options.reference->repository);
    TRY(http_escape(out, size, "scope=", "="));
    TRY(http_escape(out, size, scope, ""));
    if (challenge->service[0] != '\0') {
        TRY(http_escape(out, size, "&service=", "&="));
        TRY(http_escape(out, size, challenge->service, ""));
    }
    if (form) {
        TRY(http_escape(out, size, "&grant_type=refresh_token&client_id=quantctl&refresh_token=", "&=_"));
        TRY(http_escape(out, size, registry->options.credentials->identity, ""));
    }
    return 0;
}

static int take_token(struct registry *registry, const struct http_answer *answer)
{
    AUTO_JSON json_t *body = NULL;

    if (json_parse(answer->body != NULL ? answer->body : "", answer->size, TOKEN_ANSWER_DEPTH, &body) != 0) {
        return status_fail(STATUS_SERVER, "the token server of %s did not answer with JSON", registry->name);
    }
    const char *token = json_get_string(body, "token");
    token = token != NULL ? token : json_get_string(body, "access_token");
    bool plain = token != NULL && token[0] != '\0' && strlen(token) <= TOKEN_MAX;
    for (const char *at = token; plain && *at != '\0'; at++) {
        plain = isgraph((unsigned char)*at) != 0; /* it becomes a header */
    }
    return plain ? set_authorization(registry, "Bearer ", token)
                 : status_fail(STATUS_SERVER, "the token server of %s answered without a token", registry->name);
}

static int ask_for_token(struct registry *registry, const struct challenge *challenge)
{
    const struct credentials *credentials = registry->options.credentials;
    bool form = credentials->identity != NULL;
    char origin[REGISTRY_URL_MAX], path[HTTP_PATH_MAX], *asked = NULL;
    AUTO_FREE char *basic = NULL;
    AUTO_FREE char *line = NULL;
    AUTO_FREE char *body = NULL;
    AUTO(http) struct http *server = NULL;
    AUTO(http_answer) struct http_answer answer = {0};

    TRY(registry_split_url(NULL, challenge->realm, origin, path));
    TRY(registry_connect(registry, origin, form || credentials->user != NULL, &server));
    if (form) {
        TRY(mem_array(&body, FORM_MAX));
        asked = body;
    } else {
        TRY(http_escape(path, sizeof(path), strchr(path, '?') != NULL ? "&" : "?", "?&"));
        asked = path;
    }
    TRY(token_request(registry, challenge, form, asked, form ? FORM_MAX : sizeof(path)));
    if (!form && credentials->user != NULL) {
        TRY(credentials_basic(credentials, &basic));
        TRY(mem_array(&line, strlen(basic) + 32));
        (void)sprintf(line, "Authorization: %s", basic);
    }
    const char *const headers[] = {line, NULL};
    const struct http_call call = {.method = form ? "POST" : "GET",
                                   .path = path,
                                   .headers = headers,
                                   .type = form ? "application/x-www-form-urlencoded" : NULL,
                                   .body = body,
                                   .size = body != NULL ? strlen(body) : 0};
    TRY(http_call(server, &call, &answer));
    if (answer.status == 400 || answer.status == 401 || answer.status == 403) {
        return credentials->user != NULL || form
                   ? status_fail(STATUS_REFUSED, "%s does not accept the credentials (%ld)", origin, answer.status)
                   : need_credentials(registry);
    }
    return answer.status >= 200 && answer.status <= 299
               ? take_token(registry, &answer)
               : registry_refused(registry, "the request for a token", &answer);
}

int registry_authenticate(struct registry *registry)
{
    const struct credentials *credentials = registry->options.credentials;
    struct challenge challenge = {0};
    const char *text = registry->headers.challenge;
    AUTO_FREE char *basic = NULL;

    if (strncasecmp(text, "Bearer ", 7) == 0) {
        return read_challenge(text + 7, &challenge)
                   ? ask_for_token(registry, &challenge)
                   : status_fail(STATUS_SERVER, "%s asks for a token without saying where it is from", registry->name);
    }
    if (strncasecmp(text, "Basic", 5) != 0) {
        return status_fail(STATUS_SERVER, "%s asks for neither a password nor a token (401)", registry->name);
    }
    if (credentials->user == NULL) {
        return need_credentials(registry);
    }
    if (registry->authorization != NULL) {
        return status_fail(STATUS_REFUSED, "%s does not accept the credentials of %s (401)", registry->name,
                           credentials->user);
    }
    TRY(credentials_basic(credentials, &basic));
    return set_authorization(registry, "", basic);
}
