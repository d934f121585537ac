#pragma once
/* The data directory: its layout and the lock that makes one daemon its owner. Within storage only. */

/* Make the directory and its folders, refuse network filesystems, take the lock, empty tmp/. The lock lasts until the
 * descriptor is closed (also by a crash). ERR_CONFIG when another daemon has it. */
int store_dir_open(const char *data_dir, int *lock_fd);
