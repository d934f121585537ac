#pragma once
/* Sizes in words. Those of one sentence share a unit, so that they can be compared. Any thread. */

#include <stddef.h>
#include <stdint.h>

#define BYTES_SIZE 32

struct bytes_unit {
    const char *name; /* "GiB" */
    double bytes;
};
/* The unit that suits the largest of these. */
struct bytes_unit bytes_unit_of(const double *sizes, size_t count);
/* "7.25 GiB": three digits, and no more than the unit's bytes have; in its own unit where it would be 0.00. Returns
 * out.
 */
const char *bytes_in(const struct bytes_unit *unit, double size, char out[BYTES_SIZE]);
