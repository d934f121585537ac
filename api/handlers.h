#pragma once
/* The handlers of the route table, by resource. Each runs on a worker unless its row has ROUTE_INLINE. It sets
 * request->reply and returns 0, or returns a raised code, or REQUEST_WAIT. */

#include "api/request.h"

int handlers_live(struct request *request);
int handlers_ready(struct request *request);
int handlers_openapi(struct request *request);
int handlers_system(struct request *request);
int handlers_methods(struct request *request);
int handlers_method(struct request *request);

int handlers_model_create(struct request *request);
int handlers_model_list(struct request *request);
int handlers_model_get(struct request *request);
int handlers_model_delete(struct request *request);

int handlers_file_list(struct request *request);
int handlers_file_get(struct request *request);
int handlers_file_content(struct request *request);
int handlers_file_delete(struct request *request);
extern const struct request_sink handlers_file_sink;

int handlers_job_create(struct request *request);
int handlers_job_list(struct request *request);
int handlers_job_get(struct request *request);
int handlers_job_delete(struct request *request);
int handlers_job_cancel(struct request *request);
int handlers_job_layers(struct request *request);
int handlers_job_report(struct request *request);
int handlers_job_events(struct request *request);
extern const struct request_sink handlers_calibration_sink;

int handlers_artifact_list(struct request *request);
int handlers_artifact_get(struct request *request);
int handlers_artifact_delete(struct request *request);
int handlers_artifact_file(struct request *request);
