/* Rotary tables, in double: the angles of each type's paper, with the values that transformers gives what a paper
 * leaves open (Su et al. 2021, arXiv 2104.09864; the others are named at their types in arch.h). */

#include "models/arch.h"

#include <math.h>

/* Llama 3's stretch: long wavelengths are divided by the factor, short ones kept, those between blended. */
static double rope_stretch(const struct rope_spec *rope, double frequency)
{
    double turns = rope->original_max * frequency / (2 * M_PI); /* within the original context */

    if (turns < rope->low_freq) {
        return frequency / rope->factor;
    }
    if (turns >= rope->high_freq) { /* which may be low_freq: nothing is blended then */
        return frequency;
    }
    double smooth = (turns - rope->low_freq) / (rope->high_freq - rope->low_freq);
    return (1 - smooth) * frequency / rope->factor + smooth * frequency;
}

/* The column, a fraction, that turns so often within the original context. */
static double yarn_column(const struct rope_spec *rope, double turns)
{
    return (double)rope->dims * log(rope->original_max / (turns * 2 * M_PI)) / (2 * log(rope->theta));
}

/* Columns before the ramp keep their frequency, those after it are divided by the factor. */
static double rope_yarn(const struct rope_spec *rope, double frequency, int64_t i)
{
    double low = yarn_column(rope, rope->beta_fast), high = yarn_column(rope, rope->beta_slow);

    if (rope->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, (double)rope->dims - 1);
    if (low == high) {
        high += 0.001;
    }
    double ramp = fmin(fmax(((double)i - low) / (high - low), 0), 1);
    return frequency / rope->factor * ramp + frequency * (1 - ramp);
}

/* The base grows with the part of the sequence that is beyond the context. */
static double rope_dynamic(const struct rope_spec *rope, int64_t length, int64_t i)
{
    double dims = (double)rope->dims, longest = fmax((double)length, rope->max_position);
    double growth = rope->factor * longest / rope->max_position - (rope->factor - 1);

    return pow(rope->theta * pow(growth, dims / (dims - 2)), -2.0 * (double)i / dims);
}

double rope_frequency(const struct rope_spec *rope, int64_t length, int64_t i)
{
    double frequency = pow(rope->theta, -2.0 * (double)i / (double)rope->dims);

    switch (rope->type) {
    case ROPE_LINEAR:
        return frequency / rope->factor;
    case ROPE_LLAMA3:
        return rope_stretch(rope, frequency);
    case ROPE_DYNAMIC:
        return rope_dynamic(rope, length, i);
    case ROPE_YARN:
        return rope_yarn(rope, frequency, i);
    case ROPE_LONGROPE:
        return frequency / (double)((double)length > rope->original_max ? rope->long_factors : rope->short_factors)[i];
    case ROPE_PROPORTIONAL:
        return i < (int64_t)(rope->turned * (double)rope->dims) / 2 ? frequency / rope->factor : 0;
    case ROPE_NONE:
        return 0;
    case ROPE_DEFAULT:
        break;
    }
    return frequency;
}

/* What the table's values at a position are multiplied by. */
static double rope_scale(const struct rope_spec *rope, int64_t position)
{
    double scale = rope->scaling > 0 ? rope->scaling : 1;

    return rope->growth > 0
               ? scale * (1 + rope->growth * log(1 + floor(((double)position + rope->first) / rope->period)))
               : scale;
}

void rope_tables(const struct rope_spec *rope, int64_t length, float *cosine, float *sine)
{
    int64_t half = rope->dims / 2;

    for (int64_t i = 0; i < half; i++) {
        double frequency = rope_frequency(rope, length, i);
        for (int64_t t = 0; t < length; t++) {
            double scale = rope_scale(rope, t);
            cosine[t * half + i] = (float)(scale * cos((double)t * frequency));
            sine[t * half + i] = (float)(scale * sin((double)t * frequency));
        }
    }
}
