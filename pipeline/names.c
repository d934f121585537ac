/* Names: exact first, then without regard to case and punctuation, then what other programs call it, then the nearest
 * one. Only the first two are accepted; the others go into the hint. */

#include "pipeline/names.h"

#include "base/err.h"

#include <stdio.h>
#include <string.h>

struct peer {
    const char *name, *hint;
};

/* What other programs call a method. */
static const struct peer peer_methods[] = {
    {"bitsandbytes", "method \"nf4\" for 4 bits, or \"llm_int8\" for 8"},
    {"bnb", "method \"nf4\" for 4 bits, or \"llm_int8\" for 8"},
    {"fp4", "method \"nf4\", whose sixteen levels lose less"},
    {"autogptq", "method \"gptq\""},
    {"gptqmodel", "method \"gptq\""},
    {"gptq_marlin", "method \"gptq\": runtimes choose their kernels themselves"},
    {"autoawq", "method \"awq\""},
    {"awq_marlin", "method \"awq\": runtimes choose their kernels themselves"},
    {"compressed-tensors", "that is an output.format; method \"gptq\", \"awq\" or \"rtn\" fills it"},
    {"gguf", "method \"ggml\"; gguf is its output.format"},
    {"hqq", "method \"rtn\" with \"scale_search\": \"hqq\" and \"sym\": false"},
    {"imatrix", "method \"rtn\" with \"scale_search\": \"imatrix\", or \"ggml\" with calibration data"},
    {"squeezellm", "method \"kmeans\""},
    {"finegrained_fp8", "method \"fp8\" with \"granularity\": \"block\""},
    {"fbgemm_fp8", "method \"fp8\""},
    {"fp8_dynamic", "method \"fp8\" with \"activation_scheme\": \"dynamic\""},
    {"int4", "method \"gptq\", \"awq\" or \"rtn\" with \"bits\": 4"},
    {"w4a16", "method \"gptq\", \"awq\" or \"rtn\" with \"bits\": 4"},
    {"int8", "method \"rtn\" with \"bits\": 8 for weights alone, \"smoothquant\" or \"llm_int8\" for inputs too"},
    {"w8a16", "method \"rtn\" with \"bits\": 8"},
    {"w8a8", "method \"smoothquant\" (INT8) or \"fp8\""},
};

static const struct peer peer_formats[] = {
    {"safetensors", "format \"compressed-tensors\", \"gptq\", \"awq\" or \"dense\": all are safetensors files"},
    {"auto_gptq", "format \"gptq\""},
    {"gptqmodel", "format \"gptq_v2\", or \"gptq\" where runtimes are older"},
    {"autoawq", "format \"awq\""},
    {"bnb", "format \"bitsandbytes\""},
    {"llama.cpp", "format \"gguf\""},
    {"ggml", "format \"gguf\""},
    {"vllm", "format \"compressed-tensors\""},
    {"transformers", "format \"compressed-tensors\", or \"dense\" for plain weights"},
    {"auto", "leave the member out: the method's own format is taken"},
};

/* Parameters of other programs that have no counterpart of the same meaning here. */
static const struct peer peer_members[] = {
    {"quant_method", "the request's own member \"method\" says it"},
    {"bnb_4bit_quant_type", "method \"nf4\" says it"},
    {"load_in_4bit", "method \"nf4\" says it"},
    {"load_in_8bit", "method \"llm_int8\" says it"},
    {"bnb_4bit_compute_dtype", "leave it out: the runtime chooses what it computes in"},
    {"bnb_4bit_quant_storage", "leave it out: codes are stored as bytes"},
    {"scheme", "\"bits\", \"group_size\" and \"sym\" say it, or the method"},
    {"targets", "every linear of the blocks is quantized; \"modules_to_not_convert\" leaves some out"},
    {"config_groups", "parameters for all, and \"overrides\" for some modules"},
    {"dynamic", "\"overrides\": a list of {\"match\", parameters}"},
    {"damp_auto_increment", "leave it out: damping is raised by itself where it is not enough"},
    {"true_sequential", "leave it out: a block's linears are always solved in order"},
    {"tokenizer", "leave it out: the checkpoint's own is used"},
    {"dataset", "\"calibration\": {\"file_id\": ...} or {\"stream\": true}"},
    {"format", "\"output\": {\"format\": ...}"},
    {"checkpoint_format", "\"output\": {\"format\": ...}"},
    {"is_marlin_format", "leave it out: runtimes repack for their own kernels"},
    {"use_exllama", "leave it out: runtimes choose their kernels themselves"},
    {"backend", "leave it out: runtimes choose their kernels themselves"},
    {"desc_act", "\"act_order\" of method \"gptq\""},
    {"seed", "the request's own member \"seed\""},
};

