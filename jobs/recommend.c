/* POST /v1/quantization/recommendations: what to quantize a model to for a goal, on a device, at a load. The order is
 * the goal's (recommend_rows.c); sizes are the formats', times those of the roofline model. Nothing is stored. */

#include "jobs/recommend.h"
#include "base/err.h"
#include "base/params.h"
#include "formats/runtimes.h"
#include "jobs/recommend_rows.h"
#include "pipeline/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FREE_SHARE 0.9     /* of a device's memory: the rest is a runtime's own */
#define HARDLY_FASTER 1.15 /* a gain that is too small to quantize for */
#define LOAD_MAX ((int64_t)1 << 30)

static const char *const runtime_choices[] = {"any", "vllm", "sglang", "transformers", "llama.cpp", "mlx", NULL};
static const char *const goal_choices[] = {"larger_model", "lowest_bits",      "stable_int8", "throughput",
                                           "low_risk",     "adapter_training", NULL};

struct recommend_request {
    json_t *model, *accelerator;
    int goal, runtime;
    int64_t batch, prompt_tokens, output_tokens;
    bool calibration;
};

#define ROW(member_, type_, fallback_, ...)                                                               \
    {                                                                                                     \
        .name = #member_, .type = (type_), .offset = offsetof(struct recommend_request, member_),         \
        .size = sizeof(((struct recommend_request *)NULL)->member_), .fallback = (fallback_), __VA_ARGS__ \
    }
static const struct params_row request_rows[] = {
    ROW(model, PARAMS_JSON, NULL, .help = "The id of a model, or what registers one; it is not registered."),
    ROW(goal, PARAMS_ENUM, NULL, .choices = goal_choices, .help = "What quantization is for."),
    ROW(accelerator, PARAMS_JSON, NULL,
        .help = "The name of an accelerator, or its numbers: memory_bytes, bandwidth_bytes_per_second, and 10^12 "
                "operations a second as bf16_tflops, int8_tflops, fp8_tflops (0: none)."),
    ROW(runtime, PARAMS_ENUM, "\"any\"", .choices = runtime_choices, .help = "What serves the artifact."),
    ROW(batch, PARAMS_INT, "1", .min = 1, .max = LOAD_MAX, .help = "Sequences that are generated at once."),
    ROW(prompt_tokens, PARAMS_INT, "2048", .min = 1, .max = LOAD_MAX, .help = "Tokens of a prompt."),
    ROW(output_tokens, PARAMS_INT, "256", .min = 0, .max = LOAD_MAX, .help = "Tokens that are generated after it."),
    ROW(calibration, PARAMS_BOOL, "true", .help = "There are records to calibrate with."),
    {.name = NULL},
};
static const struct params_row *const request_tables[] = {request_rows, NULL};

json_t *recommend_schema(void)
{
    json_t *schema = params_schema(request_tables), *properties = json_object_get(schema, "properties");

    json_t *number = json_pack("{s:s, s:i}", "type", "number", "minimum", 0);
    json_t *positive = json_pack("{s:s, s:i}", "type", "number", "exclusiveMinimum", 0);
    json_t *names = json_array();
    for (const struct accelerator_row *a = accelerators; a->name != NULL; a++) {
        json_array_append_new(names, json_string(a->name));
    }
    json_t *titles = json_object();
    for (const struct goal_row *g = goals; g->name != NULL; g++) {
        json_object_set_new(titles, g->name, json_string(g->title));
    }
    json_object_set_new(json_object_get(properties, "goal"), "x-titles", titles);
    json_object_set_new(
        properties, "accelerator",
        json_pack("{s:O, s:[{s:s, s:o}, {s:s, s:{s:O, s:O, s:O, s:O, s:O}, s:[s, s, s], s:b}]}", "description",
                  json_object_get(json_object_get(properties, "accelerator"), "description"), "anyOf", "type", "string",
                  "enum", names, "type", "object", "properties", "memory_bytes", positive, "bandwidth_bytes_per_second",
                  positive, "bf16_tflops", positive, "int8_tflops", number, "fp8_tflops", number, "required",
                  "memory_bytes", "bandwidth_bytes_per_second", "bf16_tflops", "additionalProperties", 0));
    json_decref(number);
    json_decref(positive);
    return schema;
}

