/* Members of config.json, with bounds. */

#include "models/config_internal.h"

#include "base/err.h"
#include "base/json.h"

int config_check(int rc)
{
    return rc >= 0 ? rc : err_raise(ERR_INVALID_MODEL, "config.json: %s", err_last()->message);
}

int config_int(const json_t *config, const char *key, int64_t max, int64_t fallback, int64_t *out)
{
    int rc = config_check(json_get_int(config, key, 1, max, out));

    if (rc != 0) {
        return rc < 0 ? rc : 0;
    }
    if (fallback <= 0) {
        return err_raise(ERR_INVALID_MODEL, "config.json: %s is missing", key);
    }
    *out = fallback;
    return 0;
}

int config_positive(const json_t *object, const char *key, double max, double *out)
{
    double value = *out;
    int rc = config_check(json_get_number(object, key, &value));

    if (rc == 1 && !(value > 0 && value <= max)) {
        return err_raise(ERR_INVALID_MODEL, "config.json: %s = %g is not in (0, %g]", key, value, max);
    }
    if (rc == 1) {
        *out = value;
    }
    return rc < 0 ? rc : 0;
}

int config_flag(const json_t *config, const char *key, bool *out)
{
    int rc = config_check(json_get_bool(config, key, out));
    return rc < 0 ? rc : 0;
}

int config_optional(const json_t *object, const char *key, double *out)
{
    double value = *out;
    int rc = config_check(json_get_number(object, key, &value));

    if (rc == 1 && !(value >= 0 && value <= 1e6)) {
        return err_raise(ERR_INVALID_MODEL, "config.json: %s = %g is not in [0, 1e6]", key, value);
    }
    *out = rc == 1 ? value : *out;
    return rc < 0 ? rc : 0;
}

int config_count(const json_t *config, const char *key, int64_t max, int64_t *out)
{
    int rc = config_check(json_get_int(config, key, 0, max, out));
    return rc < 0 ? rc : 0;
}

int config_unsupported(const char *what, const char *value)
{
    int rc = err_raise(ERR_UNSUPPORTED_ARCHITECTURE, "%s \"%.100s\" is not supported", what, value);
    return err_set_hint(rc, "GET /v1/architectures lists those that are; rope types are default, linear, llama3, "
                            "dynamic, yarn, longrope, proportional");
}
