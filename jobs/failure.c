/* Failures worded for whoever submitted the job: what happened, where, and what to change. */

#include "jobs/failure.h"

static const struct hint_row {
    int code;
    const char *hint;
} hints[] = {
    {ERR_NON_FINITE_VALUE,
     "the weights or activations hold NaN or Inf: check the checkpoint, or leave the module out with"
     " modules_to_not_convert"},
    {ERR_NOT_POSITIVE_DEFINITE, "raise damp_percent (0.05), or give more calibration data (num_samples 512)"},
    {ERR_INSUFFICIENT_CALIBRATION, "give more records, or a smaller calibration.sequence_length"},
    {ERR_SOURCE_CHANGED, "register the model again, leave its files alone while jobs run, and submit a new job"},
    {ERR_SOURCE_CORRUPT, "a file of the checkpoint is damaged: download it again and register the model again"},
    {ERR_INVALID_MODEL, "the checkpoint contradicts itself: download it again and register the model again"},
    {ERR_INVALID_CHAT_TEMPLATE, "send text or input_ids instead of messages, or repair the model's chat template"},
    {ERR_INVALID_TOKENIZER, "send input_ids instead of text, or repair the model's tokenizer.json"},
    {ERR_DISK_FULL, "free space in the data directory (delete artifacts and jobs), or lower num_samples"},
    {ERR_HOST_OUT_OF_MEMORY, "lower calibration.sequence_length or resources.host_memory_bytes, or use a larger host"},
    {ERR_GPU_OUT_OF_MEMORY, "lower calibration.sequence_length, or choose device cpu"},
    {ERR_TIMEOUT, "raise timeout_seconds, or lower num_samples"},
    {ERR_DEVICE_LOST, "the device failed each time that the job was tried: look for it in the kernel's log, then "
                      "submit the job again, or"
                      " with resources.device \"cpu\""},
    {ERR_WORKER_LOST, "look at the daemon's log and the host's memory; submit the job again with fewer samples"},
    {ERR_EVALUATION_GATE, "more bits, a smaller group_size or a method that calibrates; or a ladder of such rungs in "
                          "evaluation.gate; or retry "
                          "with wider limits in evaluation.gate, which keeps the finished blocks"},
    {ERR_NOT_FOUND, "the model or a file that the job needs is gone; register or upload it again"},
};

const char *failure_code(int code)
{
    return code == ERR_DISK_FULL ? "disk_full" : err_api_code(code);
}

static json_t *text_or_null(const char *text)
{
    return text[0] != '\0' ? json_string(text) : json_null();
}

static const char *hint_of(const struct err_record *record)
{
    if (record->hint[0] != '\0') {
        return record->hint;
    }
    for (size_t i = 0; i < sizeof(hints) / sizeof(hints[0]); i++) {
        if (hints[i].code == record->code) {
            return hints[i].hint;
        }
    }
    return "";
}

json_t *failure_json(const struct err_record *record, int64_t layer)
{
    const char *message = record->message[0] != '\0' ? record->message : err_sentence(record->code);

    return json_pack("{s:s, s:o, s:o, s:o, s:o, s:o, s:b}", "code", failure_code(record->code), "message",
                     text_or_null(message), "param", text_or_null(record->param), "layer",
                     layer >= 0 ? json_integer(layer) : json_null(), "module", text_or_null(record->module), "hint",
                     text_or_null(hint_of(record)), "retryable", (int)err_retryable(record->code));
}