/* --- the device */

struct accelerator_numbers {
    double memory_bytes, bandwidth_bytes_per_second, bf16_tflops, int8_tflops, fp8_tflops;
};
#define NUMBER(member_, fallback_, least_, help_)                                                         \
    {                                                                                                     \
        .name = #member_, .type = PARAMS_NUMBER, .offset = offsetof(struct accelerator_numbers, member_), \
        .size = sizeof(double), .fallback = (fallback_), .min = (least_), .max = 1e30, .help = (help_)    \
    }
static const struct params_row number_rows[] = {
    NUMBER(memory_bytes, NULL, 1, "Bytes of the accelerator's memory: 24e9 for 24 GB."),
    NUMBER(bandwidth_bytes_per_second, NULL, 1, "Bytes that it reads from its memory in a second: 1.008e12."),
    NUMBER(bf16_tflops, NULL, 1e-6, "10^12 dense operations a second on BF16: 165."),
    NUMBER(int8_tflops, "0", 0, "10^12 dense operations a second on INT8; 0: it has none."),
    NUMBER(fp8_tflops, "0", 0, "10^12 dense operations a second on FP8; 0: it has none."),
    {.name = NULL},
};
static const struct params_row *const number_tables[] = {number_rows, NULL};

static void read_accelerator(const json_t *given, const char *pointer, struct roofline_device *out,
                             struct validation_errors *errors)
{
    struct accelerator_numbers numbers = {0};
    char at[64];

    snprintf(at, sizeof(at), "%s/accelerator", pointer);
    if (json_is_object(given)) {
        if (params_parse(number_tables, given, at, &numbers, errors) == 0) {
            *out = (struct roofline_device){numbers.memory_bytes, numbers.bandwidth_bytes_per_second,
                                            numbers.bf16_tflops, numbers.int8_tflops, numbers.fp8_tflops};
        }
        return;
    }
    const char *name = json_string_value(given);
    const struct accelerator_row *row = name != NULL ? accelerator_find(name) : NULL;
    if (row != NULL) {
        *out = row->device;
        return;
    }
    validation_add(errors, ERR_INVALID_PARAMETER, at, "there is no accelerator of this name");
}

/* Who asks for a goal or an accelerator that there is not, or for none, is told which there are. */
static void list_names(const char *pointer, struct validation_errors *errors)
{
    char goal[64], accelerator[64];

    snprintf(goal, sizeof(goal), "%s/goal", pointer);
    snprintf(accelerator, sizeof(accelerator), "%s/accelerator", pointer);
    for (size_t i = 0; i < errors->count; i++) {
        struct validation_error *e = &errors->items[i];
        if (strcmp(e->param, goal) == 0) {
            recommend_goal_names(e->hint, sizeof(e->hint));
        } else if (strcmp(e->param, accelerator) == 0) {
            recommend_accelerator_names(e->hint, sizeof(e->hint));
        }
    }
}

static json_t *accelerator_json(const struct recommend_request *request, const struct roofline_device *device)
{
    return json_pack("{s:s, s:f, s:f, s:f, s:f, s:f}", "name",
                     json_is_string(request->accelerator) ? json_string_value(request->accelerator) : "given",
                     "memory_bytes", device->memory_bytes, "bandwidth_bytes_per_second", device->bandwidth,
                     "bf16_tflops", device->bf16, "int8_tflops", device->int8, "fp8_tflops", device->fp8);
}

/* --- times and sizes */

