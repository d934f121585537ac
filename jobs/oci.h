#pragma once
/* The documents of an artifact as an OCI image, from the artifact object alone. */

#include "jobs/jobs.h"

int oci_describe(const json_t *artifact, struct service_oci *out);
