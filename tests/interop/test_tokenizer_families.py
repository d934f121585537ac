"""Token ids of the families' tokenizers against PyPI `tokenizers`.

No published file is here: each family's normalizer, pre-tokenizer, model options and post-processor, as `transformers` or its publisher
writes them, are put around vocabularies that are trained on the texts of test_tokenizer.py. Where `transformers` has a class that builds
the pipeline, the file is that class's own.
"""

import functools
import itertools
import json
import random

import pytest
from test_tokenizer import LLAMA3, OTHERS, QWEN2, ROOT, TEKKEN, WORDS, byte_level, check, check_saved, sentencepiece, texts
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
WORD = r"[^\r\n\p{L}\p{N}]?"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"{WORD}{UPPER}*{LOWER}+{ENDINGS}?|{WORD}{UPPER}+{LOWER}*{ENDINGS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{TAIL}"
)
CL100K = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
QWEN35 = rf"{ENDINGS}|{WORD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{TAIL}"
NOT_HAN = r"&&[^\p{Han}]]"
KIMI = (
    rf"[\p{{Han}}]+|{WORD}{UPPER[:-1]}{NOT_HAN}*{LOWER[:-1]}{NOT_HAN}+{ENDINGS}?|{WORD}{UPPER[:-1]}{NOT_HAN}+{LOWER[:-1]}{NOT_HAN}*{ENDINGS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{TAIL}"
)
DEEPSEEK_V3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + TAIL
)
DEEPSEEK_V2 = [
    r"[\r\n]",
    "\\s?[A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a"
    "\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u1d00-\u1d2b\u1e00-\u1f15\u1fd0-\u1fd3\u1fe0-\u1fec"
    "\u2102\u2126\u212a-\u212d\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U0001e900-\U0001e943]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
]  # fmt: skip


def isolated(*patterns):
    return [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]


def plain(**options):
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, "use_regex": False, **options})


def digits(individual=True):
    return pre_tokenizers.Digits(individual_digits=individual)


BYTE_LEVEL = {  # family: steps, then options: normalizer, members of the model, tokens before and after
    "llama3, smollm3": (isolated(LLAMA3) + [plain()], {"model": {"ignore_merges": True}, "before": ["<|begin|>"]}),
    "llama4": (isolated(O200K) + [plain(trim_offsets=False)], {"before": ["<|begin|>"]}),
    "gpt-oss, phi4-mini": (isolated(O200K) + [plain(trim_offsets=False)], {"model": {"ignore_merges": True}}),
    "mistral tekken, nemotron-h": (isolated(TEKKEN) + [plain()], {"model": {"ignore_merges": True}, "before": ["<|begin|>"]}),
    "qwen2, qwen3": (isolated(QWEN2) + [plain()], {"normalizer": normalizers.NFC()}),
    "qwen3.5": (isolated(QWEN35) + [plain()], {"normalizer": normalizers.NFC()}),
    "phi4, olmo2, olmo3, granite4": (isolated(CL100K) + [plain()], {}),
    "glm4": (isolated(LLAMA3) + [plain()], {"model": {"ignore_merges": True}, "normalizer": normalizers.Sequence([])}),
    "deepseek v3": (isolated(r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", DEEPSEEK_V3) + [plain()], {"before": ["<|begin|>"]}),
    "deepseek v2": (isolated(*DEEPSEEK_V2) + [digits(), plain()], {"before": ["<|begin|>"]}),
    "kimi k2": (isolated(KIMI) + [plain()], {}),
    "cohere2": ([digits(), plain(use_regex=True)], {"normalizer": normalizers.NFC(), "before": ["<|begin|>"]}),
    "starcoder2, granite3": ([digits(), plain(use_regex=True)], {}),
    "gpt2": ([plain(use_regex=True)], {"post": processors.ByteLevel(trim_offsets=False)}),
    "gpt2 with a space": ([plain(use_regex=True, add_prefix_space=True)], {}),
    "gpt-neox": ([plain(use_regex=True)], {"normalizer": normalizers.NFC(), "post": processors.ByteLevel(trim_offsets=True)}),
    "opt": ([plain(use_regex=True)], {"before": ["<|end|>"]}),
    "roberta's frame": ([plain(use_regex=True)], {"post": processors.RobertaProcessing(("<|end|>", 1), ("<|begin|>", 0))}),
    "bert's frame": ([plain(use_regex=True)], {"post": processors.BertProcessing(("<|end|>", 1), ("<|begin|>", 0))}),
    "falcon": ([pre_tokenizers.Punctuation("contiguous"), plain(use_regex=True), digits(False)] + isolated("[0-9][0-9][0-9]"), {}),
    "clip": (isolated(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), {"normalizer": normalizers.Lowercase()}),
    "lines": ([pre_tokenizers.CharDelimiterSplit("\n"), plain(use_regex=True)], {}),
}
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|user|>"]


@pytest.mark.parametrize("family", BYTE_LEVEL)
def test_byte_level(tmp_path, family):
    steps, options = BYTE_LEVEL[family]
    state = json.loads(byte_level(LLAMA3).to_str())
    state["model"].update(options.get("model", {}))
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    if "normalizer" in options:
        tokenizer.normalizer = options["normalizer"]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, rstrip=t == "<|user|>") for t in SPECIAL])
    before = options.get("before", [])
    post = [processors.ByteLevel(trim_offsets=False)]
    if before:
        ids = [(t, tokenizer.token_to_id(t)) for t in before]
        post.append(processors.TemplateProcessing(single=before + ["$A"], pair=before + ["$A"] + before + ["$B:1"], special_tokens=ids))
    tokenizer.post_processor = options.get("post", processors.Sequence(post))
    check_saved(tokenizer, tmp_path, 40, OTHERS, SPECIAL + ["<|im_start|>user\n", "<|user|>  \n x", "a<|im_end|>b", "汉字かな漢字abc한국", "x٣٤٥y12345678"])


