/* The profile file and the environment. No message has a key's text. */

#include "cli/profile.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PROFILE_FILE_MAX ((size_t)64 << 10)
#define PROFILE_PATH_MAX 4096
#define PROFILE_KEY_MAX 512

struct member {
    const char *name, *variable;
    size_t offset;
};

static const struct member members[] = {
    {"url", "QUANTD_URL", offsetof(struct profile, url)},
    {"api_key", "QUANTD_API_KEY", offsetof(struct profile, key)},
    {"ca_file", "QUANTD_CA_FILE", offsetof(struct profile, ca_file)},
};
#define MEMBERS (sizeof(members) / sizeof(members[0]))

static char **profile_slot(struct profile *profile, const struct member *member)
{
    return (char **)(void *)((char *)profile + member->offset);
}

static int profile_set(char **slot, const char *text)
{
    AUTO_FREE char *copy = NULL;

    TRY(mem_strdup(&copy, text));
    free(*slot);
    *slot = MOVE(copy);
    return 0;
}

void profile_deinit(struct profile *profile)
{
    for (size_t i = 0; i < MEMBERS; i++) {
        free(*profile_slot(profile, &members[i]));
    }
    memset(profile, 0, sizeof(*profile));
}

int profile_path(char *out, size_t size)
{
    const char *config = getenv("XDG_CONFIG_HOME");
    const char *home = getenv("HOME");

    if (config != NULL && config[0] == '/') { /* the specification ignores relative ones */
        return fs_path(out, size, "%s/quantctl/config", config);
    }
    if (home == NULL || home[0] != '/') {
        return err_raise(ERR_CONFIG, "HOME is not set, so there is no place for the profile file");
    }
    return fs_path(out, size, "%s/.config/quantctl/config", home);
}

int profile_check_key(const char *key)
{
    size_t size = strlen(key);

    for (size_t i = 0; i < size; i++) {
        if (!isgraph((unsigned char)key[i])) {
            return err_raise(ERR_CONFIG, "the API key has a character that no key has, at position %zu", i + 1);
        }
    }
    if (size == 0 || size > PROFILE_KEY_MAX) {
        return err_raise(ERR_CONFIG, "the API key is empty or longer than %d characters", PROFILE_KEY_MAX);
    }
    return 0;
}

/* Without the blanks around it; the line is changed. */
static char *profile_trimmed(char *text)
{
    while (isspace((unsigned char)*text)) {
        text++;
    }
    for (size_t size = strlen(text); size > 0 && isspace((unsigned char)text[size - 1]); size--) {
        text[size - 1] = '\0';
    }
    return text;
}

static int parse_line(const char *name, size_t number, char *line, struct profile *profile)
{
    char *text = profile_trimmed(line);

    if (text[0] == '\0' || text[0] == '#') {
        return 0;
    }
    char *equals = strchr(text, '=');
    if (equals == NULL) {
        return err_raise(ERR_CONFIG, "%s:%zu: the line is not \"name = value\"", name, number);
    }
    *equals = '\0';
    const char *key = profile_trimmed(text), *value = profile_trimmed(equals + 1);
    for (size_t i = 0; i < MEMBERS; i++) {
        if (strcmp(members[i].name, key) == 0) {
            if (value[0] == '\0') {
                return err_raise(ERR_CONFIG, "%s:%zu: %s has no value", name, number, key);
            }
            return profile_set(profile_slot(profile, &members[i]), value);
        }
    }
    return err_raise(ERR_CONFIG, "%s:%zu: the name before \"=\" is not url, api_key or ca_file", name, number);
}

int profile_parse(const char *name, const char *text, size_t size, struct profile *profile)
{
    AUTO_FREE char *copy = NULL;

    if (memchr(text, '\0', size) != NULL) {
        return err_raise(ERR_CONFIG, "%s: not a text file", name);
    }
    TRY(mem_array(&copy, size + 1));
    memcpy(copy, text, size);
    char *rest = copy;
    size_t number = 0;
    for (char *line = strsep(&rest, "\n"); line != NULL; line = strsep(&rest, "\n")) {
        TRY(parse_line(name, ++number, line, profile));
    }
    return 0;
}

static int read_profile(const char *path, struct profile *profile)
{
    AUTO_FREE char *text = NULL;
    size_t size = 0;
    struct stat info;

    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return errno == ENOENT || errno == ENOTDIR ? 0 : err_raise(ERR_CONFIG, "%s: %s", path, strerror(errno));
    }
    if (fstat(fd, &info) != 0 || fs_read_fd(fd, PROFILE_FILE_MAX, &text, &size) != 0) {
        return err_raise(ERR_CONFIG, "%s: not a file of at most %zu bytes that can be read", path, PROFILE_FILE_MAX);
    }
    TRY(profile_parse(path, text, size, profile));
    if (profile->key != NULL && (info.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
        return err_raise(ERR_CONFIG, "%s has an API key and other users can read it; chmod 600 it", path);
    }
    return 0;
}

int profile_load(const char *url, const char *ca_file, struct profile *profile)
{
    AUTO(profile) struct profile loaded = {0};
    char path[PROFILE_PATH_MAX];

    if (profile_path(path, sizeof(path)) == 0) {
        TRY(read_profile(path, &loaded));
    }
    for (size_t i = 0; i < MEMBERS; i++) {
        const char *text = getenv(members[i].variable);
        if (text != NULL && text[0] != '\0') {
            TRY(profile_set(profile_slot(&loaded, &members[i]), text));
        }
    }
    if (url != NULL) {
        TRY(profile_set(&loaded.url, url));
    }
    if (ca_file != NULL) {
        TRY(profile_set(&loaded.ca_file, ca_file));
    }
    if (loaded.url == NULL) {
        TRY(profile_set(&loaded.url, PROFILE_DEFAULT_URL));
    }
    if (loaded.key != NULL) {
        TRY(profile_check_key(loaded.key));
    }
    profile_deinit(profile);
    *profile = loaded;
    memset(&loaded, 0, sizeof(loaded));
    return 0;
}

int profile_save(const struct profile *profile, const char *path)
{
    char folder[PROFILE_PATH_MAX], temp[PROFILE_PATH_MAX];
    AUTO_FREE char *text = NULL;
    size_t size = 0;

    if (strpbrk(profile->url, "\r\n") != NULL ||
        (profile->ca_file != NULL && strpbrk(profile->ca_file, "\r\n") != NULL)) {
        return err_raise(ERR_CONFIG, "a line break cannot be part of the profile");
    }
    TRY(fs_path(temp, sizeof(temp), "%s.tmp", path));
    (void)unlink(temp); /* whatever an interrupted call left there, with whatever mode */
    TRY(fs_path(folder, sizeof(folder), "%s", path));
    char *slash = strrchr(folder, '/');
    if (slash != NULL && slash != folder) {
        *slash = '\0';
        TRY(fs_make_dirs(folder));
    }
    FILE *out = open_memstream(&text, &size);
    if (out == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the profile");
    }
    fprintf(out, "# quantctl: written by quantctl login\nurl = %s\n", profile->url);
    if (profile->key != NULL) {
        fprintf(out, "api_key = %s\n", profile->key);
    }
    if (profile->ca_file != NULL) {
        fprintf(out, "ca_file = %s\n", profile->ca_file);
    }
    if (fclose(out) != 0) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the profile");
    }
    return fs_write_atomic(path, text, size);
}
