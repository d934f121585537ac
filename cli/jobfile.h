#pragma once
/* A job file: the body of POST /v1/quantization/jobs, in JSON or in YAML.
 *
 * Of YAML, what JSON has: mappings with text keys, sequences, and scalars read as the core schema of YAML 1.2 reads
 * them (null, true, false, numbers; everything else, and what is quoted, is text: "on" and "no" are not booleans). One
 * document; anchors, aliases, merge keys and tags are refused, and so are duplicate keys. */

#include <jansson.h>
#include <stddef.h>

#define JOBFILE_MAX ((size_t)4 << 20)

/* ERR_CONFIG with name and line. The value is an object. */
int jobfile_parse(const char *name, const char *text, size_t size, json_t **out);
/* The same of a file, or of standard input for "-". */
int jobfile_read(const char *path, json_t **out);
/* One plain scalar of the core schema, as a new reference; NULL only without memory. text is valid UTF-8. */
json_t *jobfile_scalar(const char *text, size_t size);
