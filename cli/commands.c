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
    &command_submit,
    &command_jobs_list,
    &command_jobs_show,
    &command_jobs_delete,
    &command_watch,
    &command_report,
    &command_compare,
    &command_pull,
    &command_cancel,
    &command_retry,
    NULL,
};
