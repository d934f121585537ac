"""Models with experts, and one whose norms follow attention and MLP, load back.

Of every method, what the artifact's codes stand for is, tensor for tensor, the same request as a dense checkpoint: as compressed-tensors'
own decompression has it, and as GPTQModel's modules have it. transformers gives for the dense checkpoint, and for each artifact that it
can load, the logits of quantd's own forward pass. Where a method rounds inputs, the KL to the float model with inputs rounded so is what quantd said.

What the runtimes cannot do with experts is in docs/formats.md: those artifacts are held to by their tensors alone.
"""

import importlib.metadata
import json

import numpy
import pytest
import torch
import transformers
from safetensors.numpy import save_file
from safetensors.torch import load_file

import models
import reference
from daemon import Daemon
from test_forward import LENGTH, SEQUENCES, SHAPE, forward, make, mixtral, olmo2, qwen3_moe

TOLERANCE = 1e-4  # largest difference over largest logit
CASES = {"mixtral": (mixtral, {"intermediate_size": 128}),
         "qwen3-moe": (qwen3_moe, {"moe_intermediate_size": 64, "norm_topk_prob": True, "mlp_only_layers": [1],
                                   "intermediate_size": 128, "head_dim": 32}),
         "olmo2": (olmo2, {"intermediate_size": 128})}
EXPERTS = ("mixtral", "qwen3-moe")
WORDS = {"mixtral": ("block_sparse_moe", ("w1", "w3"), "w2"), "qwen3-moe": ("mlp", ("gate_proj", "up_proj"), "down_proj")}

FOUR = {"bits": 4, "group_size": 32}
DENSE = {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)}
# name: (method, parameters, how transformers loads it; None: it cannot)
REQUESTS = {
    "rtn": ("rtn", FOUR, {}),
    "rtn-int8": ("rtn", {"bits": 8, "group_size": -1}, {}),
    "rtn-int3": ("rtn", {"bits": 3, "group_size": 32}, {}),
    "gptq": ("gptq", FOUR, {}),
    "awq": ("awq", {"group_size": 32}, None),  # zero points
    "awq-sym": ("awq", {"group_size": 32, "sym": True}, {}),
    "attention-int8": ("gptq", {**FOUR, "overrides": [{"match": "*.self_attn.*", "bits": 8}]}, {}),
    "a-layer-in-float": ("gptq", {**FOUR, "overrides": [{"match": "model.layers.2.*.experts.*", "skip": True}]}, None),  # experts in part
    "experts-int8": ("gptq", {**FOUR, "overrides": [{"match": "*.experts.*", "bits": 8}]}, {}),
    "smoothquant": ("smoothquant", {}, None),  # codes of whole bytes
    "smoothquant-static": ("smoothquant", {"activation_dynamic": False}, None),
    "smoothquant-gptq": (["smoothquant", "gptq"], {"bits": 8, "group_size": -1}, None),
    "fp8": ("fp8", {}, DENSE),
    "fp8-static": ("fp8", {"granularity": "per_tensor", "activation_scheme": "static"}, DENSE),
    "fp8-weights": ("fp8", {"activation_scheme": "none"}, DENSE),
}
INPUTS = ("smoothquant", "smoothquant-static", "smoothquant-gptq", "fp8", "fp8-static")
PACKED = {"gptq": ("gptq", FOUR), "gptq_v2": ("gptq", {**FOUR, "sym": False}), "awq": ("awq", {"group_size": 32})}


class Setting:
    """A checkpoint at a daemon: jobs of it, each once."""

    def __init__(self, quantd, root, name, dtype=torch.float32, cases=CASES, **more):
        self.quantd, self.root, self.name, self.made = quantd, root, name, {}
        build, bends = cases[name]
        self.save(make(build(**{**bends, **more})).to(dtype))
        self.ids = models.write_tokens(root / "tokens.ndjson", length=LENGTH) % SHAPE["vocab_size"]
        (root / "tokens.ndjson").write_text("".join(json.dumps({"input_ids": row.tolist()}) + "\n" for row in self.ids))
        self.model = quantd.register("model")
        self.files = {purpose: quantd.upload(root / "tokens.ndjson", purpose) for purpose in ("calibration", "evaluation")}

    def save(self, model):
        model.save_pretrained(self.root / "model")

    def artifact(self, method, parameters, format):
        """(folder, job)"""
        key = json.dumps((method, parameters, format))
        if key not in self.made:
            job = self.quantd.run({
                "model": self.model, "method": method, "quantization": parameters, "output": {"format": format},
                "calibration": {"file_id": self.files["calibration"], "num_samples": 0, "sequence_length": LENGTH, "packing": False,
                                "shuffle": False},
                "evaluation": {"file_id": self.files["evaluation"], "sequence_length": LENGTH}})
            assert not [row for row in self.quantd.report(job)["layers"] if row["module"].endswith((".gate", "expert_gate"))]
            self.made[key] = self.quantd.download(job, self.root / f"artifact-{len(self.made)}"), job
        return self.made[key]


