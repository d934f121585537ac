/* Clients and jobs share the process's file descriptors. A job that cannot open a shard fails, while a client that
 * cannot connect tries again: jobs and the database therefore take precedence, and connections and streams get the
 * rest.
 *
 * A connection takes one descriptor, and two more (both ends of the pair to the HTTP library) while it is attached,
 * which it is from a request's beginning until it has been idle for a moment; a stream takes one more. A client that
 * waits to be admitted or lingers after its end takes one. Where the limit of open files is too low for all connections
 * to be attached at once, fewer are; only if that were less than a quarter of them, there are fewer connections. */

#include "api/limits.h"

#include "base/log.h"

#include <sys/resource.h>

#define CONNECTIONS 4096
#define STREAMS 256
#define RESERVE 512 /* jobs, the database, devices and what is open from the start */
#define RESERVE_MIN 96
#define FILES_PER_PAIR 2
#define FILES_PER_CONNECTION (1 + FILES_PER_PAIR)
#define ATTACHED_SHARE 4
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
    rlim_t have = raise_to(need), attached = connections;

    if (have < need) { /* of those that are left, each pair takes its own */
        rlim_t fixed = need - connections * FILES_PER_PAIR;
        attached = have > fixed ? (have - fixed) / FILES_PER_PAIR : 0;
    }
    if (attached < connections / ATTACHED_SHARE || attached == 0) {
        rlim_t reserve = have / 2 > RESERVE ? RESERVE : have / 2 > RESERVE_MIN ? have / 2 : RESERVE_MIN;
        rlim_t rest = have > reserve ? have - reserve : 0;
        rlim_t max = rest / (FILES_PER_CONNECTION + 2) > 0 ? rest / (FILES_PER_CONNECTION + 2) : 1;
        connections = connections < max ? connections : max;
        attached = connections;
        unattached = unattached < connections ? unattached : connections;
        /* A quarter of the connections, which is half of those of one address: it can make other requests, too. */
        rlim_t max_streams = connections / 4 > 0 ? connections / 4 : 1;
        streams = streams < max_streams ? streams : max_streams;
        log_warn("fewer connections than configured, because the limit of open files is too low",
                 LOG_I("descriptors", have), LOG_I("kept_for_jobs", reserve), LOG_I("connections", connections),
                 LOG_I("streams", streams));
    }
    out->connections = (unsigned)connections;
    out->attached = (unsigned)attached;
    out->streams = (unsigned)streams;
    out->unattached = (unsigned)unattached;
    rlim_t half = connections / 2 > 0 ? connections / 2 : 1;
    rlim_t per_address = config->max_connections_per_address > 0 ? (rlim_t)config->max_connections_per_address : half;
    out->per_address = (unsigned)(per_address < connections ? per_address : connections);
}
