#pragma once
/* Space kept free for the store itself: a file that is given up when the disk is full, so that jobs can still end and
 * objects can still be deleted. Storage thread only. */

#include <stdbool.h>
#include <stdint.h>

#define RESERVE_PATH_MAX 4096

struct reserve {
    char data_dir[RESERVE_PATH_MAX];
    int64_t bytes;    /* of the file */
    int64_t min_free; /* in addition, for the daemon to be ready */
    int64_t tried_ms; /* when it was last tried to make it again */
    bool held;
};

/* Looks at the disk of data_dir and at the file. When the disk has no space for what opening a database needs, the file
 * is given up at once; else it is made where it is missing. */
int reserve_open(struct reserve *reserve, const char *data_dir);
/* Give the space up. True: there is some that was not there before. */
bool reserve_release(struct reserve *reserve);
/* Make the file again if it was given up and there is room. Asks the disk at most once a second. */
void reserve_renew(struct reserve *reserve);
/* ERR_DISK_FULL while there is no room for new work. */
int reserve_check(struct reserve *reserve);
