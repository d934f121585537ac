#pragma once
/* What `distribution` measures by: the same for every backend. */

#define DISTRIBUTION_PART 32  /* weights of a part of a group */
#define DISTRIBUTION_FAR 6.0f /* medians of its group, beyond which a weight is far from the others */
