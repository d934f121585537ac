"""Composite checkpoints.

Of a text the three positions of Qwen-VL's rotation are the same, so logits of the language model are transformers', with names as it saves
them and with those of the module tree, and with the configuration as it was published for Qwen2-VL and Qwen2.5-VL. Artifacts load as
the complete model, whose towers are the source's byte for byte.
"""

import functools
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import test_families
from daemon import Daemon
from test_experts import FOUR, difference
from test_families import TOLERANCE, texts
from test_forward import DELTA, SHAPE, SPARSE, VISION, compare_composite, forward, make_composite, rewrite_config

TEXT = {**SHAPE, "intermediate_size": 192}
IDS = {"image_token_id": 1, "video_token_id": 2, "vision_start_token_id": 3, "vision_end_token_id": 4}
PATCHES = {"depth": 1, "num_heads": 2, "patch_size": 4}
VISION3 = {**PATCHES, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": SHAPE["hidden_size"], "num_position_embeddings": 16,
           "deepstack_visual_indexes": [0]}


def sections(*columns, theta=1e6):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, "mrope_section": list(columns)}}


def qwen2_vl():
    vision = {**PATCHES, "embed_dim": 32, "hidden_size": SHAPE["hidden_size"]}
    return transformers.Qwen2VLConfig(text_config={**TEXT, **sections(2, 3, 3)}, vision_config=vision, **IDS)


