/* Gradients of products, norms, rotations, activations and columns against central differences. */

#include "tests/unit/gpu/grad.h"

/* --- products: inputs x, w, dy */

static int run_linear(struct rig *rig, const struct grad_job *job)
{
    if (grad_out(job, 0) != NULL) {
        TRY(rig->ops->linear_grad(rig->stream, &job->out[0], &job->in[2], &job->in[1]));
    }
    return grad_out(job, 1) != NULL ? rig->ops->cross(rig->stream, &job->out[1], &job->in[2], &job->in[0]) : 0;
}

static double loss_linear(const struct grad_job *job, double *const *x)
{
    int64_t rows = job->inputs[0].rows, in = job->inputs[0].cols, out = job->inputs[1].rows;
    double loss = 0;

    for (int64_t i = 0; i < rows * out; i++) {
        for (int64_t k = 0; k < in; k++) {
            loss += x[2][i] * x[0][i / out * in + k] * x[1][i % out * in + k];
        }
    }
    return loss;
}

START_TEST(of_linear)
{
    static const int64_t shapes[][3] = {{1, 1, 1}, {37, 51, 29}, {5, 300, 7}, {1100, 3, 2}, {2, 17, 600}};

    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        int64_t rows = shapes[i][0], in = shapes[i][1], out = shapes[i][2];
        grad_verify((struct grad_job){.inputs = {{rows, in, 1}, {out, in, 1}, {rows, out, 1}},
                                      .of = {0, 1},
                                      .outputs = 2,
                                      .run = run_linear,
                                      .loss = loss_linear});
    }
}
END_TEST

/* Stored in half precision, w gives what it gives as F32, up to the order of sums. */
START_TEST(of_linear_with_stored_weights)
{
    static const enum dtype types[] = {DTYPE_F16, DTYPE_BF16};

    for (int i = 0; i < 2; i++) {
        struct rig rig;
        rig_open(&rig, 2);
        struct tensor w = rig_random(&rig, 1100, 300, 1), dy = rig_random(&rig, 9, 1100, 2);
        struct tensor half = rig_tensor(&rig, types[i], 1100, 300);
        struct tensor want = rig_random(&rig, 9, 300, 3), got = rig_random(&rig, 9, 300, 3);
        ck_assert_rc_ok(rig.ops->convert(rig.stream, &half, &w));
        ck_assert_rc_ok(rig.ops->convert(rig.stream, &w, &half));
        ck_assert_rc_ok(rig.ops->linear_grad(rig.stream, &want, &dy, &w));
        ck_assert_rc_ok(rig.ops->linear_grad(rig.stream, &got, &dy, &half));
        for (int64_t j = 0; j < tensor_count(&want); j++) {
            ck_assert_near(floats(&got)[j], floats(&want)[j], 5e-4);
        }
        gpu_tensor_free(&rig.gpu, &w);
        gpu_tensor_free(&rig.gpu, &dy);
        gpu_tensor_free(&rig.gpu, &half);
        gpu_tensor_free(&rig.gpu, &want);
        gpu_tensor_free(&rig.gpu, &got);
        rig_close(&rig);
    }
}
END_TEST

/* inputs bias, dy */
static int run_column_sums(struct rig *rig, const struct grad_job *job)
{
    return rig->ops->column_sums(rig->stream, &job->out[0], &job->in[1]);
}

static double loss_column_sums(const struct grad_job *job, double *const *x)
{
    int64_t cols = job->inputs[1].cols;
    double loss = 0;

    for (int64_t i = 0; i < job->inputs[1].rows * cols; i++) {
        loss += x[1][i] * x[0][i % cols];
    }
    return loss;
}

START_TEST(of_biases)
{
    static const int64_t shapes[][2] = {{1, 1}, {300, 7}, {9, 300}};

    for (int i = 0; i < 3; i++) {
        grad_verify((struct grad_job){.inputs = {{1, shapes[i][1], 1}, {shapes[i][0], shapes[i][1], 1}},
                                      .of = {0},
                                      .outputs = 1,
                                      .run = run_column_sums,
                                      .loss = loss_column_sums});
    }
}
END_TEST

/* --- norms: inputs x, dy, bias, weight */