/* Of a batch of requests, by one of them. */
struct speed {
    struct roofline_time decode, prefill;
    double request;
    double cache, total; /* bytes */
    bool fits;
};

struct setting {
    const struct recommend_request *request;
    const struct goal_row *goal;
    const struct recommend_ask *ask;
    const char *model_id; /* of the jobs that are checked */
    const struct model *model;
    struct roofline_device device;
    struct roofline_load load;
    struct roofline_model shape;
    struct speed plain; /* in 16 bits */
};

static struct speed speed_of(const struct setting *s, const struct roofline_form *form)
{
    const struct recommend_request *r = s->request;
    const struct roofline_load prompt = {.batch = 1, .context = r->prompt_tokens};
    struct speed speed = {.decode = roofline_decode(&s->shape, form, &s->device, &s->load),
                          .prefill = roofline_prefill(&s->shape, form, &s->device, &prompt)};

    speed.request = speed.prefill.seconds + (double)r->output_tokens * speed.decode.seconds / (double)r->batch;
    speed.cache = (double)r->batch * s->shape.cache * form->cache_share;
    speed.total = form->weights + speed.cache;
    speed.fits = speed.total <= FREE_SHARE * s->device.memory_bytes;
    return speed;
}

static json_t *explain(const struct setting *s, const struct speed *speed)
{
    static const char *const advice[] = {
        [BOUND_WEIGHTS] = "reading weights decides, so fewer bits of weights make it faster",
        [BOUND_CACHE] =
            "reading keys and values decides: a quantized cache makes it faster, fewer bits of weights hardly",
        [BOUND_ARITHMETIC] =
            "arithmetic decides: products in INT8 or FP8 make it faster, fewer bits of weights alone do not",
    };
    const struct roofline_time *d = &speed->decode;

    return json_sprintf(
        "The next token of %lld sequence%s of %lld tokens takes at least %.3g ms to read weights, %.3g ms to read keys "
        "and values, and %.3g ms to compute: %s.",
        (long long)s->load.batch, s->load.batch == 1 ? "" : "s", (long long)s->load.context, 1e3 * d->weights,
        1e3 * d->cache, 1e3 * d->arithmetic, advice[d->bound]);
}

static json_t *plain_json(const struct setting *s)
{
    const struct speed *plain = &s->plain;

    return json_pack("{s:f, s:f, s:f, s:b, s:f, s:f, s:s, s:s, s:o}", "weights_bytes", plain->total - plain->cache,
                     "kv_cache_bytes", plain->cache, "total_bytes", plain->total, "fits", (int)plain->fits,
                     "decode_seconds", plain->decode.seconds, "prefill_seconds", plain->prefill.seconds, "decode_bound",
                     roofline_bounds[plain->decode.bound], "prefill_bound", roofline_bounds[plain->prefill.bound],
                     "explanation", explain(s, plain));
}

/* --- choices */

static double products_of(const struct choice_row *choice, const struct roofline_device *device)
{
    return choice->products == PRODUCTS_INT8  ? device->int8
           : choice->products == PRODUCTS_FP8 ? device->fp8
                                              : device->bf16;
}

/* The choice as a job of the request's model, with what is stated. */
static json_t *job_of(const struct setting *s, const struct choice_row *choice, bool calibrated)
{
    json_t *job = json_loads(choice->job, 0, NULL);

    recommend_state(s->ask->stated, job);
    json_object_set(job, "model", s->request->model);
    if (calibrated) {
        json_object_set_new(job, "calibration", json_pack("{s:b}", "stream", 1));
    }
    return job;
}