def qwen2_5_vl():
    vision = {**PATCHES, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": SHAPE["hidden_size"], "fullatt_block_indexes": [0]}
    text = {**TEXT, **sections(2, 3, 3), "use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1}
    return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **IDS)


def qwen3_vl():
    return transformers.Qwen3VLConfig(text_config={**TEXT, **sections(4, 2, 2), "head_dim": 16}, vision_config=VISION3, **IDS)


def qwen3_vl_moe():
    text = {**TEXT, **sections(4, 2, 2), "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 64,
            "mlp_only_layers": [1]}
    return transformers.Qwen3VLMoeConfig(text_config=text, vision_config=VISION3, **IDS)


def smolvlm():
    return transformers.SmolVLMConfig(text_config={**TEXT, "model_type": "llama"}, vision_config=VISION, image_token_id=1)


def idefics3():
    return transformers.Idefics3Config(text_config={**TEXT, "model_type": "llama"}, vision_config=VISION, image_token_id=1)


def kimi_k25():
    text = {**TEXT, "model_type": "deepseek_v3", "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
            "v_head_dim": 16, "num_key_value_heads": 4, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
            "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4,
              "pos_emb_height": 4, "pos_emb_width": 4, "pos_emb_time": 2}
    return transformers.Kimi_K25Config(text_config=text, vision_config=vision, projection_hidden_size=32, tie_word_embeddings=False, **IDS)


def aya_vision():
    text = {**TEXT, "model_type": "cohere2", "num_hidden_layers": 4, "sliding_window": 11, "logit_scale": 0.7, "eos_token_id": 0}
    return transformers.AyaVisionConfig(text_config=text, vision_config={**VISION, "model_type": "siglip_vision_model"}, image_token_id=1)


def scaled(forward):
    """With the factor of Cohere 2's logits, which the class of Aya Vision in transformers 5.24 leaves out (test_factor_of_logits)."""
    @functools.wraps(forward)
    def run(self, *arguments, **more):
        output = forward(self, *arguments, **more)
        output.logits = output.logits * self.config.text_config.logit_scale
        return output
    return run


transformers.AyaVisionForConditionalGeneration.forward = scaled(transformers.AyaVisionForConditionalGeneration.forward)


def internvl():
    return transformers.InternVLConfig(text_config={**TEXT, "model_type": "qwen3", "head_dim": 16}, vision_config=VISION, image_token_id=1,
                                       tie_word_embeddings=False)


def llava_next():
    text = {**TEXT, "model_type": "mistral", "sliding_window": 11}
    return transformers.LlavaNextConfig(text_config=text, vision_config={**VISION, "model_type": "clip_vision_model"}, image_token_index=1)


def llava_onevision():
    vision = {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
    return transformers.LlavaOnevisionConfig(text_config={**TEXT, "model_type": "qwen2"}, vision_config=vision, image_token_index=1,
                                             video_token_index=2)


VISION35 = {name: value for name, value in VISION3.items() if name != "deepstack_visual_indexes"}
DELTA35 = {**TEXT, **DELTA, "linear_value_head_dim": 16}


def qwen3_5():
    return transformers.Qwen3_5Config(text_config=DELTA35, vision_config=VISION35, tie_word_embeddings=False, **IDS)


def qwen3_5_moe():
    text = {**DELTA35, **SPARSE, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64}
    return transformers.Qwen3_5MoeConfig(text_config=text, vision_config=VISION35, tie_word_embeddings=False, **IDS)


def voxtral():
    audio = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_mel_bins": 8,
             "max_source_positions": 8, "vocab_size": 32}
    return transformers.VoxtralConfig(text_config={**TEXT, "model_type": "llama", "head_dim": 16}, audio_config=audio, audio_token_id=1)


CASES = {
    "qwen2-vl": (qwen2_vl, transformers.Qwen2VLForConditionalGeneration),
    "qwen2.5-vl": (qwen2_5_vl, transformers.Qwen2_5_VLForConditionalGeneration),
    "qwen3-vl": (qwen3_vl, transformers.Qwen3VLForConditionalGeneration),
    "qwen3-vl-moe": (qwen3_vl_moe, transformers.Qwen3VLMoeForConditionalGeneration),
    "smolvlm": (smolvlm, transformers.SmolVLMForConditionalGeneration),
    "idefics3": (idefics3, transformers.Idefics3ForConditionalGeneration),
    "kimi-k2.5": (kimi_k25, transformers.Kimi_K25ForConditionalGeneration),
    "aya-vision": (aya_vision, transformers.AyaVisionForConditionalGeneration),
    "internvl": (internvl, transformers.InternVLForConditionalGeneration),
    "llava-next": (llava_next, transformers.LlavaNextForConditionalGeneration),
    "llava-onevision": (llava_onevision, transformers.LlavaOnevisionForConditionalGeneration),
    "qwen3.5": (qwen3_5, transformers.Qwen3_5ForConditionalGeneration),
    "qwen3.5-moe": (qwen3_5_moe, transformers.Qwen3_5MoeForConditionalGeneration),
    "voxtral": (voxtral, transformers.VoxtralForConditionalGeneration),
}
# Layers of other widths next to each other, and one in float: the artifact names modules.
MIXTURE = ("rtn", {**FOUR, "overrides": [{"match": "*.self_attn.*", "bits": 8}, {"match": "*.layers.0.mlp.down_proj", "skip": True}]})
OWN = {"qwen3.5-moe": ("rtn", FOUR)}  # which has no dense layer
TOWERS = ("visual", "vision", "audio", "connector", "projector", "image_newline")


def as_published(folder):
    """transformers 5.24 saves the layers of Kimi's language model as blocks, and does not find them again."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({name.replace("language_model.model.blocks.", "language_model.model.layers."): tensor for name, tensor in tensors.items()},
              path, {"format": "pt"})


def make(case, folder, **more):
    build, model_class = CASES[case]
    model = make_composite(build(), model_class, folder, **more)
    as_published(folder)
    return model


@pytest.mark.parametrize("case", CASES)
def test_forward(case, tmp_path):
    compare_composite(make(case, tmp_path / "model"), tmp_path)


@pytest.mark.parametrize("case", ["qwen2-vl", "aya-vision", "internvl", "llava-next", "llava-onevision", "qwen3.5-moe", "voxtral"])
def test_module_tree(case, tmp_path):
    """With the names of the module tree, where transformers saves others. Experts of Qwen3.5 are two tensors of a layer then, as published."""
    make(case, tmp_path / "model")
    saved = set(load_file(tmp_path / "model" / "model.safetensors"))
    model = make(case, tmp_path / "model", new=True)
    assert saved != set(load_file(tmp_path / "model" / "model.safetensors"))
    compare_composite(model, tmp_path)


@pytest.mark.parametrize("case", ["qwen2-vl", "qwen2.5-vl"])
def test_flat(case, tmp_path):
    """With the text model's members next to the others, and rotary parameters in the words of then."""
    model = make(case, tmp_path / "model")

    def flatten(config):
        text = config.pop("text_config")
        text.pop("model_type")
        rope = text.pop("rope_parameters")
        config.update({**text, "rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}})

    rewrite_config(tmp_path / "model", flatten)
    compare_composite(model, tmp_path)


def test_kimi_k2(tmp_path):
    """The name that Kimi gives to DeepSeek V3's configuration."""
    model = make("kimi-k2.5", tmp_path / "model")
    rewrite_config(tmp_path / "model", lambda config: config["text_config"].update(model_type="kimi_k2"))
    compare_composite(model, tmp_path)


def test_factor_of_logits(tmp_path):
    """Aya Vision's language model alone: what Cohere 2's own class makes of it."""
    model = make("aya-vision", tmp_path / "model")
    alone = transformers.Cohere2ForCausalLM(model.config.text_config).eval()
    alone.model.load_state_dict(model.model.language_model.state_dict())
    with torch.no_grad():
        wanted = alone(torch.from_numpy(texts()).long()).logits.numpy().reshape(-1, SHAPE["vocab_size"])
    assert difference(forward(tmp_path / "model", texts(), tmp_path), wanted) < TOLERANCE


def test_experts_by_inputs(tmp_path):
    """Experts of Qwen3-VL as they are published: [experts, inputs, outputs]."""
    model = make("qwen3-vl-moe", tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    turned = {name: tensor.transpose(1, 2).contiguous() if ".experts." in name else tensor for name, tensor in tensors.items()}
    assert turned["model.language_model.layers.0.mlp.experts.gate_up_proj"].shape == (8, SHAPE["hidden_size"], 128)
    save_file(turned, path, {"format": "pt"})
    compare_composite(model, tmp_path)


class Setting(test_families.Setting):
    composites = CASES

    def save(self, model):
        super().save(model)
        as_published(self.root / "model")


class Published(Setting):
    """With the class that published checkpoints of Kimi K2.5 name. transformers loads them by their model_type."""

    def save(self, model):
        super().save(model)
        rewrite_config(self.root / "model", lambda config: config.update(architectures=["KimiK25ForConditionalGeneration"]))


@pytest.fixture(scope="module", params=["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "smolvlm", "idefics3", "kimi-k2.5", "aya-vision", "internvl",
                                        "llava-next", "llava-onevision", "qwen3.5", "qwen3.5-moe", "voxtral"])
def setting(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    with Daemon([root]) as quantd:
        yield Setting(quantd, root, request.param)


def check_towers(setting, folder):
    before, after = load_file(setting.root / "model" / "model.safetensors"), load_file(folder / "model.safetensors")
    towers = [name for name in before if any(word in name for word in TOWERS)]
    assert towers and all(torch.equal(before[name], after[name]) for name in towers)


def check_artifacts(setting, tmp_path):
    """The folder of the quantized one."""
    dense, _ = setting.artifact(*OWN.get(setting.name, MIXTURE), "dense")
    folder, _ = setting.artifact(*OWN.get(setting.name, MIXTURE), "compressed-tensors")
    wanted = forward(dense, texts(), tmp_path)
    assert difference(setting.logits(dense, texts()), wanted) < TOLERANCE
    assert difference(setting.logits(folder, texts()), wanted) < TOLERANCE
    check_towers(setting, folder)
    return folder


def test_loads_back(setting, tmp_path):
    folder = check_artifacts(setting, tmp_path)
    source = setting.model_class.from_pretrained(setting.root / "model", dtype=torch.float32).state_dict()
    loaded = setting.model_class.from_pretrained(folder, dtype=torch.float32).state_dict()
    towers = [name for name in source if any(word in name for word in TOWERS)]
    assert towers and all(torch.equal(source[name], loaded[name]) for name in towers)


@pytest.mark.parametrize("name", ["KimiK25ForConditionalGeneration"])
def test_published_class(name, tmp_path):
    """The class that published checkpoints name, where transformers 5.24 has another name for it, and loads by model_type."""
    (tmp_path / "loads").mkdir()
    model = make("kimi-k2.5", tmp_path / "model")
    rewrite_config(tmp_path / "model", lambda config: config.update(architectures=[name]))
    compare_composite(model, tmp_path)
    with Daemon([tmp_path / "loads"]) as quantd:
        folder = check_artifacts(Published(quantd, tmp_path / "loads", "kimi-k2.5"), tmp_path)
        assert json.loads((folder / "config.json").read_text())["architectures"] == [name]


@pytest.mark.parametrize("name", ["qwen3-vl-moe"])
def test_stacked(name, tmp_path):
    """Experts of Qwen3-VL, which transformers loads from dense artifacts alone: the job says so."""
    with Daemon([tmp_path]) as quantd:
        setting = Setting(quantd, tmp_path, name)
        dense, job = setting.artifact("gptq", FOUR, "dense")
        assert not [warning for warning in job["warnings"] if warning["code"] == "not_in_transformers"]
        assert difference(setting.logits(dense, texts()), forward(dense, texts(), tmp_path)) < TOLERANCE
        check_towers(setting, dense)
        _, job = setting.artifact("rtn", FOUR, "compressed-tensors")
        assert [warning for warning in job["warnings"] if warning["code"] == "not_in_transformers"]
        assert json.loads((dense / "config.json").read_text())["architectures"] == ["Qwen3VLMoeForConditionalGeneration"]