static int run_norm(struct rig *rig, const struct grad_job *job)
{
    bool weighed = job->inputs[3].rows > 0;

    return rig->ops->norm_grad(rig->stream, grad_out(job, 0), weighed ? grad_out(job, 2) : NULL, grad_out(job, 1),
                               &job->in[1], &job->in[0], weighed ? &job->in[3] : NULL, job->spec);
}

static double loss_norm(const struct grad_job *job, double *const *x)
{
    const struct gpu_norm *spec = job->spec;
    int64_t size = spec->size;
    double loss = 0;

    for (int64_t at = 0; at < job->inputs[0].rows * job->inputs[0].cols; at += size) {
        double mean = 0, square = 0;
        for (int64_t i = 0; i < size && spec->layer; i++) {
            mean += x[0][at + i] / (double)size;
        }
        for (int64_t i = 0; i < size; i++) {
            square += pow(x[0][at + i] - mean, 2) / (double)size;
        }
        for (int64_t i = 0; i < size; i++) {
            double factor = x[3] != NULL ? x[3][i] + (spec->unit_offset ? 1 : 0) : 1;
            loss += x[1][at + i] * ((x[0][at + i] - mean) / sqrt(square + (double)spec->eps) * factor + x[2][i]);
        }
    }
    return loss;
}

START_TEST(of_norms)
{
    static const int64_t shapes[][3] = {{1, 2, 2}, {37, 100, 100}, {20, 96, 16}, {5, 1027, 1027}, {300, 24, 8}};

    for (int kind = 0; kind < 8; kind++) { /* layer, 1 + w, weight: each or not */
        const struct gpu_norm base = {.layer = (kind & 1) != 0, .unit_offset = (kind & 2) != 0, .eps = 1e-3f};
        for (size_t i = kind == 0 || kind > 3 ? 0 : 4; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
            struct gpu_norm spec = base;
            spec.size = shapes[i][2];
            bool weighed = (kind & 4) != 0;
            grad_verify((struct grad_job){.inputs = {{shapes[i][0], shapes[i][1], 2},
                                                     {shapes[i][0], shapes[i][1], 1},
                                                     {1, spec.size, 1},
                                                     {weighed ? 1 : 0, spec.size, 1}},
                                          .of = {0, 2, 3},
                                          .outputs = weighed ? 3 : 2,
                                          .run = run_norm,
                                          .loss = loss_norm,
                                          .loose = 3e-5, /* dx is a difference of terms that nearly cancel */
                                          .spec = &spec});
        }
    }
}
END_TEST

/* --- rotations: inputs x, dy, and tables in spec */

struct rotation {
    struct gpu_rope rope;
    int64_t rows, cols;
};

static void rotation_tables(struct rig *rig, const struct rotation *turn, struct tensor tables[2])
{
    int64_t half = turn->rope.rotated / 2;

    for (int i = 0; i < 2; i++) {
        tables[i] = rig_tensor(rig, DTYPE_F32, turn->rope.length, half);
        for (int64_t j = 0; j < tensor_count(&tables[i]); j++) {
            double angle = (double)(j / half) * pow(100, -(double)(j % half) / (double)half);
            floats(&tables[i])[j] = (float)(i == 0 ? cos(angle) : sin(angle));
        }
    }
}

static int run_rope(struct rig *rig, const struct grad_job *job)
{
    const struct rotation *turn = job->spec;
    struct gpu_rope back = turn->rope;
    struct tensor tables[2], turned = rig_tensor(rig, DTYPE_F32, turn->rows, turn->cols);

    back.inverse = true;
    rotation_tables(rig, turn, tables);
    memcpy(turned.data, job->in[1].data, tensor_bytes(&turned));
    int rc = rig->ops->rope(rig->stream, &turned, &tables[0], &tables[1], &back);
    rc = rc != 0 ? rc : rig->ops->add(rig->stream, &job->out[0], &turned);
    for (int i = 0; i < 2; i++) {
        gpu_tensor_free(&rig->gpu, &tables[i]);
    }
    gpu_tensor_free(&rig->gpu, &turned);
    return rc;
}

