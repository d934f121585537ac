#pragma once
/* A job's finished blocks between the store, which keeps them as JSON, and the pipeline. */

#include "pipeline/message.h"

#include <jansson.h>

/* {"index","version","file","sha256","source","chains":{STORE:{"file","sha256"},...},"notes":{...}}, with "again":true
 * what the row of a committed block is to be changed to (store_block_commit); source: the
 * weights that it was made of, by model_modification; notes: what the report has of the block in addition to its rows,
 * {"kv_cache":{...},"analysis":[...],"tuning":{...},"end_to_end":{...}}, each where there is such a thing. NULL: no
 * memory. New reference.
 */
json_t *blocks_json(const struct message_block *block, const char *source);
/* Whether a block was made of other weights. A row without a source does not say. */
bool blocks_of_other_source(const json_t *list, const char *source);
/* As the store lists them, by index; malloc'ed array. What is missing in a row is empty there. */
int blocks_read(const json_t *list, struct saved_block **blocks, int64_t *count);
