#pragma once
/* The certificate of TLS: what the log says about it, and reading it again on SIGHUP. Loop thread. */

#include "api/tls.h"
#include "base/err.h"
#include "daemon/config.h"

#include <uv.h>

struct certificate {
    const struct config *config;
    uv_loop_t *loop;
    uv_work_t work;
    bool reading, again; /* again: it may have changed since it was read */
    int rc;              /* of the last reading, with its record */
    struct err_record record;
    struct tls *tls;
    void (*use_take)(void *data, struct tls *tls);
    void *data;
};

/* Log what is served. config and loop are borrowed; use_take gets what is loaded from now on. */
void certificate_open(struct certificate *certificate, const struct config *config, uv_loop_t *loop,
                      const struct tls_facts *facts, void (*use_take)(void *data, struct tls *tls), void *data);
/* Read the files in another thread and use them, or log why not and keep what there is. */
void certificate_reload(void *certificate);
