#pragma once
/* Whom to talk to: the server's URL, the API key and a file of certificates.
 *
 * Each is taken from the first of: the command line (never the key), QUANTD_URL, QUANTD_API_KEY and QUANTD_CA_FILE, the
 * profile file, the default. The file is $XDG_CONFIG_HOME/quantctl/config (~/.config/quantctl/config): lines of
 * "name = value" and comments after '#'. It holds a key, so it is written with mode 0600 and refused when others can
 * read it. */

#include "base/cleanup.h"

#include <stddef.h>

#define PROFILE_DEFAULT_URL "http://127.0.0.1:8080"

struct profile {
    char *url;     /* never NULL after profile_load */
    char *key;     /* NULL = none */
    char *ca_file; /* NULL = the system's */
};

/* The path of the profile file. ERR_CONFIG without a home directory. */
int profile_path(char *out, size_t size);
/* Read text as the file named name. Members that it does not set are left alone. ERR_CONFIG with name and line. */
int profile_parse(const char *name, const char *text, size_t size, struct profile *profile);
/* Environment over file over default. url and ca_file: of the command line, or NULL. */
int profile_load(const char *url, const char *ca_file, struct profile *profile);
int profile_save(const struct profile *profile, const char *path);
/* 0 if key can be a key: visible ASCII without blanks, of a sensible length. ERR_CONFIG otherwise, without the key. */
int profile_check_key(const char *key);
void profile_deinit(struct profile *profile);
CLEANUP_DEINIT(profile, struct profile, profile_deinit)
