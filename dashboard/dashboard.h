#pragma once
/* The files of the dashboard, compiled into the program. They never change while it runs: any thread. */

#include <stddef.h>

#define DASHBOARD_PAGE "index.html"

struct dashboard_file {
    const char *path;             /* below /dashboard/; NULL ends the table */
    const char *type;             /* Content-Type */
    const char *etag, *gzip_etag; /* strong and quoted: made from the digest of the content */
    const unsigned char *data, *gzip;
    size_t size, gzip_size;
};

/* Made by the build (dashboard/embed); without the dashboard it has no file. */
extern const struct dashboard_file dashboard_files[];

/* The file of that path, or NULL. */
const struct dashboard_file *dashboard_find(const char *path);