#define COUNT(list) (sizeof(list) / sizeof((list)[0]))

static const char *peer_hint(const struct peer *peers, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (text_same_name(peers[i].name, name)) {
            return peers[i].hint;
        }
    }
    return NULL;
}

static void add_name(const char *name, char *out, size_t size)
{
    size_t used = strlen(out);

    snprintf(out + used, size - used, "%s%s", used > 0 ? ", " : "", name);
}

const struct quantizer *names_method(const json_t *value, const char *pointer, struct validation_errors *errors)
{
    const char *name = json_string_value(value);
    struct text_guess guess = {.word = name != NULL ? name : ""};
    char known[256] = "", text[PARAMS_VALUE_SIZE];

    for (const struct quantizer *const *q = quantizer_list(); *q != NULL; q++) {
        if (name != NULL && (strcmp((*q)->name, name) == 0 || text_same_name((*q)->name, name))) {
            return *q;
        }
        add_name((*q)->name, known, sizeof(known));
        text_guess_offer(&guess, (*q)->name);
    }
    const char *hint = peer_hint(peer_methods, COUNT(peer_methods), guess.word);
    validation_add(errors, ERR_INVALID_PARAMETER, pointer, "%s is not a method; the methods are %s",
                   params_value_text(value, text), known);
    if (hint != NULL) {
        validation_hint(errors, "%s", hint);
    } else if (guess.name != NULL) {
        validation_hint(errors, "did you mean \"%s\"?", guess.name);
    }
    return NULL;
}

void names_list_formats(char *out, size_t size)
{
    out[0] = '\0';
    for (const struct format *const *f = format_list(); *f != NULL; f++) {
        add_name((*f)->name, out, size);
    }
}

const struct format *names_format(const char *name, const char *pointer, struct validation_errors *errors)
{
    struct text_guess guess = {.word = name};
    char known[256];

    for (const struct format *const *f = format_list(); *f != NULL; f++) {
        if (strcmp((*f)->name, name) == 0 || text_same_name((*f)->name, name)) {
            return *f;
        }
        text_guess_offer(&guess, (*f)->name);
    }
    const char *hint = peer_hint(peer_formats, COUNT(peer_formats), name);
    names_list_formats(known, sizeof(known));
    validation_add(errors, ERR_INVALID_PARAMETER, pointer, "\"%.60s\" is not a format; the formats are %s", name,
                   known);
    if (hint != NULL) {
        validation_hint(errors, "%s", hint);
    } else if (guess.name != NULL) {
        validation_hint(errors, "did you mean \"%s\"?", guess.name);
    }
    return NULL;
}

/* Who has a parameter of this name, "a, b"; "" = no method. */
static void list_owners(const char *key, char *out, size_t size)
{
    out[0] = '\0';
    for (const struct quantizer *const *q = quantizer_list(); *q != NULL; q++) {
        if (params_find((*q)->params, key) != NULL) {
            add_name((*q)->name, out, size);
        }
    }
}

void names_refuse_member(const struct quantizer *const *methods, int count, const char *owner, const char *key,
                         const char *pointer, struct validation_errors *errors)
{
    struct text_guess guess = {.word = key};
    char owners[256];

    for (int i = 0; i < count; i++) {
        params_offer(methods[i]->params, &guess);
    }
    const char *hint = peer_hint(peer_members, COUNT(peer_members), key);
    list_owners(key, owners, sizeof(owners));
    validation_add(errors, ERR_UNKNOWN_PARAMETER, pointer, "\"%.80s\" is not a parameter of %s", key, owner);
    if (hint != NULL) {
        validation_hint(errors, "%s", hint);
    } else if (owners[0] != '\0') {
        validation_hint(errors, "it is a parameter of %s", owners);
    } else if (guess.name != NULL) {
        validation_hint(errors, "did you mean \"%s\"?", guess.name);
    } else {
        validation_hint(errors, "GET /v1/methods/%s lists the parameters", methods[count - 1]->name);
    }
}
