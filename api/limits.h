#pragma once
/* How file descriptors are divided among connections, streams and jobs. */

#include "api/api.h"

struct limits {
    unsigned connections; /* at once */
    unsigned attached;    /* of these, to the HTTP library; the others are idle */
    unsigned per_address; /* of these, from one address */
    unsigned unattached;  /* not attached to the HTTP library: waiting to be admitted, or lingering after their end */
    unsigned streams;     /* concurrent uploads and downloads of files */
};

/* Raise the soft limit of open files as far as the configured limits require, and lower these where the hard limit does
 * not allow it: some descriptors stay reserved for jobs, the database and libraries. */
void limits_find(const struct api_config *config, struct limits *out);
