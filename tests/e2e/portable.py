"""The same bits on every x86-64: products are OpenBLAS's and logarithms the C library's, whose kernels differ from processor to
processor. The daemon's own give the same bits at every level (QUANTD_CPU_LEVEL)."""

import ctypes
import os
import platform

# For the daemon's environment.
PORTABLE = {"OPENBLAS_CORETYPE": "Prescott", "OPENBLAS_L2_SIZE": "512", "OPENBLAS_NUM_THREADS": "1",
            "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4"}


def made_with():
    """What bits still depend on outside of the project: "x86_64, glibc 2.36, OpenBLAS 0.3.21 Prescott"."""
    blas = "no OpenBLAS"
    os.environ.update(PORTABLE)  # read when the library is loaded; one that was built for a single processor goes by its own
    try:
        library = ctypes.CDLL("libopenblas.so.0")
        library.openblas_get_config.restype = library.openblas_get_corename.restype = ctypes.c_char_p
        blas = " ".join(library.openblas_get_config().decode().split()[:2] + [library.openblas_get_corename().decode()])
    except (OSError, AttributeError):
        pass
    return "%s, %s %s, %s" % ((platform.machine(),) + platform.libc_ver() + (blas,))
