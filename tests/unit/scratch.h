#pragma once
/* A directory of a test's own, gone when the test is over. */

#include "base/fs.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

static inline void scratch_make(char out[256])
{
    const char *parent = getenv("TMPDIR");

    snprintf(out, 256, "%s/quantd-test-XXXXXX", parent != NULL ? parent : P_tmpdir);
    ck_assert_ptr_nonnull(mkdtemp(out));
}

static inline void scratch_remove(const char *path)
{
    ck_assert_int_eq(fs_remove_tree(path), 0);
}