/* The job parsed and checked on the model; false, with the reason: it does not go. */
static bool check_choice(const struct setting *s, const struct choice_row *choice, struct job_spec *spec,
                         bool *calibrated, json_t **reason)
{
    AUTO_JSON json_t *job = job_of(s, choice, false);
    struct validation_errors *errors = calloc(1, sizeof(*errors));
    bool fine = errors != NULL;

    json_object_set_new(job, "model", json_string(s->model_id));
    json_object_set_new(job, "calibration", json_pack("{s:b}", "stream", 1));
    fine = fine && spec_parse(job, errors, spec) == 0 && spec_check(spec, s->model, s->ask->device, errors) == 0;
    *calibrated = fine && recipe_needs_calibration(&spec->recipe);
    if (!fine) {
        *reason = json_string(errors != NULL && errors->count > 0 ? errors->items[0].detail : "no memory");
    } else if (*calibrated && !s->request->calibration) {
        *reason = json_string("It needs calibration records.");
        fine = false;
    }
    free(errors);
    return fine;
}

/* What of the table is true of a choice: the runtimes that load it, and the kernels of the one that was asked for, or
 * of the first. */
struct loaders {
    json_t *names;
    const char *kernels;
};

/* Negative: no memory. Where the runtime that is asked for does not load the result, *reason says why. */
static int find_loaders(const struct setting *s, const struct job_spec *spec, struct loaders *out, json_t **reason)
{
    AUTO_FREE struct format_module *modules = NULL;
    struct runtime_refusal refusals[RUNTIME_REFUSALS_MAX];
    const char *asked = s->request->runtime > 0 ? runtime_choices[s->request->runtime] : NULL;
    struct format_config config = {.model = s->model, .method = spec->recipe.name, .cache = spec->recipe.cache};

    TRY(recipe_modules(&spec->recipe, spec->format, s->model, &modules, &config.count));
    config.modules = modules;
    for (const struct runtime *r = runtime_list; r->name != NULL; r++) {
        struct format_targets alone = {.count = 1};
        TRY(runtime_target_parse(r->name, &alone.items[0]));
        const struct runtime_row *row = runtime_targets_load(spec->format, &config, &alone)
                                            ? runtime_row_of(spec->format, &config, &alone.items[0])
                                            : NULL;
        bool chosen = asked != NULL && strcmp(r->name, asked) == 0;
        if (row != NULL && !row->expands) {
            json_array_append_new(out->names, json_string(r->name));
            out->kernels = chosen || out->kernels == NULL ? row->kernels : out->kernels;
        } else if (chosen) {
            *reason = row != NULL ? json_sprintf("%s makes float weights of it, so no memory is saved.", asked)
                      : runtime_check(spec->format, &config, &alone.items[0], 1, refusals) > 0
                          ? json_sprintf("%s.", refusals[0].text)
                          : json_sprintf("%s does not load it.", asked);
        }
    }
    if (*reason == NULL && json_array_size(out->names) == 0) {
        *reason = json_string("No runtime loads it.");
    }
    return 0;
}

static json_t *choice_json(const struct setting *s, const struct choice_row *choice, const char *reason,
                           const struct job_spec *spec, bool calibrated, const struct loaders *loaders)
{
    const struct roofline_form form = {.weights = (double)(spec->disk.artifact - spec->disk.extra),
                                       .cache_share = choice->cache ? 0.5 : 1,
                                       .operations = products_of(choice, &s->device)};
    const struct speed speed = speed_of(s, &form), *before = &s->plain;
    bool serves = choice->serves;

    return json_pack("{s:s, s:s, s:o, s:o, s:f, s:f, s:f, s:b, s:o, s:o, s:o, s:s, s:s, s:s?, s:O}", "name",
                     choice->name, "reason", reason, "job", job_of(s, choice, calibrated), "bits_per_weight",
                     spec->disk.parameters > 0 ? json_real(disk_plan_bits(&spec->disk)) : json_null(), "weights_bytes",
                     form.weights, "kv_cache_bytes", speed.cache, "total_bytes", speed.total, "fits", (int)speed.fits,
                     "decode_speedup", serves ? json_real(before->decode.seconds / speed.decode.seconds) : json_null(),
                     "prefill_speedup",
                     serves ? json_real(before->prefill.seconds / speed.prefill.seconds) : json_null(),
                     "request_speedup", serves ? json_real(before->request / speed.request) : json_null(),
                     "decode_bound", roofline_bounds[speed.decode.bound], "kernels", loaders->kernels, "caution",
                     choice->caution, "runtimes", loaders->names);
}

