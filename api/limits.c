/* Descriptors are shared by the clients and by what they wait for. A job that cannot open a shard fails, while a client
 * that cannot connect comes again: so jobs and the database come first, and connections and streams get what is left.
 *
 * A connection takes three (the socket, and both ends of the pair to the HTTP library), a stream one more, and a client
 * that waits to be let in or lingers at its end one. */

#include "api/limits.h"

#include "base/log.h"

#include <sys/resource.h>

#define CONNECTIONS 4096
#define STREAMS 256
#define RESERVE 512 /* jobs, the database, devices and what is open from the start */
#define RESERVE_LEAST 96
#define FILES_OF_CONNECTION 3
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
    rlim_t need = RESERVE + connections * FILES_OF_CONNECTION + unattached + streams;
    rlim_t have = raise_to(need);

    if (have < need) {
        rlim_t reserve = have / 2 > RESERVE ? RESERVE : have / 2 > RESERVE_LEAST ? have / 2 : RESERVE_LEAST;
        rlim_t room = have > reserve ? have - reserve : 0;
        rlim_t most = room / (FILES_OF_CONNECTION + 2) > 0 ? room / (FILES_OF_CONNECTION + 2) : 1;
        connections = connections < most ? connections : most;
        unattached = unattached < connections ? unattached : connections;
        /* A quarter of the connections, and half of what one address may have: it can ask for other things meanwhile.
         */
        rlim_t most_streams = connections / 4 > 0 ? connections / 4 : 1;
        streams = streams < most_streams ? streams : most_streams;
        log_warn("fewer connections than configured, for want of descriptors", LOG_I("descriptors", have),
                 LOG_I("kept_for_jobs", reserve), LOG_I("connections", connections), LOG_I("streams", streams));
    }
    out->connections = (unsigned)connections;
    out->streams = (unsigned)streams;
    out->unattached = (unsigned)unattached;
    rlim_t half = connections / 2 > 0 ? connections / 2 : 1;
    rlim_t an_address = config->max_connections_per_address > 0 ? (rlim_t)config->max_connections_per_address : half;
    out->an_address = (unsigned)(an_address < connections ? an_address : connections);
}
