"""Token ids against PyPI `tokenizers`, text by text.

The bundled tokenizer and some built here with the reference library: Llama 3, Qwen 2, Llama 2 / Mistral and Metaspace styles, and
one for each pre-tokenizer and added-token option. Texts are made from a seed: random characters of many blocks, emoji, combining
marks, code, digits, long runs of white space, added tokens in odd places.

PCRE2, utf8proc, Oniguruma and the Rust crates carry Unicode tables of different ages. So only code points are used that Python
knows (Unicode 14, as PCRE2 10.42) and that the reference normalizes and calls punctuation as Python does (those two of its tables
are older still: combining marks of recent scripts are letters to it).

The bundled, the Llama 3 and the Qwen 2 tokenizer see all texts, the others a tenth of theirs unless --full asks for more.
"""

import functools
import json
import os
import pathlib
import random
import subprocess
import unicodedata

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOL = pathlib.Path(os.environ.get("QUANTD_BUILD_DIR", ROOT / "build")) / "tests/tools/quantd-tokenize"
FULL = bool(os.environ.get("QUANTD_INTEROP_FULL"))
TEXTS = 10000
OTHERS = TEXTS if FULL else TEXTS // 10

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

BLOCKS = [
    (0x20, 0x7E), (0xA0, 0xFF), (0x100, 0x24F), (0x250, 0x2AF), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF), (0x530, 0x58F),
    (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F), (0x980, 0x9FF), (0xB80, 0xBFF), (0xE00, 0xE7F), (0xF00, 0xFFF), (0x10A0, 0x10FF),
    (0x1100, 0x11FF), (0x1780, 0x17FF), (0x1800, 0x18AF), (0x1E00, 0x1EFF), (0x1F00, 0x1FFF), (0x2000, 0x206F), (0x2070, 0x209F),
    (0x20A0, 0x20CF), (0x2100, 0x214F), (0x2150, 0x218F), (0x2190, 0x21FF), (0x2200, 0x22FF), (0x2460, 0x24FF), (0x2500, 0x257F),
    (0x2600, 0x27BF), (0x3000, 0x303F), (0x3040, 0x30FF), (0x3130, 0x318F), (0x3200, 0x33FF), (0x4E00, 0x9FFF), (0xA640, 0xA69F),
    (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0xFB00, 0xFB4F), (0xFE00, 0xFE2F), (0xFF00, 0xFFEF), (0x10000, 0x100FF), (0x10300, 0x1034F),
    (0x10400, 0x1044F), (0x1D15E, 0x1D1FF), (0x1D400, 0x1D7FF), (0x1F130, 0x1F189), (0x1F300, 0x1F64F), (0x1F680, 0x1F6FF),
    (0x1F900, 0x1F9FF), (0x20000, 0x2A6DF), (0x2F800, 0x2FA1F), (0xE0100, 0xE01EF), (0xE000, 0xE0FF),
]  # fmt: skip
SPACES = [" ", "  ", "   ", "\t", "\n", "\r\n", "\n\n", "\r", "\u00a0", "\u2003", "\u3000", "\u2028", "\u0085", "\v", "\f", "\u180e"]
WORDS = (
    "the of and quantization tokens hello world isn't I'LL they've WE'RE naïve café Straße ÉCOLE мир привет Ελλάδα שלום مرحبا "
    "नमस्ते ภาษาไทย 日本語 한국어 中文字符 emoji 👩‍👩‍👧‍👦 🇩🇪 ☕️ def return self.x == None; for (int i = 0; i < n; ++i) { } // /* */ "
    "#include <stdio.h> https://example.org/a?b=c&d=%20 3.14159 1234567 ٣٤٥ ⅷ ½ x² H₂O … — “quoted” 'tis ﬁ ﬀ ſ İı K Å ẛ̣ e\u0301 "
    "\u1112\u1161\u11ab a\u0323\u0307 q\u0307\u0323 ▁ Ġ <0x0A> <s> </s> [INST] \u200d \u200c _a_b_ $x^2$ \\n \ufeff"
).split(" ")


