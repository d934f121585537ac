/* The interface of this build, row by row: see gpu/backend.h. */

#include "gpu/backend.h"

const char *const gpu_signature[] = {
#define GPU_CALL(name, result, parameters, does) #result " " #name #parameters,
#define GPU_OP(group, name, does, ...) #name "(" #__VA_ARGS__ ")",
#include "gpu/ops.def"
    NULL,
};