static void leave_out(json_t *left_out, const char *name, json_t *reason)
{
    json_array_append_new(left_out, json_pack("{s:s, s:o}", "name", name, "reason", reason));
}

/* Whether `a` comes before `b`: what fits before what does not; for throughput, what serves a request sooner. */
static bool comes_before(const struct setting *s, const json_t *a, const json_t *b)
{
    bool fits = json_is_true(json_object_get(a, "fits")), other = json_is_true(json_object_get(b, "fits"));

    if (fits != other || strcmp(s->goal->name, "throughput") != 0) {
        return fits && !other;
    }
    return json_number_value(json_object_get(a, "request_speedup")) >
           json_number_value(json_object_get(b, "request_speedup"));
}

static void place_choice(const struct setting *s, json_t *list, json_t *choice)
{
    size_t at = json_array_size(list);

    while (at > 0 && comes_before(s, choice, json_array_get(list, at - 1))) {
        at--;
    }
    json_array_insert_new(list, at, choice);
}

static void add_choice(const struct setting *s, const struct choice_row *choice, const char *reason, json_t *list,
                       json_t *left_out)
{
    AUTO(job_spec) struct job_spec spec = {0};
    AUTO_JSON json_t *names = json_array();
    struct loaders loaders = {.names = names};
    json_t *why = NULL;
    bool calibrated = false;

    if (products_of(choice, &s->device) <= 0) {
        why = json_sprintf("The accelerator has no arithmetic in %s.",
                           choice->products == PRODUCTS_INT8 ? "INT8" : "FP8");
    } else if (check_choice(s, choice, &spec, &calibrated, &why) && find_loaders(s, &spec, &loaders, &why) != 0) {
        why = json_string("There is no memory to check it.");
    }
    if (why != NULL) {
        leave_out(left_out, choice->name, why);
    } else {
        place_choice(s, list, choice_json(s, choice, reason, &spec, calibrated, &loaders));
    }
}

/* --- the answer */

/* Said plainly: memory is what there is to gain. */
static json_t *speed_note(const json_t *list)
{
    double best = 0;
    size_t i;
    json_t *choice;

    json_array_foreach(list, i, choice)
    {
        double speedup = json_number_value(json_object_get(choice, "request_speedup"));
        best = speedup > best ? speedup : best;
    }
    return best >= HARDLY_FASTER || json_array_size(list) == 0
               ? json_null()
               : json_string("Quantization will hardly make this load faster, with any of these; it saves memory.");
}

/* Said plainly where nothing fits, with what the smallest way would fit on. */
static json_t *fit_note(const struct setting *s, const json_t *list)
{
    double least = INFINITY;
    char names[400] = "";
    size_t i;
    json_t *choice;

    json_array_foreach(list, i, choice)
    {
        if (json_is_true(json_object_get(choice, "fits"))) {
            return json_null();
        }
        least = fmin(least, json_number_value(json_object_get(choice, "total_bytes")));
    }
    if (json_array_size(list) == 0) {
        return json_null();
    }
    for (const struct accelerator_row *a = accelerators; a->name != NULL; a++) {
        size_t used = strlen(names);
        if (least <= FREE_SHARE * a->device.memory_bytes) {
            snprintf(names + used, sizeof(names) - used, "%s%s", used > 0 ? ", " : "", a->name);
        }
    }
    return json_sprintf("None of these ways fits: the smallest takes %.3g GB with the keys and values of the requests, "
                        "and nine tenths of the accelerator's memory are %.3g GB. %s%s; fewer or shorter requests take "
                        "less, and a runtime can divide a model over several accelerators.",
                        least / 1e9, FREE_SHARE * s->device.memory_bytes / 1e9,
                        names[0] != '\0' ? "It fits on " : "It fits on none of the known accelerators", names);
}

