/* The kernel table for any CPU that the compiler's target runs on. */

#define KERNELS kernels_generic
#define KERNELS_NAME "generic"
#define TARGET

#include "gpu/cpu/kernels.inc"
