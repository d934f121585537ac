#pragma once
/* Files: complete reads and writes over EINTR and short counts, durable replacement, paths that stay below a root.
 * All functions return 0 or raise; any thread; all may block, so never call them on the loop thread. */

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

int fs_pread_full(int fd, void *buffer, size_t size, int64_t offset); /* short file: ERR_SOURCE_CORRUPT */
int fs_pwrite_full(int fd, const void *buffer, size_t size, int64_t offset);
int fs_sync(int fd); /* fsync; raises ERR_STORAGE on EIO */
int fs_sync_dir(const char *path);
int fs_sync_parent(const char *path); /* the directory that holds path: makes its name durable */
/* Create every missing directory of path, mode 0700, and fsync what each was made in. ERR_INVALID_PARAMETER when
 * something else stands there. */
int fs_make_dirs(const char *path);
/* Write path.tmp, fsync, rename over path, fsync the directory. One writer a path at a time. */
int fs_write_atomic(const char *path, const void *data, size_t size);
/* Read a complete file of at most max bytes into new memory, NUL-terminated after *size bytes. Caller frees. */
int fs_read_file(const char *path, size_t max, char **data, size_t *size);
/* As above, from an open descriptor. */
int fs_read_fd(int fd, size_t max, char **data, size_t *size);
/* Open relative below the directory root_fd (openat2 RESOLVE_BENEATH|NO_MAGICLINKS): symlinks may not leave the root.
 * flags as open(2), O_CLOEXEC is added. Sets *fd; ERR_NOT_FOUND when absent, ERR_INVALID_PARAMETER when it would leave.
 */
int fs_open_beneath(int root_fd, const char *relative, int flags, int *fd);
/* Remove a file or a directory tree; absent is success. Does not follow symlinks. */
int fs_remove_tree(const char *path);
/* printf into a path buffer; raises ERR_INVALID_PARAMETER when it does not fit. */
int fs_path(char *out, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Bytes free to unprivileged users on path's filesystem; -1 if unknown. */
int64_t fs_free_bytes(const char *path);
