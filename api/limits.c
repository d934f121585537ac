/* Clients and jobs share the process's file descriptors. A job that cannot open a shard fails, while a client that
 * cannot connect tries again: jobs and the database therefore take precedence, and connections and streams get the
 * rest.
 *
 * A connection takes three descriptors (its socket, and both ends of the pair to the HTTP library), a stream one more,
 * and a client that waits to be admitted or lingers after its end takes one. */

#include "api/limits.h"

#include "base/log.h"

#include <sys/resource.h>

#define CONNECTIONS 4096
#define STREAMS 256
#define RESERVE 512 /* jobs, the database, devices and what is open from the start */
#define RESERVE_MIN 96
#define FILES_PER_CONNECTION 3
#define UNATTACHED 256

static rlim_t raise_to(rlim_t need)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) {
        return need;
    }
    if (limit.rlim_cur < need) {
        limit.rlim_cur = limit.rlim_max < need ? limit.rlim_max : need;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
        (void)getrlimit(RLIMIT_NOFILE, &limit);
    }
    return limit.rlim_cur;
}

void limits_find(const struct api_config *config, struct limits *out)
{
    rlim_t connections = config->max_connections > 0 ? (rlim_t)config->max_connections : CONNECTIONS;
    rlim_t streams = config->max_streams > 0 ? (rlim_t)config->max_streams : STREAMS;
    rlim_t unattached = connections < UNATTACHED ? connections : UNATTACHED;
    rlim_t need = RESERVE + connections * FILES_PER_CONNECTION + unattached + streams;
    rlim_t have = raise_to(need);

    if (have < need) {
        rlim_t reserve = have / 2 > RESERVE ? RESERVE : have / 2 > RESERVE_MIN ? have / 2 : RESERVE_MIN;
        rlim_t rest = have > reserve ? have - reserve : 0;
        rlim_t max = rest / (FILES_PER_CONNECTION + 2) > 0 ? rest / (FILES_PER_CONNECTION + 2) : 1;
        connections = connections < max ? connections : max;
        unattached = unattached < connections ? unattached : connections;
        /* A quarter of the connections, which is half of those of one address: it can make other requests, too. */
        rlim_t max_streams = connections / 4 > 0 ? connections / 4 : 1;
        streams = streams < max_streams ? streams : max_streams;
        log_warn("fewer connections than configured, because the limit of open files is too low",
                 LOG_I("descriptors", have), LOG_I("kept_for_jobs", reserve), LOG_I("connections", connections),
                 LOG_I("streams", streams));
    }
    out->connections = (unsigned)connections;
    out->streams = (unsigned)streams;
    out->unattached = (unsigned)unattached;
    rlim_t half = connections / 2 > 0 ? connections / 2 : 1;
    rlim_t per_address = config->max_connections_per_address > 0 ? (rlim_t)config->max_connections_per_address : half;
    out->per_address = (unsigned)(per_address < connections ? per_address : connections);
}
