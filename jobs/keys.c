/* API keys. A key's text is 256 random bits of the kernel, so a plain SHA-256 is enough to keep it: there is nothing to
 * guess, and no salt or slow hash would make that harder. */

#include "jobs/keys.h"

#include "base/err.h"
#include "base/params.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#define KEY_RANDOM_BYTES 32
#define KEY_SECONDS_MAX ((int64_t)10 * 366 * 24 * 3600)

const char *const key_scopes[] = {"read", "write", "admin", NULL};

static const char digits[] = "abcdefghijklmnopqrstuvwxyz234567";

bool key_text_valid(const char *text, size_t size)
{
    const size_t prefix = strlen(KEY_PREFIX);

    return size == KEY_TEXT_LENGTH && memcmp(text, KEY_PREFIX, prefix) == 0 &&
           strspn(text + prefix, digits) == size - prefix;
}

bool key_project_valid(const char *project)
{
    size_t size = strlen(project);

    return size > 0 && size < PROJECT_SIZE && strspn(project, "abcdefghijklmnopqrstuvwxyz0123456789_-") == size;
}

static int make_text(char text[KEY_TEXT_SIZE])
{
    unsigned char random[KEY_RANDOM_BYTES];
    unsigned value = 0, bits = 0;
    char *to = stpcpy(text, KEY_PREFIX);

    if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random)) {
        return err_raise_errno(errno, "cannot get random bytes for a key");
    }
    for (size_t i = 0; i < sizeof(random); i++) {
        value = value << 8 | random[i];
        for (bits += 8; bits >= 5; bits -= 5) {
            *to++ = digits[value >> (bits - 5) & 31];
        }
    }
    *to++ = digits[value << (5 - bits) & 31];
    *to = '\0';
    explicit_bzero(random, sizeof(random));
    return 0;
}

#define AT(member_) \
    .offset = offsetof(struct key_request, member_), .size = sizeof(((struct key_request *)NULL)->member_)

static const struct params_row request_rows[] = {
    {"name", PARAMS_STRING, AT(name), .fallback = "\"\"", .help = "A name for people; need not be unique."},
    {"scope", PARAMS_ENUM, AT(scope), .fallback = NULL, .choices = key_scopes,
     .help = "What the key allows: read, write (and read), or admin (everything)."},
    {"project", PARAMS_STRING, AT(project), .fallback = "\"" KEY_PROJECT_DEFAULT "\"",
     .help = "Whose objects it reaches: 1 to 64 of a-z, 0-9, _ and -."},
    {"expires_after_seconds", PARAMS_INT, AT(expires_after_seconds), .fallback = "0", .max = (double)KEY_SECONDS_MAX,
     .help = "When it ends, in seconds from now; 0 = never."},
    {.name = NULL},
};
static const struct params_row *const request_tables[] = {request_rows, NULL};

json_t *key_request_schema(void)
{
    return params_schema(request_tables);
}

int key_request_parse(const json_t *body, struct key_request *out, struct validation_errors *errors)
{
    if (params_parse(request_tables, body, "", out, errors) == 0 && !key_project_valid(out->project)) {
        validation_add(errors, ERR_INVALID_PARAMETER, "/project",
                       "\"project\" is \"%s\"; it must be 1 to 64 of a-z, 0-9, _ and -", out->project);
    }
    return validation_raise(errors);
}

int key_create(struct store *store, const struct key_request *request, char text[KEY_TEXT_SIZE], json_t **key)
{
    struct key_row row = {.created_at = clock_unix_seconds()};
    char made[KEY_TEXT_SIZE], sha256[DIGEST_HEX_SIZE];

    TRY(make_text(made));
    digest_bytes(made, KEY_TEXT_LENGTH, sha256);
    id_new("key", row.id);
    (void)snprintf(row.project, sizeof(row.project), "%s", request->project);
    (void)snprintf(row.name, sizeof(row.name), "%s", request->name);
    (void)snprintf(row.scope, sizeof(row.scope), "%s", key_scopes[request->scope]);
    row.expires_at = request->expires_after_seconds > 0 ? row.created_at + request->expires_after_seconds : 0;
    TRY(store_key_create(store, &row, sha256));
    TRY(store_key_get(store, row.id, key));
    memcpy(text, made, sizeof(made));
    explicit_bzero(made, sizeof(made));
    return 0;
}

static int refuse(const char *why, const char *hint)
{
    return err_set_hint(err_raise(ERR_INVALID_API_KEY, "the API key %s", why), "%s", hint);
}

int key_authenticate(struct store *store, const char sha256[DIGEST_HEX_SIZE], struct key_grant *grant)
{
    static const char ask[] = "ask an administrator for another one";
    struct key_row found;

    int rc = store_key_find(store, sha256, &found);
    if (rc == ERR_NOT_FOUND) {
        return refuse("is not known here", "check that it was copied completely, and that it is a key of this daemon");
    }
    if (rc < 0) {
        return rc;
    }
    if (found.revoked_at != 0) {
        return refuse("was revoked", ask);
    }
    if (found.expires_at != 0 && found.expires_at <= clock_unix_seconds()) {
        return refuse("has expired", ask);
    }
    for (int i = 0; key_scopes[i] != NULL; i++) {
        if (strcmp(key_scopes[i], found.scope) == 0) {
            *grant = (struct key_grant){.scope = i, .expires_at = found.expires_at};
            memcpy(grant->id, found.id, sizeof(grant->id));
            memcpy(grant->project, found.project, sizeof(grant->project));
            return 0;
        }
    }
    return err_raise(ERR_INTERNAL, "key %s has the scope \"%s\", which this build does not know", found.id,
                     found.scope);
}
