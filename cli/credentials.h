#pragma once
/* Who pushes to a registry: given on the command line, or as docker login, podman login and others have stored it in
 * $DOCKER_CONFIG/config.json (~/.docker/config.json). No message has a password. */

#include "base/cleanup.h"

#include <stdbool.h>

struct credentials {
    char *user, *password; /* NULL: none, which is anonymous */
    char *identity;        /* a token of an earlier login in place of the password, or NULL */
    bool elsewhere;        /* the file names a program that has them, which is not asked */
};

/* Those of the file for a registry ("docker.io", "localhost:5000"). Without a file, or an entry in it, there are none.
 * ERR_CONFIG when it cannot be read or an entry is damaged. */
int credentials_load(const char *registry, struct credentials *out);
/* The same of the text of a file named path. */
int credentials_parse(const char *path, const char *text, size_t size, const char *registry, struct credentials *out);
/* The first line of standard input is the password. */
int credentials_read(const char *user, struct credentials *out);
/* "Basic ..." of user and password. Caller frees. */
int credentials_basic(const struct credentials *credentials, char **out);
void credentials_deinit(struct credentials *credentials);
CLEANUP_DEINIT(credentials, struct credentials, credentials_deinit)
