#pragma once
/* A bare model: a checkpoint of which only names, types and shapes are known, since no row describes its architecture.
 * Its modules are its weights of two dimensions; its "layers" are runs of modules of one shard, none larger than its
 * largest linear, and their plans have no steps. Some modules stay in float unless an override names them. */

#include "models/model.h"

/* Names of modules that stay in float, in lower case. */
enum bare_match {
    BARE_HAS,     /* some part of the path has the word in it */
    BARE_PART,    /* some part of the path is the word */
    BARE_LAST,    /* its last part is */
    BARE_OUTSIDE, /* no part of the path is a number: it lies outside of the layers; no words */
};
struct bare_rule {
    const char *what; /* "norms" */
    enum bare_match match;
    const char *const *words; /* NULL-terminated */
};
/* Ends with a row whose `what` is NULL; several rows may say the same. */
const struct bare_rule *bare_rules(void);
/* The first rule that leaves a module of this path in float, or NULL. */
const struct bare_rule *bare_rule_of(const char *path);