@pytest.fixture(scope="module", params=CASES)
def setting(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    with Daemon([root]) as quantd:
        yield Setting(quantd, root, request.param)


@pytest.fixture(scope="module", params=EXPERTS)
def everyone(request, tmp_path_factory):
    """All tokens go to all experts, so that no rounding sends one elsewhere; one layer, which no other magnifies."""
    root = tmp_path_factory.mktemp(f"{request.param}-everyone")
    with Daemon([root]) as quantd:
        yield Setting(quantd, root, request.param, num_experts_per_tok=8, num_hidden_layers=1, mlp_only_layers=[])


@pytest.fixture(scope="module", params=EXPERTS)
def halves(request, tmp_path_factory):
    """In half precision, whose scales all formats store alike. All tokens go to all experts, and all layers have them."""
    root = tmp_path_factory.mktemp(f"{request.param}-halves")
    with Daemon([root]) as quantd:
        yield Setting(quantd, root, request.param, torch.float16, num_experts_per_tok=8, mlp_only_layers=[])


def load(folder, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **options).eval()


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.from_numpy(ids.astype(numpy.int64))).logits.float().numpy().reshape(-1, SHAPE["vocab_size"])


def difference(found, wanted):
    return numpy.abs(found - wanted).max() / numpy.abs(wanted).max()


def some_ids():
    return numpy.random.default_rng(7).integers(0, SHAPE["vocab_size"], (SEQUENCES, LENGTH), dtype=numpy.int32)


@pytest.mark.parametrize("name", [name for name, row in REQUESTS.items() if row[2] is not None])
def test_loads_back(setting, name, tmp_path):
    method, parameters, options = REQUESTS[name]
    if ".experts." in json.dumps(parameters) and setting.name not in EXPERTS:
        pytest.skip("the model has no experts")
    dense, _ = setting.artifact(method, parameters, "dense")
    folder, _ = setting.artifact(method, parameters, "compressed-tensors")
    assert "quantization_config" in json.loads((folder / "config.json").read_text())
    wanted = forward(dense, some_ids(), tmp_path)
    assert difference(logits_of(load(dense), some_ids()), wanted) < TOLERANCE
    assert difference(logits_of(load(folder, **options), some_ids()), wanted) < TOLERANCE


def scheme_of(config, module):
    """The one scheme of a module, and how it is stored."""
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.utils.match import match_name
    assert module not in config["ignore"]
    (row,) = [row for row in config["config_groups"].values()
              if any(target == "Linear" or match_name(module, target) for target in row["targets"])]
    return QuantizationScheme.model_validate(row), row.get("format") or config["format"]


