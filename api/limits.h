#pragma once
/* How many descriptors there are, and who may have them. */

#include "api/api.h"

struct limits {
    unsigned connections; /* at once */
    unsigned an_address;  /* of these, from one address */
    unsigned unattached;  /* with a socket alone: they wait to be let in, or linger at their end */
    unsigned streams;     /* files sent or taken at once */
};

/* Raise the soft limit of open files as far as the wanted limits need it, and lower them where the hard limit does not
 * allow that: jobs, the database and what libraries open keep a part of their own. */
void limits_find(const struct api_config *config, struct limits *out);
