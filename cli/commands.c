/* The list of commands. */

#include "cli/commands.h"

const struct command *const commands[] = {
    &command_login,
    &command_system,
    &command_methods,
    &command_models_list,
    &command_models_register,
    &command_models_show,
    &command_models_delete,
    &command_upload,
    &command_files_list,
    &command_files_delete,
    &command_submit,
    &command_jobs_list,
    &command_jobs_show,
    &command_jobs_delete,
    &command_watch,
    &command_report,
    &command_compare,
    &command_pull,
    &command_verify,
    &command_artifacts_list,
    &command_artifacts_show,
    &command_artifacts_sign,
    &command_artifacts_delete,
    &command_cancel,
    &command_pause,
    &command_resume,
    &command_retry,
    NULL,
};
