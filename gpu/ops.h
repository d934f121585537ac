#pragma once
/* How the rows of gpu/ops.def are expanded: (type, argument) pairs as parameters and as arguments. Who includes
 * ops.def defines GPU_OP, GPU_CALL or both; ops.def undefines them again. Private to gpu/ and to whoever makes a table
 * of the rows. */

/* f(pair) for each of 1 to 10 pairs. */
#define GPU_EACH_1(f, pair) f(pair)
#define GPU_EACH_2(f, pair, ...) f(pair) GPU_EACH_1(f, __VA_ARGS__)
#define GPU_EACH_3(f, pair, ...) f(pair) GPU_EACH_2(f, __VA_ARGS__)
#define GPU_EACH_4(f, pair, ...) f(pair) GPU_EACH_3(f, __VA_ARGS__)
#define GPU_EACH_5(f, pair, ...) f(pair) GPU_EACH_4(f, __VA_ARGS__)
#define GPU_EACH_6(f, pair, ...) f(pair) GPU_EACH_5(f, __VA_ARGS__)
#define GPU_EACH_7(f, pair, ...) f(pair) GPU_EACH_6(f, __VA_ARGS__)
#define GPU_EACH_8(f, pair, ...) f(pair) GPU_EACH_7(f, __VA_ARGS__)
#define GPU_EACH_9(f, pair, ...) f(pair) GPU_EACH_8(f, __VA_ARGS__)
#define GPU_EACH_10(f, pair, ...) f(pair) GPU_EACH_9(f, __VA_ARGS__)
#define GPU_PICK(_1, _2, _3, _4, _5, _6, _7, _8, _9, _10, name, ...) name
#define GPU_EACH(f, ...)                                                                                       \
    GPU_PICK(__VA_ARGS__, GPU_EACH_10, GPU_EACH_9, GPU_EACH_8, GPU_EACH_7, GPU_EACH_6, GPU_EACH_5, GPU_EACH_4, \
             GPU_EACH_3, GPU_EACH_2, GPU_EACH_1, )                                                             \
    (f, __VA_ARGS__)

#define GPU_PARAMETER_OF(type, name) , type name
#define GPU_PARAMETER(pair) GPU_PARAMETER_OF pair
#define GPU_ARGUMENT_OF(type, name) , name
#define GPU_ARGUMENT(pair) GPU_ARGUMENT_OF pair
/* ", const struct tensor *y, const struct tensor *x": after a first parameter. */
#define GPU_PARAMETERS(...) GPU_EACH(GPU_PARAMETER, __VA_ARGS__)
/* ", y, x" */
#define GPU_ARGUMENTS(...) GPU_EACH(GPU_ARGUMENT, __VA_ARGS__)
