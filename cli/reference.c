/* Names of images. */

#include "cli/reference.h"

#include "base/err.h"

#include <regex.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define DOCKER_HUB "docker.io"
#define DOCKER_SERVER "registry-1.docker.io"
#define HUB_OFFICIAL "library/"
#define REGISTRY_PATTERN "^([a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?|\\[[0-9a-fA-F:.]+\\])(:[0-9]{1,5})?$"
/* As the distribution specification has it. */
#define REPOSITORY_PATTERN "^[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*)*$"
#define TAG_PATTERN "^[a-zA-Z0-9_][a-zA-Z0-9._-]*$"

static bool matches(const char *pattern, const char *text)
{
    regex_t compiled;

    if (regcomp(&compiled, pattern, REG_EXTENDED | REG_NOSUB) != 0) {
        return false;
    }
    bool found = regexec(&compiled, text, 0, NULL, 0) == 0;
    regfree(&compiled);
    return found;
}

/* The size bytes at text, if they fit and match. */
static int copy_part(char *out, size_t capacity, const char *text, size_t size, const char *pattern, const char *what)
{
    if (size < capacity) {
        memcpy(out, text, size);
        out[size] = '\0';
        if (matches(pattern, out)) {
            return 0;
        }
    }
    return err_raise(ERR_CONFIG, "\"%.*s\" is not the name of a %s", (int)(size < 300 ? size : 300), text, what);
}

static int split_registry(struct reference *out)
{
    bool hub = strcmp(out->registry, DOCKER_HUB) == 0 || strcmp(out->registry, "index." DOCKER_HUB) == 0;

    snprintf(out->server, sizeof(out->server), "%s", hub ? DOCKER_SERVER : out->registry);
    snprintf(out->host, sizeof(out->host), "%s", out->server);
    char *port = strrchr(out->host, ':');
    if (port != NULL && strchr(port, ']') == NULL) {
        *port = '\0';
    }
    if (!hub || strchr(out->repository, '/') != NULL) {
        return 0;
    }
    if (strlen(HUB_OFFICIAL) + strlen(out->repository) > REFERENCE_REPOSITORY_MAX) {
        return err_raise(ERR_CONFIG, "the repository's name is too long");
    }
    memmove(out->repository + strlen(HUB_OFFICIAL), out->repository, strlen(out->repository) + 1);
    memcpy(out->repository, HUB_OFFICIAL, strlen(HUB_OFFICIAL));
    return 0;
}

/* As Docker tells a registry from the first part of a repository. */
static bool names_registry(const char *text, size_t size)
{
    return memchr(text, '.', size) != NULL || memchr(text, ':', size) != NULL ||
           (size == strlen("localhost") && strncmp(text, "localhost", size) == 0);
}

int reference_parse(const char *text, struct reference *out)
{
    struct reference parsed = {.tag = "latest"};
    const char *slash = strchr(text, '/');

    if (strstr(text, "://") != NULL) {
        return err_set_hint(err_raise(ERR_CONFIG, "the name of an image has no scheme"),
                            "write REGISTRY/REPOSITORY:TAG, such as localhost:5000/models/llama:w4");
    }
    if (slash == NULL || !names_registry(text, (size_t)(slash - text))) {
        return err_set_hint(err_raise(ERR_CONFIG, "\"%.300s\" does not say which registry", text),
                            "write REGISTRY/REPOSITORY:TAG, such as docker.io/NAME/llama:w4 or localhost:5000/llama");
    }
    if (strchr(text, '@') != NULL) {
        return err_set_hint(err_raise(ERR_CONFIG, "the digest of an image follows from its content"),
                            "name a tag, or none");
    }
    TRY(copy_part(parsed.registry, sizeof(parsed.registry), text, (size_t)(slash - text), REGISTRY_PATTERN,
                  "registry"));
    const char *rest = slash + 1, *colon = strchr(rest, ':');
    size_t size = colon != NULL ? (size_t)(colon - rest) : strlen(rest);
    TRY(copy_part(parsed.repository, sizeof(parsed.repository), rest, size, REPOSITORY_PATTERN,
                  "repository (lower-case letters, digits, and . _ - between them)"));
    if (colon != NULL) {
        TRY(copy_part(parsed.tag, sizeof(parsed.tag), colon + 1, strlen(colon + 1), TAG_PATTERN, "tag"));
    }
    TRY(split_registry(&parsed));
    *out = parsed;
    return 0;
}
