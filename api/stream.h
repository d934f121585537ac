#pragma once
/* Streamed replies: a blob's bytes with ranges, and a job's events as they happen. Worker thread. */

#include "api/request.h"

/* 200, 206, 304, 412 or 416 for the blob, by Range, If-Range, If-Match and If-None-Match. name is the suggested file
 * name. lasting: the path will never have other bytes. */
int stream_blob(struct request *request, const char *sha256, const char *content_type, const char *name, bool lasting);

enum stream_format { STREAM_SSE, STREAM_NDJSON };
/* Events of the job after the number `after`, until it ends. The job must exist. */
int stream_events(struct request *request, const char *job, int64_t after, enum stream_format format);
/* One event framed; malloc'ed, NULL when out of memory. */
char *stream_frame_event(const json_t *event, enum stream_format format, size_t *size);
/* An archive that is complete (archive_end), in the same way but for Repr-Digest, which only its end would know. Takes
 * it. */
struct archive;
int stream_archive_take(struct request *request, struct archive *archive, const char *name);