GEMMA = (normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"))
FALLBACK = {
    "gemma": GEMMA,
    "llama2, mixtral": (normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None),
    "mistral v3, nemotron": (None, pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)),
    "llama, transformers 5": (None, pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=False)),
    "legacy": (None, pre_tokenizers.Metaspace("▁", prepend_scheme="never", split=False)),
    "ernie4.5": (normalizers.Sequence([normalizers.Replace(" ", "▁")]), None),
    "infilling": (normalizers.Replace(" ", "▁"), pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)),
    "stripped": (normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(left=False), normalizers.Replace(Regex(" {2,}"), "▁")]), pre_tokenizers.Metaspace()),
    "dummy prefix": (normalizers.Sequence([normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(" ", "▁"), normalizers.Replace(Regex(r"\A▁"), "▁▁")]), None),
}  # fmt: skip


@pytest.mark.parametrize("family", FALLBACK)
def test_byte_fallback(tmp_path, family):
    """SentencePiece BPE; Phi-3's added tokens take the white space after them."""
    tokenizer = sentencepiece(*FALLBACK[family], 4)
    tokenizer.add_special_tokens([AddedToken("<|user|>", rstrip=True, normalized=False), AddedToken("<start_of_turn>", normalized=False)])
    tokenizer.add_tokens([AddedToken("▁▁▁▁", normalized=False), AddedToken("\n\n\n", normalized=False)])
    check_saved(tokenizer, tmp_path, 41, OTHERS, ["<|user|>", "<|user|>\n  x", "<start_of_turn>user\n", "\n\n\n\n", "▁▁▁▁▁", "</s>"])


@functools.cache
def unigram(fallback, seed=7):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True)
    trainer = trainers.UnigramTrainer(
        vocab_size=2000, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    rng = random.Random(seed)
    words = (" ".join(rng.choice(WORDS) for _ in range(20)) for _ in range(500))
    prose = (line for page in sorted((ROOT / "docs").glob("*.md")) for line in page.read_text().splitlines())
    tokenizer.train_from_iterator(itertools.chain(words, prose), trainer)
    state = json.loads(tokenizer.to_str())
    if fallback:
        state["model"]["vocab"] += [[f"<0x{b:02X}>", 0.0] for b in range(256)]
        state["model"]["byte_fallback"] = True
    return json.dumps(state)


UNIGRAM = {
    "metaspace": (None, pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True)),
    "one word": (None, pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)),
    "helium": (normalizers.Sequence([normalizers.Prepend(" "), normalizers.Replace(" ", "▁")]), pre_tokenizers.Sequence([pre_tokenizers.Split("\n", "contiguous")])),
    "t5 without charsmap": (normalizers.Sequence([normalizers.Strip(left=False), normalizers.Replace(Regex(" {2,}"), "▁")]), pre_tokenizers.Metaspace("▁", prepend_scheme="always")),
    "pegasus": (normalizers.NFKC(), pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("▁", prepend_scheme="always")])),
}  # fmt: skip


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("family", UNIGRAM)
def test_unigram(tmp_path, family, fallback):
    tokenizer = Tokenizer.from_str(unigram(fallback))
    normalizer, tokenizer.pre_tokenizer = UNIGRAM[family]
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    tokenizer.add_tokens([AddedToken("<extra>", lstrip=True)])
    check_saved(tokenizer, tmp_path, 42, OTHERS, ["<extra>", "  <extra>", "<unk>", "<unk>☃<unk>", "☃☃☃", "</s>", "𓀀𓀁"])


