"""The tokenizer within a GGUF file against PyPI `tokenizers`: its ids, and its other keys."""

import json
import pathlib
import shutil

import gguf
import pytest
from tokenizers import Tokenizer

DATA = pathlib.Path(__file__).resolve().parents[1] / "data" / "tiny-llama"
PAD = "<|pad|>"


def added(content, number, special=True):
    return {"id": number, "content": content, "special": special, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False}


def listed_twice(tokenizer):
    tokenizer["added_tokens"] += [added(PAD, 2040), dict(tokenizer["added_tokens"][0], id=2041)]


def stale_ids(tokenizer):
    """As a file has them after its vocabulary was cut."""
    vocab, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    for token in sorted(vocab, key=vocab.get)[-20:]:
        del vocab[token]
    tokenizer["model"]["merges"] = [pair for pair in merges if "".join(pair if isinstance(pair, list) else pair.split(" ")) in vocab]
    tokenizer["added_tokens"] += [added("<|new|>", 2047), added("<|newer|>", 2046, False)]


def in_the_vocabulary(tokenizer):
    tokenizer["added_tokens"].append(added("er", 2047, False))


@pytest.mark.parametrize("change", [listed_twice, stale_ids, in_the_vocabulary], ids=lambda change: change.__name__)
def test_ids_of_the_library(quantd, checkpoints, tmp_path, change):
    folder = checkpoints / f"gguf-{change.__name__}"
    shutil.copytree(DATA, folder)
    tokenizer = json.loads((DATA / "tokenizer.json").read_text())
    change(tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    model = quantd.register(folder)
    job = quantd.run({"model": model, "method": "ggml", "quantization": {"type": "q8_0"}, "output": {"format": "gguf"}})
    reader = gguf.GGUFReader(quantd.download(job, tmp_path / "gguf") / "model.gguf")
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    types = reader.get_field("tokenizer.ggml.token_type").contents()
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert len(set(tokens)) == len(tokens) == 2048
    for number, text in enumerate(tokens):
        known = theirs.id_to_token(number)
        assert text == known or (known is None and types[number] == gguf.TokenType.UNUSED)
    for number, token in theirs.get_added_tokens_decoder().items():
        assert types[number] == (gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED)
    assert reader.get_field("tokenizer.chat_template").contents() == "{{ messages }}"
    assert reader.get_field("tokenizer.chat_template.tool_use").contents() == "{{ tools }}"
    assert reader.get_field("tokenizer.chat_templates").contents() == ["tool_use"]

    job = quantd.run({"model": model, "method": "rtn", "quantization": {"bits": 4, "group_size": 64}})
    copied = quantd.download(job, tmp_path / "copied") / "additional_chat_templates" / "tool_use.jinja"
    assert copied.read_text() == "{{ tools }}"
