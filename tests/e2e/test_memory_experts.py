"""A model of 24 layers of 64 experts, quantized from calibration, takes little more memory than the experts of one of its layers and the
activations between two; experts that few tokens reached, or none, say so."""

import os
import tempfile

from checkpoint import config, write
from harness import JOBS, SANITIZED, Daemon, NO_MODULES, Skip, ids_records, main, new_job, succeed, true

SHAPE = {"hidden": 256, "mlp": 384, "heads": 4, "kv_heads": 4, "vocabulary": 512, "layers": 24, "num_local_experts": 64,
         "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_experts_per_tok": 4}
SAMPLES, LENGTH, ENOUGH = 4, 64, 16


def layers_of_experts():
    """Activations are those that a block reads and those that it writes."""
    if SANITIZED:
        raise Skip("a sanitizer's memory is not the daemon's")
    group = SHAPE["num_local_experts"] * 3 * SHAPE["hidden"] * SHAPE["mlp"] * 4
    activations = 2 * SAMPLES * LENGTH * SHAPE["hidden"] * 4
    with tempfile.TemporaryDirectory(prefix="quantd-models-") as root:
        write(os.path.join(root, "many"), config(**SHAPE))
        with Daemon(*NO_MODULES, "--threads", "2", roots=[root]) as daemon:
            idle = daemon.memory("VmHWM")
            job = new_job(daemon, ids_records(SAMPLES, LENGTH, SHAPE["vocabulary"]), uri="file:many", method="gptq",
                          quantization={"bits": 4, "group_size": 128, "target_tokens": 0, "expert_min_tokens": ENOUGH},
                          calibration={"stream": True, "num_samples": SAMPLES, "sequence_length": LENGTH})
            succeed(daemon, job, 840)
            peak = daemon.memory("VmHWM") - idle
            rows = daemon.get("%s/%s/report" % (JOBS, job))["layers"]
    print("24 layers of 64 experts: %.1f MiB, experts of a layer %.1f MiB, activations %.1f MiB"
          % (peak / 2**20, group / 2**20, activations / 2**20))
    true(peak < 1.2 * (group + activations), "peak memory is %d bytes" % peak)
    few = [row for row in rows if ".experts." in row["module"] and row["tokens"] < ENOUGH]
    true(few, "some experts are starved")
    for row in few:
        true("no calibration token" in (row["fallback"] or "") if row["tokens"] == 0 else "starved" in (row["note"] or ""),
             "%r says that it is starved" % row)


main([layers_of_experts])
