"""Memory does not grow with the number of blocks: peak resident memory on 24 and on 6 blocks of one shape differs by
less than a tenth."""

import os
import shutil
import tempfile

from checkpoint import config, write
from harness import SANITIZED, Daemon, Failure, Skip, ids_records, main, new_job, succeed

SHAPE = {"hidden": 512, "mlp": 1536, "heads": 8, "kv_heads": 4, "vocabulary": 1024}
JOB = {
    "method": "gptq",
    "quantization": {"bits": 4, "group_size": 128},
    "calibration": {"stream": True, "num_samples": 8, "sequence_length": 128},
}


def peak(root, layers):
    name = "blocks-%d" % layers
    write(os.path.join(root, name), config(layers=layers, **SHAPE))
    with Daemon("--threads", "2", roots=[root]) as daemon:
        succeed(daemon, new_job(daemon, ids_records(12, 128, 1024), uri="file:" + name, **JOB))
        return daemon.memory("VmHWM")


def blocks_do_not_add_up():
    if SANITIZED:
        raise Skip("a sanitizer's memory is not the daemon's")
    root = tempfile.mkdtemp(prefix="quantd-models-")
    try:
        few, many = peak(root, 6), peak(root, 24)
        print("6 blocks %.1f MiB, 24 blocks %.1f MiB" % (few / 2**20, many / 2**20))
        if many > 1.10 * few or few > 1.10 * many:
            raise Failure("peak memory is %d bytes on 24 blocks and %d on 6" % (many, few))
    finally:
        shutil.rmtree(root)


main([blocks_do_not_add_up])