def test_unigram_corners(tmp_path):
    """Ties, a token twice, scores above zero, unknown characters whose run is a token, no byte token for one byte."""
    pieces = [["<unk>", 0.0], ["a", 0.5], ["b", 0.5], ["ab", 1.0], ["aa", 1.0], ["ba", 1.25], ["ab", 1.5], ["xy", -400.0], ["<0xE2>", 0.0]]
    for number, fallback in enumerate((False, True)):
        state = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
                 "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": fallback, "vocab": pieces}}  # fmt: skip
        tokenizer = Tokenizer.from_str(json.dumps(state))
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(state))
        batch = ["".join(t) for n in range(1, 6) for t in itertools.product("abxy☃", repeat=n)] + ["<unk>", "a<unk>x<unk>xy", "xyxy"]
        check(tokenizer, path, batch)


# By model_type, which of these pipelines published checkpoints have. tests/lint/checked.py reads it for docs/families.md.
PIPELINES = {
    "cohere2": ["cohere2"],
    "deepseek_v2": ["deepseek v2"],
    "deepseek_v3": ["deepseek v3", "kimi k2"],
    "dots1": ["qwen2, qwen3"],
    "ernie4_5_moe": ["ernie4.5"],
    "exaone4": ["gpt2"],
    "falcon": ["falcon"],
    "flex_olmo": ["phi4, olmo2, olmo3, granite4"],
    "gemma2": ["gemma"],
    "gemma3_text": ["gemma"],
    "gemma4_text": ["gemma"],
    "glm4": ["glm4"],
    "glm4_moe": ["glm4"],
    "glm4_moe_lite": ["glm4"],
    "gpt2": ["gpt2"],
    "gpt_neox": ["gpt-neox"],
    "gpt_oss": ["gpt-oss, phi4-mini"],
    "granite": ["starcoder2, granite3"],
    "granitemoe": ["starcoder2, granite3"],
    "granitemoehybrid": ["phi4, olmo2, olmo3, granite4"],
    "llama": ["llama3, smollm3", "llama2, mixtral"],
    "llama4_text": ["llama4"],
    "ministral": ["mistral tekken, nemotron-h"],
    "ministral3": ["mistral tekken, nemotron-h"],
    "mistral": ["llama2, mixtral", "mistral v3, nemotron", "mistral tekken, nemotron-h"],
    "mixtral": ["llama2, mixtral"],
    "nemotron": ["mistral v3, nemotron"],
    "nemotron_h": ["mistral tekken, nemotron-h"],
    "olmo2": ["phi4, olmo2, olmo3, granite4"],
    "olmo3": ["phi4, olmo2, olmo3, granite4"],
    "olmoe": ["gpt-neox"],
    "opt": ["opt"],
    "phi": ["gpt2"],
    "phi3": ["llama2, mixtral", "phi4, olmo2, olmo3, granite4", "gpt-oss, phi4-mini"],
    "qwen2": ["qwen2, qwen3"],
    "qwen2_5_vl_text": ["qwen2, qwen3"],
    "qwen2_moe": ["qwen2, qwen3"],
    "qwen2_vl_text": ["qwen2, qwen3"],
    "qwen3": ["qwen2, qwen3"],
    "qwen3_5_moe_text": ["qwen3.5"],
    "qwen3_5_text": ["qwen3.5"],
    "qwen3_moe": ["qwen2, qwen3"],
    "qwen3_next": ["qwen2, qwen3"],
    "qwen3_vl_moe_text": ["qwen2, qwen3"],
    "qwen3_vl_text": ["qwen2, qwen3"],
    "smollm3": ["llama3, smollm3"],
    "starcoder2": ["starcoder2, granite3"],
}


def fallback_parts():
    model = json.loads(sentencepiece(None, None, 4).to_str())["model"]
    return model["vocab"], [tuple(m) for m in model["merges"]]


def byte_level_parts():
    model = json.loads(byte_level(LLAMA3).to_str())["model"]
    return model["vocab"], [tuple(m) for m in model["merges"]]


@pytest.mark.parametrize(
    "name,parts,options",
    [
        ("LlamaTokenizer", fallback_parts, {}),
        ("LlamaTokenizer", fallback_parts, {"legacy": False, "add_eos_token": True}),
        ("GemmaTokenizer", fallback_parts, {}),
        ("GPT2Tokenizer", byte_level_parts, {}),
        ("GPTNeoXTokenizer", byte_level_parts, {}),
        ("Qwen2Tokenizer", byte_level_parts, {}),
        ("Qwen3_5Tokenizer", byte_level_parts, {}),
        ("CohereTokenizer", byte_level_parts, {}),
    ],
)
def test_classes(tmp_path, name, parts, options):
    """What the classes of `transformers` save."""
    transformers = pytest.importorskip("transformers")
    vocab, merges = parts()
    getattr(transformers, name)(vocab=dict(vocab), merges=list(merges), **options).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    check(Tokenizer.from_file(str(path)), path, texts(43, OTHERS // 2, ["<s>", "</s>", "<|endoftext|>", "<bos>"]))