static double loss_rope(const struct grad_job *job, double *const *x)
{
    const struct rotation *turn = job->spec;
    int64_t half = turn->rope.rotated / 2, dim = turn->rope.head_dim;
    double loss = 0;

    for (int64_t i = 0; i < turn->rows * turn->cols; i++) {
        int64_t position = i / turn->cols % turn->rope.length, col = i % turn->cols % dim, head = i - col;
        if (col >= turn->rope.rotated) {
            loss += x[1][i] * x[0][i];
            continue;
        }
        int64_t pair = turn->rope.interleaved ? col / 2 : col % half;
        bool high = turn->rope.interleaved ? col % 2 == 1 : col >= half;
        double angle = (double)position * pow(100, -(double)pair / (double)half);
        double a = x[0][head + (turn->rope.interleaved ? 2 * pair : pair)];
        double b = x[0][head + (turn->rope.interleaved ? 2 * pair + 1 : pair + half)];
        loss += x[1][i] * (high ? b * cos(angle) + a * sin(angle) : a * cos(angle) - b * sin(angle));
    }
    return loss;
}

START_TEST(of_rotations)
{
    for (int kind = 0; kind < 4; kind++) { /* interleaved, partial: each or not */
        const struct rotation turn = {
            .rope = {.length = 13, .head_dim = 10, .rotated = (kind & 2) != 0 ? 6 : 10, .interleaved = (kind & 1) != 0},
            .rows = 26,
            .cols = 30};
        grad_verify((struct grad_job){.inputs = {{26, 30, 1}, {26, 30, 1}},
                                      .of = {0},
                                      .outputs = 1,
                                      .run = run_rope,
                                      .loss = loss_rope,
                                      .spec = &turn});
    }
}
END_TEST

/* --- activations: inputs gate, dy, up */

static int run_activate(struct rig *rig, const struct grad_job *job)
{
    bool has_up = job->inputs[2].rows > 0;

    return rig->ops->activate_grad(rig->stream, grad_out(job, 0), has_up ? grad_out(job, 1) : NULL, &job->in[1],
                                   &job->in[0], has_up ? &job->in[2] : NULL, *(const enum gpu_activation *)job->spec);
}

static double activated(double g, double u, enum gpu_activation activation)
{
    double low = fmin(g, 7);

    switch (activation) {
    case GPU_SILU:
        return g / (1 + exp(-g)) * u;
    case GPU_GELU:
        return g * 0.5 * erfc(-g * M_SQRT1_2) * u;
    case GPU_GELU_TANH:
        return 0.5 * g * (1 + tanh(sqrt(2 / M_PI) * (g + 0.044715 * g * g * g))) * u;
    case GPU_RELU:
        return fmax(g, 0) * u;
    case GPU_RELU2:
        return fmax(g, 0) * fmax(g, 0) * u;
    case GPU_SIGMOID:
        return u / (1 + exp(-g));
    case GPU_SWIGLU_CLAMPED:
        return low / (1 + exp(-1.702 * low)) * (fmin(fmax(u, -7), 7) + 1);
    }
    return NAN;
}

static double loss_activate(const struct grad_job *job, double *const *x)
{
    int64_t cols = job->inputs[1].cols, each = job->inputs[0].cols == 1 ? cols : 1;
    double loss = 0;

    for (int64_t i = 0; i < job->inputs[1].rows * cols; i++) {
        loss +=
            x[1][i] * activated(x[0][i / each], x[2] != NULL ? x[2][i] : 1, *(const enum gpu_activation *)job->spec);
    }
    return loss;
}

START_TEST(of_activations)
{
    for (int i = 0; i < 3 * GPU_ACTIVATIONS; i++) {
        enum gpu_activation activation = (enum gpu_activation)(i / 3);
        int mode = i % 3; /* 0: of gate and up; 1: of gate alone; 2: of a gate of one column */
        if (activation == GPU_SWIGLU_CLAMPED && mode == 1) {
            continue;
        }
        grad_verify((struct grad_job){.inputs = {{20, mode == 2 ? 1 : 53, 5}, {20, 53, 1}, {mode == 1 ? 0 : 20, 53, 5}},
                                      .of = {0, 2},
                                      .outputs = mode == 1 ? 1 : 2,
                                      .run = run_activate,
                                      .loss = loss_activate,
                                      .spec = &activation});
    }
}
END_TEST