@functools.cache
def assigned(code):
    """Known to both sides; private use counts."""
    one = chr(code)
    if unicodedata.category(one) in ("Cn", "Cs") or code == 0:
        return False
    punctuation = len(pre_tokenizers.Punctuation().pre_tokenize_str("a" + one)) == 2
    if code >= 0x80 and punctuation != (unicodedata.category(one)[0] == "P"):
        return False
    probes = [one, one + "\u0334", "\u0345" + one] if ord(one) >= 0x80 else []
    return all(
        form().normalize_str(p) == unicodedata.normalize(form.__name__, p) for p in probes for form in (normalizers.NFD, normalizers.NFKD)
    )


def character(rng):
    while True:
        first, last = rng.choice(BLOCKS)
        code = rng.randint(first, last)
        if assigned(code):
            return chr(code)


def text(rng, extra):
    parts = []
    for _ in range(rng.randint(0, 24)):
        kind = rng.random()
        if kind < 0.45:
            parts.append(rng.choice(WORDS))
        elif kind < 0.6:
            parts.append("".join(character(rng) for _ in range(rng.randint(1, 6))))
        elif kind < 0.7:
            first, last = rng.choice(BLOCKS)
            parts.append("".join(chr(c) for c in (rng.randint(first, last) for _ in range(rng.randint(1, 8))) if assigned(c)))
        elif kind < 0.75:
            parts.append(rng.choice(SPACES) * rng.randint(1, 40))
        elif kind < 0.8:
            parts.append(str(rng.randint(0, 10**12)))
        elif kind < 0.83:
            parts.append("e" + "".join(chr(rng.choice([0x300, 0x323, 0x345, 0x327, 0x5B0, 0x94D])) for _ in range(rng.randint(1, 9))))
        elif kind < 0.85:
            parts.append(chr(rng.randint(1, 0x1F)))
        elif extra:
            parts.append(rng.choice(extra))
        parts.append(rng.choice(["", "", " ", " ", " ", rng.choice(SPACES)]))
    return "".join(parts)


def texts(seed, count=OTHERS, extra=()):
    rng = random.Random(seed)
    fixed = ["", " ", "\n", "  a", "a  ", "a\u0301", "'S", "\u017f", "'\u017f", "a" * 5000, " " * 3000, "\u0301" * 300, "ab " * 2000, "\x00\x00a"]
    return fixed + list(extra) + [text(rng, list(extra)) for _ in range(count)]


def corpus(seed):
    """Training text: words often, rare characters rarely."""
    rng = random.Random(seed)
    for _ in range(4000):
        yield " ".join(rng.choice(WORDS) if rng.random() < 0.9 else text(rng, ()) for _ in range(20))


