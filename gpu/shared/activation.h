#pragma once
/* Activations: what operations and kernels agree on. C and C++. */

enum gpu_activation {
    GPU_SILU,           /* x / (1 + e^-x) */
    GPU_GELU,           /* x Phi(x) (Hendrycks and Gimpel 2016, arXiv 1606.08415) */
    GPU_GELU_TANH,      /* x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), the same paper */
    GPU_RELU,           /* max(x, 0) */
    GPU_RELU2,          /* max(x, 0)^2 (So et al. 2021, arXiv 2109.08668) */
    GPU_SIGMOID,        /* 1 / (1 + e^-x) */
    GPU_SWIGLU_CLAMPED, /* g / (1 + e^(-1.702 g)) * (u + 1), g = min(gate, 7), u = up cut to [-7, 7]; needs up */
};
#define GPU_ACTIVATIONS (GPU_SWIGLU_CLAMPED + 1)