static json_t *recommend(const struct setting *s)
{
    json_t *list = json_array(), *left_out = json_array();

    for (int i = 0; i < GOAL_CHOICES_MAX && s->goal->order[i].choice != NULL; i++) {
        add_choice(s, choice_find(s->goal->order[i].choice), s->goal->order[i].reason, list, left_out);
    }
    return json_pack("{s:s, s:s, s:s, s:s, s:o, s:s, s:I, s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:o}", "object",
                     "recommendation", "goal", s->goal->name, "title", s->goal->title, "note", s->goal->note,
                     "accelerator", accelerator_json(s->request, &s->device), "runtime",
                     runtime_choices[s->request->runtime], "batch", (json_int_t)s->load.batch, "prompt_tokens",
                     (json_int_t)s->request->prompt_tokens, "output_tokens", (json_int_t)s->request->output_tokens,
                     "context_tokens", (json_int_t)s->load.context, "float", plain_json(s), "choices", list, "left_out",
                     left_out, "speed_note", speed_note(list), "fit_note", fit_note(s, list));
}

static int open_requested(struct service *service, const struct principal *who, const json_t *given, char id[ID_SIZE],
                          struct model **model, struct validation_errors *errors)
{
    AUTO_JSON json_t *described = NULL;
    struct job_spec named = {.mode = SPEC_ARCHITECTURE};

    if (json_is_object(given)) {
        TRY(service_model_describe(service, given, false, errors, &described));
    } else if (!json_is_string(given) || json_string_length(given) >= sizeof(named.model)) {
        validation_add(errors, ERR_INVALID_PARAMETER, "/model", "\"model\" is neither an id nor a registration");
        return validation_raise(errors);
    } else {
        memcpy(named.model, json_string_value(given), json_string_length(given) + 1);
    }
    snprintf(id, ID_SIZE, "%s", described != NULL ? SUBMISSION_NO_MODEL : named.model);
    return admission_open(service, who, &named, described, model, errors) == 0 ? 0 : validation_raise(errors);
}

int recommend_ways(struct service *service, const struct principal *who, const struct recommend_ask *ask,
                   struct validation_errors *errors, json_t **out)
{
    struct recommend_request request = {0};
    struct setting s = {.request = &request, .ask = ask};
    char id[ID_SIZE];
    struct model *model = NULL;

    if (params_parse(request_tables, ask->body, ask->pointer, &request, errors) != 0) {
        list_names(ask->pointer, errors);
        return validation_raise(errors);
    }
    read_accelerator(request.accelerator, ask->pointer, &s.device, errors);
    list_names(ask->pointer, errors);
    int rc = validation_raise(errors);
    rc = rc == 0 ? open_requested(service, who, request.model, id, &model, errors) : rc;
    if (rc == 0) {
        s.goal = &goals[request.goal];
        s.model_id = id;
        s.model = model;
        s.load =
            (struct roofline_load){.batch = request.batch, .context = request.prompt_tokens + request.output_tokens};
        s.shape = roofline_model(model, &s.load);
        s.plain =
            speed_of(&s, &(struct roofline_form){
                             .weights = (double)model_bytes(model), .cache_share = 1, .operations = s.device.bf16});
        *out = recommend(&s);
        rc = *out == NULL ? err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a recommendation") : 0;
        model_close(model);
    }
    params_release(request_tables, &request);
    return rc;
}

int service_recommend(struct service *service, const struct principal *who, const json_t *body,
                      struct validation_errors *errors, json_t **out)
{
    const struct recommend_ask ask = {.body = body, .pointer = ""};

    return recommend_ways(service, who, &ask, errors, out);
}
