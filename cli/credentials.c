/* Credentials of registries. In the file, "auths" has an object for each registry, whose "auth" is user:password in
 * base 64; "credHelpers" and "credsStore" name programs that have them instead. */

#include "cli/credentials.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CREDENTIALS_FILE_MAX ((size_t)4 << 20)
#define CREDENTIALS_TEXT_MAX 16384 /* of a password, or a token */
#define CREDENTIALS_PATH_MAX 4096
#define CREDENTIALS_DEPTH 16

static void credentials_forget(char *secret)
{
    if (secret != NULL) {
        explicit_bzero(secret, strlen(secret));
    }
    free(secret);
}

void credentials_deinit(struct credentials *credentials)
{
    free(credentials->user);
    credentials_forget(credentials->password);
    credentials_forget(credentials->identity);
    *credentials = (struct credentials){0};
}

/* "https://index.docker.io/v1/" is the entry of index.docker.io. */
static bool credentials_are_of(const char *name, const char *registry)
{
    static const char *const hub[] = {"index.docker.io", "docker.io", "registry-1.docker.io"};
    const char *scheme = strstr(name, "://"), *host = scheme != NULL ? scheme + 3 : name;
    size_t size = strcspn(host, "/");

    if (strlen(registry) == size && strncasecmp(host, registry, size) == 0) {
        return true;
    }
    bool entry = false, wanted = false;
    for (size_t i = 0; i < sizeof(hub) / sizeof(hub[0]); i++) {
        entry = entry || (strlen(hub[i]) == size && strncmp(host, hub[i], size) == 0);
        wanted = wanted || strcmp(registry, hub[i]) == 0;
    }
    return entry && wanted;
}

static json_t *credentials_entry(const json_t *entries, const char *registry)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)entries, name, value)
    {
        if (credentials_are_of(name, registry)) {
            return value;
        }
    }
    return NULL;
}

/* user:password in base 64. */
static int decode_auth(const char *path, const char *auth, struct credentials *out)
{
    size_t size = strlen(auth);
    AUTO_FREE char *plain = NULL;

    if (size == 0 || size > CREDENTIALS_TEXT_MAX || size % 4 != 0) {
        return err_raise(ERR_CONFIG, "%s: an entry's \"auth\" is not base 64", path);
    }
    TRY(mem_array(&plain, size / 4 * 3 + 1));
    int length = EVP_DecodeBlock((unsigned char *)plain, (const unsigned char *)auth, (int)size);
    size_t padding = (auth[size - 1] == '=') + (size > 1 && auth[size - 2] == '=');
    size_t count = length >= (int)padding ? (size_t)length - padding : 0; /* it counts what fills up the last three */
    plain[count] = '\0';
    char *colon = length > 0 ? memchr(plain, ':', count) : NULL;
    if (colon == NULL || strlen(plain) != count) {
        return err_raise(ERR_CONFIG, "%s: an entry's \"auth\" is not USER:PASSWORD in base 64", path);
    }
    *colon = '\0';
    int rc = mem_strdup(&out->user, plain);
    rc = rc != 0 ? rc : mem_strdup(&out->password, colon + 1);
    explicit_bzero(plain, count);
    return rc;
}

static int read_entry(const char *path, const json_t *entry, struct credentials *out)
{
    const char *auth = json_get_string(entry, "auth"), *identity = json_get_string(entry, "identitytoken");
    const char *user = json_get_string(entry, "username"), *password = json_get_string(entry, "password");

    if (auth != NULL && auth[0] != '\0') {
        TRY(decode_auth(path, auth, out));
    } else if (user != NULL && password != NULL) {
        TRY(mem_strdup(&out->user, user));
        TRY(mem_strdup(&out->password, password));
    }
    return identity != NULL && identity[0] != '\0' ? mem_strdup(&out->identity, identity) : 0;
}

int credentials_parse(const char *path, const char *text, size_t size, const char *registry, struct credentials *out)
{
    AUTO(credentials) struct credentials read = {0};
    AUTO_JSON json_t *file = NULL;

    if (json_parse(text, size, CREDENTIALS_DEPTH, &file) != 0 || !json_is_object(file)) {
        return err_raise(ERR_CONFIG, "%s: not a JSON object", path);
    }
    const json_t *entry = credentials_entry(json_object_get(file, "auths"), registry);
    TRY(read_entry(path, entry, &read));
    const char *store = json_get_string(file, "credsStore");
    read.elsewhere = read.user == NULL && read.identity == NULL &&
                     (credentials_entry(json_object_get(file, "credHelpers"), registry) != NULL ||
                      (store != NULL && store[0] != '\0' && entry != NULL));
    *out = read;
    memset(&read, 0, sizeof(read));
    return 0;
}

int credentials_load(const char *registry, struct credentials *out)
{
    const char *folder = getenv("DOCKER_CONFIG"), *home = getenv("HOME");
    char path[CREDENTIALS_PATH_MAX];
    AUTO_FREE char *text = NULL;
    size_t size = 0;

    *out = (struct credentials){0};
    if (folder != NULL && folder[0] != '\0') {
        TRY(fs_path(path, sizeof(path), "%s/config.json", folder));
    } else if (home != NULL && home[0] == '/') {
        TRY(fs_path(path, sizeof(path), "%s/.docker/config.json", home));
    } else {
        return 0;
    }
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        return errno == ENOENT || errno == ENOTDIR ? 0 : err_raise(ERR_CONFIG, "%s: %s", path, strerror(errno));
    }
    if (fs_read_fd(fd, CREDENTIALS_FILE_MAX, &text, &size) != 0) {
        return err_raise(ERR_CONFIG, "%s: not a file of at most %zu bytes that can be read", path,
                         CREDENTIALS_FILE_MAX);
    }
    int rc = credentials_parse(path, text, size, registry, out);
    explicit_bzero(text, size);
    return rc;
}

int credentials_read(const char *user, struct credentials *out)
{
    AUTO(credentials) struct credentials read = {0};
    AUTO_FREE char *line = NULL;
    size_t capacity = 0;

    ssize_t size = getline(&line, &capacity, stdin);
    while (size > 0 && (line[size - 1] == '\n' || line[size - 1] == '\r')) {
        line[--size] = '\0';
    }
    if (size <= 0 || size > CREDENTIALS_TEXT_MAX || strlen(line) != (size_t)size) {
        return err_raise(ERR_CONFIG, "the first line of standard input is not a password");
    }
    int rc = mem_strdup(&read.user, user);
    rc = rc != 0 ? rc : mem_strdup(&read.password, line);
    explicit_bzero(line, capacity);
    TRY(rc);
    *out = read;
    memset(&read, 0, sizeof(read));
    return 0;
}

int credentials_basic(const struct credentials *credentials, char **out)
{
    AUTO_FREE char *plain = NULL;
    AUTO_FREE char *text = NULL;
    size_t size = strlen(credentials->user) + strlen(credentials->password) + 1;

    TRY(mem_array(&plain, size + 1));
    TRY(mem_array(&text, sizeof("Basic ") + 4 * ((size + 2) / 3) + 1));
    (void)sprintf(plain, "%s:%s", credentials->user, credentials->password);
    memcpy(text, "Basic ", sizeof("Basic "));
    (void)EVP_EncodeBlock((unsigned char *)text + strlen(text), (const unsigned char *)plain, (int)size);
    explicit_bzero(plain, size);
    *out = MOVE(text);
    return 0;
}
