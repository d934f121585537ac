"""What quantd is held to: a plain numpy Llama family, and readers of the artifacts, written from the formats and not from quantd.

Everything here is as short as the definitions allow: no caches, no batching beyond numpy's own, float32 with the sums that matter
in float64. It shares no code with quantd and knows nothing of how quantd gets its codes.
"""

import json
import pathlib
import re
import struct

import numpy as np

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
          "U8": "u1", "BOOL": "u1"}


# ---- safetensors ----------------------------------------------------------------------------------------------------

def read_safetensors(path):
    """Returns {name: array}; BF16 comes widened to float32, everything else as it is stored."""
    raw = pathlib.Path(path).read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        array = np.frombuffer(raw[begin:end], dtype=DTYPES[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = array
    return tensors


def read_folder(folder):
    """Returns (config, {name: array}) of a checkpoint or artifact, sharded or not."""
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text())
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return config, read_safetensors(folder / "model.safetensors")
    tensors, weight_map = {}, json.loads(index.read_text())["weight_map"]
    for file in sorted(set(weight_map.values())):
        shard = read_safetensors(folder / file)
        assert all(weight_map[name] == file for name in shard), f"{file} and the index disagree"
        assert not set(shard) & set(tensors), f"{file} repeats a tensor"
        tensors.update(shard)
    assert set(tensors) == set(weight_map)
    return config, tensors


# ---- artifacts ------------------------------------------------------------------------------------------------------

def unpack_bits(words, bits, count):
    """Reads count codes of so many bits from each row of int32 words: one little-endian bit stream a row."""
    rows = np.ascontiguousarray(words).view(np.uint32)
    stream = np.unpackbits(rows.view(np.uint8), axis=-1, bitorder="little")[:, :count * bits]
    return stream.reshape(len(rows), count, bits) @ (1 << np.arange(bits))


def decode_compressed(tensors, module, scheme):
    """One pack-quantized module to its float32 weight [N, K]."""
    bits, (n, k) = scheme["num_bits"], tensors[f"{module}.weight_shape"].tolist()
    codes = unpack_bits(tensors[f"{module}.weight_packed"], bits, k)
    scale = tensors[f"{module}.weight_scale"].astype(np.float32)
    span = {"channel": k, "group": scheme["group_size"]}[scheme["strategy"]]
    assert codes.shape == (n, k) and k % span == 0 and scale.shape == (n, k // span)
    if scheme["symmetric"]:
        assert f"{module}.weight_zero_point" not in tensors
        zero = np.full(scale.shape, 1 << (bits - 1))
    else:
        zero = unpack_bits(tensors[f"{module}.weight_zero_point"].T, bits, n).T
    return (codes - zero.repeat(span, 1)).astype(np.float32) * scale.repeat(span, 1)


def decode_gptq(tensors, module, config):
    """One gptq or gptq_v2 module to its float32 weight [N, K]."""
    bits, words = config["bits"], tensors[f"{module}.qweight"]
    k, n = words.shape[0] * 32 // bits, words.shape[1]
    codes = unpack_bits(words.T, bits, k)
    scale, group = tensors[f"{module}.scales"].astype(np.float32).T, tensors[f"{module}.g_idx"]
    zero = unpack_bits(tensors[f"{module}.qzeros"], bits, n).T
    if config["checkpoint_format"] == "gptq":
        zero = (zero + 1) % (1 << bits)
    span = k if config["group_size"] == -1 else config["group_size"]
    assert group.tolist() == [i // span for i in range(k)] and scale.shape == zero.shape == (n, -(-k // span))
    return (codes - zero[:, group]).astype(np.float32) * scale[:, group]


def decode_awq(tensors, module, config):
    """One awq gemm module to its float32 weight [N, K]: eight outputs in a word, output j of them in nibble PLACE[j]."""
    place = np.array([0, 4, 1, 5, 2, 6, 3, 7])
    assert config["bits"] == 4 and config["version"] == "gemm" and config["zero_point"] is True

    def nibbles(words):
        return ((words.view(np.uint32)[..., None] >> (4 * place).astype(np.uint32)) & 15).reshape(len(words), -1)

    codes, zero = nibbles(tensors[f"{module}.qweight"]).astype(np.float32), nibbles(tensors[f"{module}.qzeros"]).astype(np.float32)
    scale, k = tensors[f"{module}.scales"].astype(np.float32), len(codes)
    span = k if config["group_size"] == -1 else config["group_size"]
    assert scale.shape == zero.shape == (k // span, codes.shape[1])
    return ((codes - zero.repeat(span, 0)) * scale.repeat(span, 0)).T


def decode_artifact(folder):
    """Returns (config, tensors) of an artifact with every quantized module back as a float32 weight."""
    config, tensors = read_folder(folder)
    scheme = config["quantization_config"]
    plain = {}
    if scheme["quant_method"] == "compressed-tensors":
        assert scheme["format"] == "pack-quantized" and scheme["quantization_status"] == "compressed"
        (group,) = scheme["config_groups"].values()
        marker, decode, argument = ".weight_packed", decode_compressed, group["weights"]
    else:
        marker, decode, argument = ".qweight", {"gptq": decode_gptq, "awq": decode_awq}[scheme["quant_method"]], scheme
    modules = {name.removesuffix(marker) for name in tensors if name.endswith(marker)}
    parts = re.compile(r"\.(weight_packed|weight_scale|weight_zero_point|weight_shape|qweight|qzeros|scales|g_idx)$")
    for name, array in tensors.items():
        if not parts.search(name):
            plain[name] = array
    for module in modules:
        assert f"{module}.weight" not in plain
        plain[f"{module}.weight"] = decode(tensors, module, argument)
    return config, plain


# ---- the forward pass -----------------------------------------------------------------------------------------------

def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + x.dtype.type(eps)) * weight


def rope_frequencies(config, dim):
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    frequency = theta ** -(np.arange(0, dim, 2) / dim)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "linear":
        frequency = frequency / rope["factor"]
    elif kind == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        turns = rope["original_max_position_embeddings"] * frequency / (2 * np.pi)
        blend = np.clip((turns - low) / (high - low), 0, 1)
        frequency = frequency * (blend + (1 - blend) / rope["factor"])
    else:
        assert kind == "default", kind
    return frequency


class Model:
    """A decoder of the Llama family over float arrays in the Hugging Face layout."""

    def __init__(self, config, tensors, dtype=np.float32):
        self.config, self.dtype = config, dtype
        self.tensors = {name: array.astype(dtype) for name, array in tensors.items() if array.dtype.kind == "f"}
        self.heads = config["num_attention_heads"]
        self.kv_heads = config.get("num_key_value_heads") or self.heads
        self.head_dim = config.get("head_dim") or config["hidden_size"] // self.heads
        self.window = config.get("sliding_window") if config["model_type"] == "mistral" or config.get("use_sliding_window") else None

    @classmethod
    def load(cls, folder, dtype=np.float32):
        """A checkpoint, or an artifact decoded."""
        config, tensors = read_folder(folder)
        if "quantization_config" in config:
            config, tensors = decode_artifact(folder)
        return cls(config, tensors, dtype)

    def linear(self, name, x):
        y = x @ self.tensors[f"{name}.weight"].T
        bias = self.tensors.get(f"{name}.bias")
        return y if bias is None else y + bias

    def norm(self, name, x):
        weight = self.tensors.get(f"{name}.weight")
        return x if weight is None else rms_norm(x, weight, self.config["rms_norm_eps"])

    def rotate(self, x):
        """x is [batch, heads, positions, dim]; the halves turn together, as Hugging Face lays them."""
        half = self.head_dim // 2
        angle = np.outer(np.arange(x.shape[2]), rope_frequencies(self.config, self.head_dim))
        cos, sin = np.cos(angle).astype(self.dtype), np.sin(angle).astype(self.dtype)
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def attention(self, prefix, x):
        batch, length, _ = x.shape

        def heads(name, count):
            y = self.linear(f"{prefix}.{name}_proj", x).reshape(batch, length, count, self.head_dim)
            return self.norm(f"{prefix}.{name}_norm", y).transpose(0, 2, 1, 3)

        q, k, v = heads("q", self.heads), heads("k", self.kv_heads), heads("v", self.kv_heads)
        q, k = self.rotate(q), self.rotate(k)
        share = self.heads // self.kv_heads
        k, v = k.repeat(share, 1), v.repeat(share, 1)
        distance = np.subtract.outer(np.arange(length), np.arange(length))
        hidden = (distance < 0) | (distance >= (self.window or length))
        score = q @ k.transpose(0, 1, 3, 2) / self.dtype(np.sqrt(self.head_dim)) + np.where(hidden, -np.inf, 0).astype(self.dtype)
        y = (softmax(score) @ v).transpose(0, 2, 1, 3).reshape(batch, length, -1)
        return self.linear(f"{prefix}.o_proj", y)

    def mlp(self, prefix, x):
        gate = self.linear(f"{prefix}.gate_proj", x)
        return self.linear(f"{prefix}.down_proj", gate / (1 + np.exp(-gate)) * self.linear(f"{prefix}.up_proj", x))

    def logits(self, ids):
        """ids is [batch, positions]; returns [batch, positions, vocabulary]."""
        x = self.tensors["model.embed_tokens.weight"][np.asarray(ids)]
        for i in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{i}"
            x = x + self.attention(f"{layer}.self_attn", self.norm(f"{layer}.input_layernorm", x))
            x = x + self.mlp(f"{layer}.mlp", self.norm(f"{layer}.post_attention_layernorm", x))
        x = self.norm("model.norm", x)
        head = self.tensors.get("lm_head.weight", self.tensors["model.embed_tokens.weight"])
        return x @ head.T

    def losses(self, windows, batch=8):
        """[windows, length - 1]: the negative log likelihood of positions 1.. of every window, in nats."""
        losses = []
        for start in range(0, len(windows), batch):
            ids = np.asarray(windows[start:start + batch])
            logits = self.logits(ids)[:, :-1].astype(np.float64)
            top = logits.max(-1)
            norm = top + np.log(np.exp(logits - top[..., None]).sum(-1))
            losses.append(norm - np.take_along_axis(logits, ids[:, 1:, None], -1)[..., 0])
        return np.concatenate(losses)

    def perplexity(self, windows, batch=8):
        """exp of the mean of losses()."""
        return float(np.exp(self.losses(windows, batch).mean()))


def read_records(path):
    """The token lists of an NDJSON file."""
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line)["input_ids"] for line in lines]


# ---- round to nearest -----------------------------------------------------------------------------------------------

def stored(values, dtype):
    """float32 scales as F32, F16 or BF16 keeps them: rounded down."""
    if dtype == "BF16":
        return (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    kept = values.astype(DTYPES[dtype])
    if dtype == "F16":
        above = kept.astype(np.float32) > values
        kept = np.where(above, np.nextafter(kept, np.float16(0)), kept)
    return kept.astype(np.float32)


def round_to_nearest(weight, bits, group_size, scale_dtype="F32"):
    """The symmetric min-max grid: range 2 * absmax / (2^b - 1), zero at 2^(b-1), scales as they are stored."""
    n, k = weight.shape
    groups = weight.astype(np.float32).reshape(n, -1, k if group_size == -1 else group_size)
    scale = np.abs(groups).max(-1, keepdims=True) * np.float32(2 / (2 ** bits - 1))
    scale = stored(scale, scale_dtype)
    scale[scale == 0] = 1
    zero = 1 << (bits - 1)
    codes = np.clip(np.rint(groups / scale) + zero, 0, 2 ** bits - 1)
    return ((codes - zero) * scale).reshape(n, k)


LINEAR = re.compile(r"model\.layers\.\d+\..*_proj\.weight$")


def rounded_model(folder, bits, group_size, scale_dtype):
    """A checkpoint with every linear of its blocks rounded to nearest."""
    config, tensors = read_folder(folder)
    return Model(config, {name: round_to_nearest(array, bits, group_size, scale_dtype) if LINEAR.search(name) else array
                          for name, array in tensors.items()})