def ours(path, batch, special):
    lines = "".join(json.dumps({"text": t}) + "\n" for t in batch)
    command = [TOOL, path] + (["--special"] if special else [])
    done = subprocess.run(command, input=lines.encode(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(tokenizer, path, batch):
    for special in (False, True):
        got = ours(path, batch, special)
        want = [e.ids for e in tokenizer.encode_batch(batch, add_special_tokens=special)]
        assert len(got) == len(want)
        wrong = [i for i in range(len(batch)) if got[i] != want[i]]
        assert not wrong, (
            f"{len(wrong)} of {len(batch)} texts differ, the shortest: "
            + str(min(((batch[i], got[i], want[i]) for i in wrong), key=lambda w: len(w[0])))[:2000]
        )


def check_saved(tokenizer, tmp_path, seed, count=OTHERS, extra=()):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    check(tokenizer, path, texts(seed, count, extra))


@functools.cache
def trained(pattern, seed):
    """A byte-level tokenizer as JSON: training takes longer than any test."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|begin|>", "<|end|>"], show_progress=False
    )
    tokenizer.train_from_iterator(corpus(seed), trainer)
    return tokenizer.to_str()


def byte_level(pattern, seed=1):
    return Tokenizer.from_str(trained(pattern, seed))


def test_bundled(tmp_path):
    path = ROOT / "tests/data/tiny-llama/tokenizer.json"
    check(Tokenizer.from_file(str(path)), path, texts(11, TEXTS, ["<|endoftext|>", "<|pad|>", "<|endoftext|", "|pad|>"]))


def test_llama3(tmp_path):
    tokenizer = byte_level(LLAMA3)
    state = json.loads(tokenizer.to_str())
    state["model"]["ignore_merges"] = True
    # Tokens that no merge makes are reached by the complete word only.
    for word in ("Ġquantization", "Ġэтого", "ĠÑĢÐ°Ð·", "12ab"):
        state["model"]["vocab"].setdefault(word, len(state["model"]["vocab"]))
    tokenizer = Tokenizer.from_str(json.dumps(state))
    special = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|reserved_1|>", "<|reserved_10|>"]
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin|> $A",
                pair="<|begin|> $A <|begin|> $B",
                special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))],
            ),
        ]
    )
    check_saved(tokenizer, tmp_path, 12, TEXTS, special + ["<|begin|>", "<|reserved_1", " <|eot_id|>\n\n"])


def test_qwen2(tmp_path):
    tokenizer = byte_level(QWEN2, seed=2)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False), AddedToken("é́", normalized=True)])
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False)
    check_saved(tokenizer, tmp_path, 13, TEXTS, ["<|im_start|>", "<|im_end|>", "<tool_call>", "e\u0301\u0301", "<|im_start|>user\n"])


def test_tekken(tmp_path):
    check_saved(byte_level(TEKKEN, seed=3), tmp_path, 14)


@functools.cache
def trained_with_fallback(seed, fuse):
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=fuse))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=2500, special_tokens=special, limit_alphabet=300, show_progress=False)
    tokenizer.train_from_iterator(corpus(seed), trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["id"] < 3]
    return json.dumps(state)


def sentencepiece(normalizer, pre_tokenizer, seed, fuse=True):
    """Byte fallback, characters of the training text as alphabet, <unk> fused: Llama 2's kind."""
    tokenizer = Tokenizer.from_str(trained_with_fallback(seed, fuse))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


PREPEND = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


@pytest.mark.parametrize("normalized", [False, True])
def test_llama2(tmp_path, normalized):
    tokenizer = sentencepiece(PREPEND, None, 4)
    extra = ["[INST]", "[/INST]", "day"]
    tokenizer.add_tokens([AddedToken(e, normalized=normalized) for e in extra])
    check_saved(tokenizer, tmp_path, 15, OTHERS, extra + ["<s>", "</s>", "</s>Hey", "a<s> b"])


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_metaspace(tmp_path, scheme, split):
    tokenizer = sentencepiece(None, pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=split), 5)
    tokenizer.add_special_tokens(["[INST]", "[/INST]"])
    check_saved(tokenizer, tmp_path, 16, OTHERS // 2, ["[INST]", "[/INST]", "<s>", "[INST] hi", " [INST]"])


@pytest.mark.parametrize("fuse", [False, True])
def test_unknown(tmp_path, fuse):
    """Characters without token: <unk>, fused or not, byte tokens with a gap, or nothing at all."""
    state = json.loads(sentencepiece(PREPEND, None, 6, fuse).to_str())
    for case in ("unk", "gap", "drop"):
        changed = json.loads(json.dumps(state))
        if case == "gap":
            changed["model"]["vocab"]["<gap>"] = changed["model"]["vocab"].pop("<0x9F>")
        else:
            changed["model"]["byte_fallback"] = False
        if case == "drop":
            changed["model"]["unk_token"] = None
        (tmp_path / case).mkdir()
        check_saved(Tokenizer.from_str(json.dumps(changed)), tmp_path / case, 17, OTHERS // 4)


def test_added_token_options(tmp_path):
    tokenizer = byte_level(LLAMA3)
    tokenizer.normalizer = normalizers.Lowercase()
    options = [
        AddedToken("<mask>", lstrip=True),
        AddedToken("<sep>", rstrip=True),
        AddedToken("<both>", lstrip=True, rstrip=True, normalized=False),
        AddedToken("word", single_word=True),
        AddedToken("<W>", single_word=True, normalized=False),
        AddedToken("Title", normalized=True),
        AddedToken("ab", normalized=False),
        AddedToken("abcd", normalized=False),
        AddedToken("bcde", normalized=False),
        AddedToken("\n\n", normalized=False),
        AddedToken("  ", normalized=False),
    ]
    tokenizer.add_tokens(options)
    extra = [o.content for o in options] + ["  <mask>  ", "<sep>   ", "word", "sword", "word_", "words", "WORD", "TITLE", "abcde", "abc",
                                            "<both> <both>", "<sep>  <sep>", "ⓐ<W>", "<W>\u200d", "<W>é", "a\u0301<W>", "<mask>\n\n"]  # fmt: skip
    check_saved(tokenizer, tmp_path, 18, OTHERS, extra)


@pytest.mark.parametrize("behavior", ["isolated", "removed", "merged_with_previous", "merged_with_next", "contiguous"])
@pytest.mark.parametrize("invert", [False, True])
def test_split_behaviors(tmp_path, behavior, invert):
    tokenizer = byte_level(LLAMA3)
    for number, pattern in enumerate([Regex(r"\p{Lu}|\d+"), Regex(r"\w+|\s"), "e", Regex(r"\b"), Regex(r"^.|.$|x*")]):
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(pattern, behavior, invert), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        (tmp_path / str(number)).mkdir()
        check_saved(tokenizer, tmp_path / str(number), 19 + number, OTHERS // 20)


@pytest.mark.parametrize(
    "steps",
    [
        [pre_tokenizers.Digits(individual_digits=True)],
        [pre_tokenizers.Digits(individual_digits=False)],
        [pre_tokenizers.Whitespace()],
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()],
        [pre_tokenizers.Punctuation("merged_with_next"), pre_tokenizers.Digits(True)],
    ],
    ids=lambda steps: "+".join(type(s).__name__ for s in steps),
)
@pytest.mark.parametrize("prefix", [False, True])
def test_steps(tmp_path, steps, prefix):
    tokenizer = byte_level(LLAMA3)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps + [pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=True)])
    check_saved(tokenizer, tmp_path, 30, OTHERS // 10)


@pytest.mark.parametrize(
    "normalizer",
    [
        normalizers.NFC(),
        normalizers.NFD(),
        normalizers.NFKC(),
        normalizers.NFKD(),
        normalizers.Lowercase(),
        normalizers.Strip(),
        normalizers.Strip(left=True, right=False),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Replace(Regex(" {2,}"), "▁"),
        normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(), normalizers.Lowercase(), normalizers.Prepend("x ")]),
    ],
    ids=lambda n: str(n)[:40],
)
def test_normalizers(tmp_path, normalizer):
    tokenizer = byte_level(LLAMA3)
    tokenizer.normalizer = normalizer
    check_saved(tokenizer, tmp_path, 31, OTHERS // 5)


@functools.cache
def known():
    """After a letter, every character except nearly all of the large ideographic blocks."""
    sparse = ((0x3100, 0xF900), (0x17000, 0x19000), (0x20000, 0xF0000)) if not FULL else ((0x3100, 0xF900),)
    codes = (c for c in range(1, 0xF0000) if c % 97 == 0 or not any(first <= c < last for first, last in sparse))
    return ["a" + chr(c) for c in codes if assigned(c)]


@pytest.mark.parametrize(
    "pattern",
    [r"\s", r"\S", r"\w", r"\W", r"\d", r"\D", r"\p{L}", r"\p{Lu}", r"\p{N}", r"\p{P}", r"\p{S}", r"\p{M}", r"[^\s\p{L}\p{N}]", r"[^\s\w]",
     r"[\w\d]", r"\p{^L}", r"(?i:k)", r"(?i:s)", r"(?i:ÿ)", r"(?i:[k-s])", r".", r"a\b", r"^[^a]$", r"\p{Han}", r"[\p{^Greek}]", r"[\u00e9-\u0100]"],
)  # fmt: skip
def test_classes(tmp_path, pattern):
    """Every known character: is it in the class?"""
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex(pattern), "!"), normalizers.ByteLevel()])
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    check(tokenizer, path, known())


def test_merge_forms(tmp_path):
    """Merges as strings (older files) and as pairs give the same ids."""
    tokenizer = byte_level(QWEN2, seed=1)
    state = json.loads(tokenizer.to_str())
    state["model"]["merges"] = [" ".join(m) for m in state["model"]["merges"]]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(state))
    check(tokenizer, path, texts(32, OTHERS // 10))