/* Far from zero nothing overflows, and slopes are those of the asymptotes. */
START_TEST(of_activations_at_the_extremes)
{
    for (int i = 0; i < GPU_ACTIVATIONS; i++) {
        struct rig rig;
        rig_open(&rig, 1);
        struct tensor gate = rig_tensor(&rig, DTYPE_F32, 1, 2), one = rig_tensor(&rig, DTYPE_F32, 1, 2);
        struct tensor d = rig_tensor(&rig, DTYPE_F32, 1, 2), dup = rig_tensor(&rig, DTYPE_F32, 1, 2);
        floats(&gate)[0] = -300;
        floats(&gate)[1] = 300;
        floats(&one)[0] = floats(&one)[1] = 1;
        ck_assert_rc_ok(rig.ops->activate_grad(rig.stream, &d, &dup, &one, &gate, &one, (enum gpu_activation)i));
        ck_assert_near(floats(&d)[0], 0, 1e-30);
        ck_assert_near(floats(&d)[1], i == GPU_SIGMOID || i == GPU_SWIGLU_CLAMPED ? 0 : i == GPU_RELU2 ? 600 : 1, 1e-6);
        ck_assert(isfinite(floats(&dup)[0]) && isfinite(floats(&dup)[1]));
        gpu_tensor_free(&rig.gpu, &gate);
        gpu_tensor_free(&rig.gpu, &one);
        gpu_tensor_free(&rig.gpu, &d);
        gpu_tensor_free(&rig.gpu, &dup);
        rig_close(&rig);
    }
}
END_TEST

/* --- the soft cap: inputs x, dy */

static int run_soft_cap(struct rig *rig, const struct grad_job *job)
{
    return rig->ops->soft_cap_grad(rig->stream, &job->out[0], &job->in[1], &job->in[0], *(const double *)job->spec);
}

static double loss_soft_cap(const struct grad_job *job, double *const *x)
{
    double cap = *(const double *)job->spec, loss = 0;

    for (int64_t i = 0; i < job->inputs[0].rows * job->inputs[0].cols; i++) {
        loss += x[1][i] * cap * tanh(x[0][i] / cap);
    }
    return loss;
}

START_TEST(of_the_soft_cap)
{
    static const double caps[] = {30, 1.5};

    for (int i = 0; i < 2; i++) {
        grad_verify((struct grad_job){.inputs = {{19, 23, 4}, {19, 23, 1}},
                                      .of = {0},
                                      .outputs = 1,
                                      .run = run_soft_cap,
                                      .loss = loss_soft_cap,
                                      .spec = &caps[i]});
    }
}
END_TEST

/* --- columns: inputs x, dy; the spec is that of the copy */

static int run_columns(struct rig *rig, const struct grad_job *job)
{
    const struct gpu_columns *copy = job->spec;
    const struct gpu_columns back = {.heads = copy->heads,
                                     .count = copy->count,
                                     .to = copy->from,
                                     .to_stride = copy->from_stride,
                                     .from = copy->to,
                                     .from_stride = copy->to_stride};

    return rig->ops->add_columns(rig->stream, &job->out[0], &job->in[1], &back);
}

static double loss_columns(const struct grad_job *job, double *const *x)
{
    const struct gpu_columns *copy = job->spec;
    double loss = 0;

    for (int64_t t = 0; t < job->inputs[0].rows; t++) {
        for (int64_t i = 0; i < copy->heads * copy->count; i++) {
            int64_t head = i / copy->count, col = i % copy->count;
            loss += x[1][t * job->inputs[1].cols + head * copy->to_stride + copy->to + col] *
                    x[0][t * job->inputs[0].cols + head * copy->from_stride + copy->from + col];
        }
    }
    return loss;
}

START_TEST(of_columns)
{
    for (int shared = 0; shared < 2; shared++) { /* of one head that all get */
        const struct gpu_columns spec = {
            .heads = 3, .count = 3, .to = 1, .to_stride = 5, .from = 2, .from_stride = shared ? 0 : 6};
        grad_verify((struct grad_job){.inputs = {{37, shared ? 5 : 18, 1}, {37, 15, 1}},
                                      .of = {0},
                                      .outputs = 1,
                                      .run = run_columns,
                                      .loss = loss_columns,
                                      .spec = &spec});
    }
}
END_TEST