def decompress(folder):
    """An artifact's tensors with each module's codes as the library's own decompression has them, and how many modules that were."""
    from compressed_tensors.compressors import BaseCompressor
    config, tensors = json.loads((folder / "config.json").read_text())["quantization_config"], load_file(folder / "model.safetensors")
    count = 0
    for module in sorted({name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")}):
        scheme, form = scheme_of(config, module)
        own = {name: tensors.pop(f"{module}.{name}") for name in ("weight", "weight_packed", "weight_shape", "weight_scale",
                                                                  "weight_zero_point") if f"{module}.{name}" in tensors}
        tensors.pop(f"{module}.input_scale", None)
        tensors[f"{module}.weight"] = BaseCompressor.get_value_from_registry(form).decompress(own, scheme)["weight"]
        count += 1
    return tensors, count


@pytest.mark.parametrize("name", REQUESTS)
def test_codes(setting, name):
    method, parameters, _ = REQUESTS[name]
    if setting.name not in EXPERTS:
        pytest.skip("the model has no experts")
    wanted = load_file(setting.artifact(method, parameters, "dense")[0] / "model.safetensors")
    source = load_file(setting.root / "model" / "model.safetensors")
    found, count = decompress(setting.artifact(method, parameters, "compressed-tensors")[0])
    in_float = ("embed_tokens.weight", "lm_head.weight", ".gate.weight")
    assert count == len([tensor for tensor in source if source[tensor].ndim == 2 and not tensor.endswith(in_float) and not (
        name == "a-layer-in-float" and tensor.startswith("model.layers.2.") and ".experts." in tensor)])
    assert set(found) == set(wanted) == set(source)
    for tensor in wanted:
        assert torch.equal(found[tensor].float(), wanted[tensor]), tensor


class Rounded:
    """torch's linear with the inputs of a model's quantized modules rounded as its artifact says."""

    def __init__(self, model, folder, name):
        config, tensors = json.loads((folder / "config.json").read_text())["quantization_config"], load_file(folder / "model.safetensors")
        self.linear, self.kept, self.scales, self.rows = torch.nn.functional.linear, [], {}, config["config_groups"]["group_0"]
        block, inner, last = WORDS[name]
        for path, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and path not in config["ignore"]:
                self.add(module.weight, tensors.get(f"{path}.input_scale"))
            elif path.endswith(".experts"):
                owner = f"{path.removesuffix('.mlp.experts')}.{block}.experts"
                for expert in range(module.gate_up_proj.shape[0]):
                    scales = [tensors.get(f"{owner}.{expert}.{part}.input_scale") for part in inner]
                    assert scales[0] is None or scales[0] == scales[1]
                    self.add(module.gate_up_proj[expert], scales[0])
                    self.add(module.down_proj[expert], tensors.get(f"{owner}.{expert}.{last}.input_scale"))

    def add(self, weight, scale):
        self.kept.append(weight)
        self.scales[weight.data_ptr()] = scale

    def __call__(self, x, weight, bias=None):
        if weight.data_ptr() in self.scales:
            integers, scale = self.rows["weights"]["type"] == "int", self.scales[weight.data_ptr()]
            scale = x.abs().amax(-1, keepdim=True) / (127 if integers else 448) if scale is None else scale
            scale = torch.where(scale == 0, torch.ones_like(scale), scale)
            y = x / scale
            x = (y.round().clamp(-127, 127) if integers else y.clamp(-448, 448).to(torch.float8_e4m3fn).float()) * scale
        return self.linear(x, weight, bias)


@pytest.mark.parametrize("name", INPUTS)
def test_inputs(everyone, name, monkeypatch):
    """KL to the float model is what quantd said of inputs and weights rounded, and another with weights rounded alone. It has one sign at
    all positions: a perplexity moves either way, so that a few codes that round otherwise are not small next to what it moves by."""
    method, parameters, _ = REQUESTS[name]
    setting = everyone
    folder, job = setting.artifact(method, parameters, "compressed-tensors")
    model = load(setting.artifact(method, parameters, "dense")[0], experts_implementation="eager")
    wanted = scores_of(load(setting.root / "model", experts_implementation="eager"), setting.ids)
    plain = divergence(wanted, scores_of(model, setting.ids))
    monkeypatch.setattr(torch.nn.functional, "linear", Rounded(model, folder, setting.name))
    found, said = divergence(wanted, scores_of(model, setting.ids)), job["result"]["kl_divergence_mean"]
    print(f"{name}: quantd {said:.4e}, inputs rounded {found:.4e}, not {plain:.4e}")
    assert found == pytest.approx(said, rel=5e-3)
    assert abs(plain - said) > 0.3 * said  # inputs' rounding is not lost in the bound


def scores_of(model, ids):
    """Log probabilities of positions that have a next token."""
    with torch.inference_mode():
        return model(ids).logits[:, :-1].double().log_softmax(-1)


def divergence(wanted, found):
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


def unpack(module):
    """The weight that a module of GPTQModel has, by its own unpacking."""
    if hasattr(module, "dequantize_weight"):
        return module.dequantize_weight().T.half().numpy()
    from gptqmodel.quantization.awq.utils.packing_utils import reverse_awq_order, unpack_awq
    words, zeros = unpack_awq(module.qweight, module.qzeros, 4)
    words, zeros = reverse_awq_order(words, zeros, 4)
    span = len(words) // len(zeros)
    zeros = (zeros & 15).float().repeat_interleave(span, 0)
    return (((words & 15).float() - zeros) * module.scales.float().repeat_interleave(span, 0)).T.half().numpy()


@pytest.mark.parametrize("format", PACKED)
def test_packed(halves, format):
    """Formats for packed integers alone hold the weights that compressed-tensors does."""
    method, parameters = PACKED[format]
    wanted, count = decompress(halves.artifact(method, parameters, "compressed-tensors")[0])
    _, found = reference.decode_artifact(halves.artifact(method, parameters, format)[0])
    assert count > 50 and set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert numpy.array_equal(found[name].astype(numpy.float16), tensor.half().numpy()), name


@pytest.mark.parametrize("format", PACKED)
def test_gptqmodel(halves, format, tmp_path):
    """GPTQModel's own loader gives each expert modules of its own, which transformers does not; it knows the names of Qwen3-MoE."""
    if halves.name == "mixtral":
        pytest.skip("GPTQModel 7.7 looks for Mixtral's experts under names that no checkpoint has")
    for package in ("gptqmodel", "optimum"):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{package} could not be installed here")
    from gptqmodel import BACKEND, GPTQModel
    folder, _ = halves.artifact(*PACKED[format], format)
    model = GPTQModel.load(str(folder), backend=BACKEND.TORCH_AWQ if format == "awq" else BACKEND.TORCH, device="cpu",
                           dtype=torch.float16).model
    config, plain = reference.decode_artifact(folder)
    count = 0
    for name, module in model.named_modules():
        if hasattr(module, "qweight"):
            assert numpy.array_equal(unpack(module), plain[f"{name}.weight"].astype(numpy.float16)), name
            count += 1
    assert count == 3 * (4 + 8 * 3)
    config.pop("quantization_config")
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({name: numpy.ascontiguousarray(array, numpy.float32) for name, array in plain.items()}, tmp_path / "model.safetensors")
    wanted = forward(tmp_path, some_ids(), tmp_path)
    assert numpy.linalg.norm(logits_of(model, some_ids()) - wanted) / numpy.linalg.norm(wanted) < 1e-2
