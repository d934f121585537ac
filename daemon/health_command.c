/* Health of the daemon on this machine that has the same options: its address, and whether it speaks TLS.
 *
 * The certificate is not verified. It is issued for the names that clients use, and the connection does not leave the
 * machine. */

#include "daemon/health_command.h"

#include "base/err.h"
#include "daemon/config.h"

#include <curl/curl.h>
#include <stdio.h>
#include <string.h>

#define HEALTH_SECONDS 5L

static size_t health_body(char *data, size_t size, size_t count, void *user)
{
    (void)data;
    (void)user;
    return size * count;
}

/* An address that means every interface is asked on loopback. */
static int health_url(const struct config *config, const char *path, char *url, size_t size)
{
    const char *host = config->listen_host;

    if (config->listen_port == 0) {
        return err_raise(ERR_CONFIG,
                         "quantd health: with port 0 the port is not known; pass --listen with the daemon's");
    }
    host = strcmp(host, "0.0.0.0") == 0 ? "127.0.0.1" : strcmp(host, "::") == 0 ? "::1" : host;
    bool six = strchr(host, ':') != NULL;
    (void)snprintf(url, size, "%s://%s%s%s:%u%s", config->tls_certificate != NULL ? "https" : "http", six ? "[" : "",
                   host, six ? "]" : "", config->listen_port, path);
    return 0;
}

static int health_ask(CURL *curl, const char *url)
{
    char reason[CURL_ERROR_SIZE] = "";
    long status = 0;
    struct curl_slist *headers = curl_slist_append(NULL, "Host: localhost");

    if (headers == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "quantd health: no memory");
    }
    (void)curl_easy_setopt(curl, CURLOPT_URL, url);
    (void)curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    (void)curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
    (void)curl_easy_setopt(curl, CURLOPT_TIMEOUT, HEALTH_SECONDS);
    (void)curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    (void)curl_easy_setopt(curl, CURLOPT_SSL_VERIFYPEER, 0L);
    (void)curl_easy_setopt(curl, CURLOPT_SSL_VERIFYHOST, 0L);
    (void)curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, health_body);
    (void)curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, reason);
    CURLcode code = curl_easy_perform(curl);
    (void)curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    curl_slist_free_all(headers);
    if (code != CURLE_OK) {
        return err_raise(ERR_INTERNAL, "%s does not answer: %s", url,
                         reason[0] != '\0' ? reason : curl_easy_strerror(code));
    }
    return status == 200 ? 0 : err_raise(ERR_INTERNAL, "%s answered with status %ld", url, status);
}

int health_command(int argc, char **argv)
{
    static char name[] = "quantd health";
    AUTO(config) struct config config = {0};
    const char *path = "/livez";
    char url[192];

    if (argc >= 2 && (strcmp(argv[1], "ready") == 0 || strcmp(argv[1], "live") == 0)) {
        path = argv[1][0] == 'r' ? "/readyz" : "/livez";
        argc--;
        argv++;
    }
    argv[0] = name;
    TRY(config_load(argc, argv, &config));
    TRY(health_url(&config, path, url, sizeof(url)));
    CURL *curl = curl_easy_init();
    if (curl == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "quantd health: libcurl cannot be started");
    }
    int rc = health_ask(curl, url);
    curl_easy_cleanup(curl);
    if (rc == 0) {
        puts(path[1] == 'r' ? "ready" : "alive");
    }
    return rc;
}
