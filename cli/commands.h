#pragma once
/* The rows of all commands. */

#include "cli/command.h"

extern const struct command command_login;
extern const struct command command_system;
extern const struct command command_architectures;
extern const struct command command_methods;
extern const struct command command_runtimes;
extern const struct command command_models_list, command_models_register, command_models_upload, command_models_show,
    command_models_delete;
extern const struct command command_recommend, command_plan, command_submit;
extern const struct command command_calibrate;
extern const struct command command_jobs_list, command_jobs_show, command_jobs_update, command_jobs_delete;
extern const struct command command_upload, command_report, command_compare, command_pull, command_push, command_verify;
extern const struct command command_files_list, command_files_delete;
extern const struct command command_artifacts_list, command_artifacts_show, command_artifacts_sign,
    command_artifacts_delete;
extern const struct command command_quota;
extern const struct command command_webhooks_list, command_webhooks_create, command_webhooks_show,
    command_webhooks_update, command_webhooks_delete, command_webhooks_rotate, command_webhooks_test,
    command_webhooks_deliveries;
extern const struct command command_watch, command_cancel, command_pause, command_resume, command_retry;