/* Straight through, but for what a static range clips and is no outlier. */
START_TEST(of_quantized_inputs)
{
    static const float limits[] = {127, 448};

    for (int i = 0; i < 2; i++) {
        struct rig rig;
        rig_open(&rig, 2);
        struct tensor x = rig_random(&rig, 20, 37, 1), dy = rig_random(&rig, 20, 37, 2);
        struct tensor dx = rig_tensor(&rig, DTYPE_F32, 20, 37), outliers = rig_tensor(&rig, DTYPE_F32, 1, 37);
        struct gpu_input spec = {.element = i == 0 ? DTYPE_I8 : DTYPE_F8_E4M3, .scale = 0.5f / limits[i]};
        int clipped = 0;
        floats(&outliers)[5] = 1;
        ck_assert_rc_ok(rig.ops->quantize_input_grad(rig.stream, &dx, &dy, &x, &outliers, &spec));
        for (int j = 0; j < 20 * 37; j++) {
            bool passes = fabsf(floats(&x)[j]) < 0.5f || j % 37 == 5;
            ck_assert_float_eq(floats(&dx)[j], passes ? floats(&dy)[j] : 0.0f);
            clipped += !passes;
        }
        ck_assert(clipped > 100 && clipped < 600);
        spec = (struct gpu_input){.element = spec.element, .dynamic = true};
        ck_assert_rc_ok(rig.ops->quantize_input_grad(rig.stream, &dx, &dy, &x, NULL, &spec));
        for (int j = 0; j < 20 * 37; j++) {
            bool passes = fabsf(floats(&x)[j]) < 0.5f || j % 37 == 5;
            ck_assert_float_eq(floats(&dx)[j], (passes ? floats(&dy)[j] : 0.0f) + floats(&dy)[j]);
        }
        gpu_tensor_free(&rig.gpu, &x);
        gpu_tensor_free(&rig.gpu, &dy);
        gpu_tensor_free(&rig.gpu, &dx);
        gpu_tensor_free(&rig.gpu, &outliers);
        rig_close(&rig);
    }
}
END_TEST

START_TEST(arguments_are_checked)
{
    struct rig rig;
    rig_open(&rig, 1);
    const struct gpu_ops *ops = rig.ops;
    struct tensor x = rig_random(&rig, 4, 6, 1), w = rig_random(&rig, 5, 6, 2), dy = rig_random(&rig, 4, 5, 3);
    struct tensor dx = rig_tensor(&rig, DTYPE_F32, 4, 6), d6 = rig_tensor(&rig, DTYPE_F32, 1, 6);
    const struct gpu_norm norm = {.size = 6, .eps = 1e-5f}, uneven = {.size = 4, .eps = 1e-5f};
    const struct gpu_columns wide = {.heads = 2, .count = 4, .to_stride = 0, .from_stride = 3};

    ck_assert_refused(ops->linear_grad(rig.stream, &dx, &dy, &x), "linear_grad: w");
    ck_assert_refused(ops->linear_grad(rig.stream, &w, &dy, &w), "linear_grad: dx");
    ck_assert_refused(
        ops->linear_grad(rig.stream, &x, &x,
                         &(struct tensor){.data = w.data, .dtype = DTYPE_F32, .rank = 2, .shape = {6, 6, 1, 1}}),
        "share memory");
    ck_assert_refused(ops->column_sums(rig.stream, &d6, &dy), "column_sums: d");
    ck_assert_refused(ops->norm_grad(rig.stream, &dx, NULL, NULL, &x, &x, NULL, &uneven), "norm_grad: over each 4");
    ck_assert_refused(ops->norm_grad(rig.stream, &dx, &d6, NULL, &x, &x, NULL, &norm), "dweight without a weight");
    ck_assert_refused(ops->norm_grad(rig.stream, &x, NULL, NULL, &x, &x, NULL, &norm), "dx and dy share memory");
    ck_assert_refused(ops->activate_grad(rig.stream, NULL, &dx, &x, &x, NULL, GPU_SILU), "dup without up");
    ck_assert_refused(ops->activate_grad(rig.stream, &dx, NULL, &x, &x, NULL, GPU_SWIGLU_CLAMPED), "activate_grad");
    ck_assert_refused(ops->soft_cap_grad(rig.stream, &dx, &x, &x, 0), "a cap of 0");
    ck_assert_refused(ops->add_columns(rig.stream, &dx, &x, &wide), "add_columns: 4 columns of 2 heads");
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &dy);
    gpu_tensor_free(&rig.gpu, &dx);
    gpu_tensor_free(&rig.gpu, &d6);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("gpu/grad", of_linear, of_linear_with_stored_weights, of_biases, of_norms, of_rotations, of_activations,
          of_activations_at_the_extremes, of_the_soft_cap, of_columns, of_quantized_inputs, arguments_are_checked)
