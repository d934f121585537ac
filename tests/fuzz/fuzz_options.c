/* The daemon's configuration file: YAML -> source_read_yaml -> config_load, with the data directory from the command
 * line. What is accepted is complete and within the bounds of its rows; a refusal is one sentence with the file's name.
 */

#include "base/err.h"
#include "daemon/config.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int file_of(const uint8_t *data, size_t size)
{
    int fd = memfd_create("options", MFD_CLOEXEC);

    for (size_t at = 0; fd >= 0 && at < size;) {
        ssize_t n = write(fd, data + at, size - at);
        if (n <= 0) {
            abort();
        }
        at += (size_t)n;
    }
    return fd >= 0 ? fd : (abort(), -1);
}

static void check_config(const struct config *config)
{
    if (config->data_dir == NULL || config->data_dir[0] != '/' || config->listen_host == NULL ||
        config->device == NULL || config->threads < 0 || config->threads > 4096 || config->host_memory_bytes < 0 ||
        config->max_queued < 0 || config->drain_seconds < 1 || config->log_level < 0) {
        abort();
    }
    bool encrypted = config->trust_proxy || config->tls_certificate != NULL;
    if (((config->tls_certificate != NULL) != (config->tls_key != NULL)) ||
        ((!encrypted || config->auth != CONFIG_AUTH_KEYS) && !config_is_loopback(config->listen_host))) {
        abort();
    }
    for (size_t i = 0; config->model_roots[i] != NULL; i++) {
        if (config->model_roots[i][0] != '/') {
            abort();
        }
    }
}

/* Something, and nothing that moves a terminal's cursor. */
static bool is_sentence(const char *message)
{
    for (const unsigned char *at = (const unsigned char *)message; *at != '\0'; at++) {
        if (*at < 0x20 || *at == 0x7f) {
            return false;
        }
    }
    return message[0] != '\0';
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    char *argv[] = {"quantd", "--data-dir", "/nowhere", "--config", path, NULL};
    struct config config;

    int fd = file_of(data, size);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int rc = config_load(5, argv, &config);
    if (rc == 0) {
        check_config(&config);
        config_deinit(&config);
    } else if (!is_sentence(err_last()->message)) {
        abort();
    }
    (void)close(fd);
    return 0;
}
