#pragma once
/* Within jobs/: checkpoints made of uploaded files, whose uri is "upload:" in a request and "upload:<id>" afterwards.
 */

#include "jobs/service.h"

#define UPLOADED_URI "upload:"

/* The files of a request, each {"path","file_id"}, with "bytes" and "sha256" as stored. Errors with their pointers. */
int uploaded_check(struct service *service, const struct principal *who, const json_t *files,
                   struct validation_errors *errors, json_t **out);
/* Make the folder of model `id` from checked files. Nothing is left of it on failure. */
int uploaded_place(struct service *service, const char *id, const json_t *files);
/* Remove the folder; false when there is none. */
bool uploaded_remove(const struct service *service, const char *id);
int uploaded_open(const struct service *service, const char *id, enum model_reading reading, struct model **out);
/* Store the model's object, unless a file has gone since it was checked: ERR_NOT_FOUND. Under admission, as deletions
 * of files are, so that the blobs always have somebody who refers to them. */
int uploaded_keep(struct service *service, const struct principal *who, const json_t *object);
/* Remove folders of models and bytes of uploads that no object knows. */
void uploaded_sweep(const struct service *service);
