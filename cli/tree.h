#pragma once
/* The files below a directory. */

#include <stdbool.h>

struct tree_walk {
    /* Leave this path out, and what is below it. */
    bool (*skip)(void *context, const char *path);
    /* A regular file: its path below the directory, and its name in the directory that is open as parent. Not 0 ends
     * the walk, which then returns that value. */
    int (*file)(void *context, const char *path, int parent, const char *name);
    void *context;
};

/* Every file, in no particular order. Links are not followed: one that is not skipped, and what is neither a file nor a
 * directory, is STATUS_MISMATCH. */
int tree_walk(const char *directory, const struct tree_walk *walk);
