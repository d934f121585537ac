/* Reading files may wait for a disk, so libuv's pool does it. A signal that arrives meanwhile reads them once more. */

#include "daemon/certificate.h"

#include "base/ids.h"
#include "base/log.h"
#include "daemon/notify.h"

#include <inttypes.h>
#include <string.h>

#define SOON_DAYS 30
#define DAY_SECONDS 86400

/* One line that says what is served, and one that warns when clients will not trust it, or others can steal it. */
static void certificate_log(const struct config *config, const struct tls_facts *facts)
{
    int64_t now = clock_unix_seconds();
    int64_t days = (facts->ends_at - now) / DAY_SECONDS;

    log_info("certificate loaded", LOG_S("file", config->tls_certificate), LOG_S("subject", facts->subject),
             LOG_I("ends_at", facts->ends_at), LOG_I("days", days));
    if (facts->ends_at <= now) {
        log_warn("the certificate has expired: clients refuse it", LOG_S("file", config->tls_certificate),
                 LOG_I("ends_at", facts->ends_at));
    } else if (days < SOON_DAYS) {
        log_warn("the certificate expires soon: replace it and send SIGHUP", LOG_S("file", config->tls_certificate),
                 LOG_I("ends_at", facts->ends_at), LOG_I("days", days));
    }
    if (facts->begins_at > now) {
        log_warn("the certificate is not valid yet: clients refuse it", LOG_S("file", config->tls_certificate),
                 LOG_I("begins_at", facts->begins_at));
    }
    if (facts->exposed) {
        log_warn("every user of this host can read the private key: chmod 600 it", LOG_S("file", config->tls_key));
    }
}

/* Thread of libuv's pool. */
static void certificate_read(uv_work_t *work)
{
    struct certificate *certificate = work->data;
    const struct config *config = certificate->config;

    certificate->rc = tls_load(config->tls_certificate, config->tls_key, &certificate->tls);
    err_take(&certificate->record);
}

static void certificate_done(uv_work_t *work, int status)
{
    struct certificate *certificate = work->data;
    struct tls *tls = certificate->tls;

    certificate->reading = false;
    certificate->tls = NULL;
    if (status != 0 || certificate->rc != 0) {
        log_error("the certificate cannot be loaded, the previous one is kept",
                  LOG_S("reason", status != 0 ? uv_strerror(status) : certificate->record.message),
                  LOG_S("hint", certificate->record.hint));
    } else {
        certificate_log(certificate->config, tls_facts_of(tls));
        certificate->use_take(certificate->data, tls);
    }
    if (certificate->again) {
        certificate_reload(certificate);
        return;
    }
    notify_send("READY=1");
}

void certificate_open(struct certificate *certificate, const struct config *config, uv_loop_t *loop,
                      const struct tls_facts *facts, void (*use_take)(void *data, struct tls *tls), void *data)
{
    *certificate = (struct certificate){.config = config, .loop = loop, .use_take = use_take, .data = data};
    certificate->work.data = certificate;
    certificate_log(config, facts);
}

void certificate_reload(void *data)
{
    struct certificate *certificate = data;

    certificate->again = certificate->reading;
    if (certificate->reading) {
        return;
    }
    notify_reloading();
    int status = uv_queue_work(certificate->loop, &certificate->work, certificate_read, certificate_done);
    if (status != 0) {
        log_error("the certificate cannot be loaded, the previous one is kept", LOG_S("reason", uv_strerror(status)));
        notify_send("READY=1");
        return;
    }
    certificate->reading = true;
}
