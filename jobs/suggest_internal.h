#pragma once
/* Within jobs/suggest*.c. */

#include "jobs/anatomy.h"
#include "jobs/suggest.h"

/* Modules whose parameters a change sets. */
struct suggest_set {
    const struct anatomy_row **list; /* has space for all rows */
    size_t count;
};

struct suggest_change {
    json_t *patch; /* taken */
    const struct suggest_set *set;
    char reason[384], basis[256];
    double removed; /* of the sum of losses; NAN: it was not predicted */
    double bytes;
    bool first; /* before those that add nothing */
};

struct suggest_work {
    const struct suggest *from;
    struct anatomy_rows rows;
    const json_t *quantization;       /* of the request */
    const struct anatomy_row **space; /* of suggest_set.list, twice the rows */
    struct suggest_item {
        json_t *object;
        double key; /* the order, descending */
    } items[4 * SUGGEST_MAX];
    int count;
};

/* Drops a change that would not be accepted, or removes too little; whether it was kept. */
bool suggest_add(struct suggest_work *work, struct suggest_change *change);
/* The request's overrides with one for each module of the set, of these members. New reference. */
json_t *suggest_overrides(const struct suggest_work *work, const struct suggest_set *set, const json_t *members);
/* {"quantization": {name: value}}; value is taken. */
json_t *suggest_patch_take(const char *name, json_t *value);
/* A parameter of the request; -1, "": it has none. */
int64_t suggest_whole(const struct suggest_work *work, const char *name);
const char *suggest_text(const struct suggest_work *work, const char *name);
/* A row and those that runtimes join with it, without repetition. */
void suggest_set_add(const struct suggest_work *work, struct suggest_set *set, const struct anatomy_row *row);
double suggest_set_loss(const struct suggest_set *set);

/* suggest_grid.c: groups, bits, types of blocks, modules left in float. */
void suggest_grids(struct suggest_work *work);
