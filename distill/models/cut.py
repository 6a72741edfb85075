"""Tokenizers that cut long texts by themselves, for students that are used without this project.

`transformers.pipeline` ignores the truncation in a saved tokenizer unless every call asks for it, and a text that is longer
than the student's positions then ends in an error of torch. So a saved student's `tokenizer.json` gets one more step, which
keeps the beginning of the text that the student was trained to read. `load_tokenizer` takes the step out again.

- Words and WordPiece after BERT's splitting (`fresh` students, BERT, MiniLM, DistilBERT, ELECTRA): exactly the tokens of
  `truncation=True`. A regular expression made of the vocabulary counts them.
- Other tokenizers: the text is cut after as many words as the student reads tokens. It is still longer than in training,
  which is harmless as long as the model has positions for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from tokenizers import pre_tokenizers

from distill.cache import write_whole
from distill.data.tokens import Padding

MARK = "(?#cut)"  # a comment of the regular expression, by which the step is found again
PUNCTUATION = r"\p{P}$+<=>^`|~"  # what BERT's splitting makes a word of its own
TRIED = 20  # texts that the changed tokenizer is compared on
SPACES = r"\s\u2581"  # SentencePiece writes a space as U+2581


def save_cut(tokenizer: Any, folder: Path, max_length: int) -> bool:
    """Change the files of a tokenizer that was saved to `folder`, so that it cuts texts to `max_length` tokens.

    Of a pair, each text is cut to what a text alone may have.

    Args:
        tokenizer: the tokenizer that the files are of.
        folder: where they are.
        max_length: longest text that the student was trained on, in tokens with special ones.

    Returns:
        Whether the step was added. It is not where the tokenizer is not one of the library `tokenizers`, or would give
        other tokens for a text that is not too long. The length is written to the files in any case.
    """
    file, config_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
    config = json.loads(config_file.read_bytes()) | {"model_max_length": max_length}
    write_whole(config_file, _json(config))
    if not file.is_file():
        return False
    before = {path: path.read_bytes() for path in (file, config_file)}
    content = json.loads(before[file])
    own = content["pre_tokenizer"]
    step = _step(content, max(1, max_length - tokenizer.num_special_tokens_to_add(pair=False)))
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [step, own]} if own else step
    content["truncation"] = {"direction": "Right", "max_length": max_length, "strategy": "LongestFirst", "stride": 0}
    # Classes such as BertTokenizer read the vocabulary alone and make the other steps themselves.
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": list(tokenizer.model_input_names),
        "padding_side": tokenizer.padding_side,
    }
    write_whole(file, json.dumps(content, ensure_ascii=False).encode())
    write_whole(config_file, _json(config))
    if _agree(tokenizer, folder, max_length):
        return True
    for path, old in before.items():
        write_whole(path, old)
    return False


def uncut(tokenizer: Any) -> None:
    """Take out the step that `save_cut` added: this project says for every call how long a text may be."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    steps = getattr(core, "pre_tokenizer", None)
    more = isinstance(steps, pre_tokenizers.Sequence)
    first = steps[0] if more else steps  # type: ignore[index]
    if core is not None and isinstance(first, pre_tokenizers.Split) and MARK.encode() in first.__getstate__():
        core.pre_tokenizer = steps[1] if more else None  # type: ignore[index]


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _agree(tokenizer: Any, folder: Path, max_length: int) -> bool:
    """Whether the files in `folder` give the tokens of `tokenizer` for texts that are not too long, and pad alike."""
    try:
        again = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:  # tokenizers raise exceptions of many classes
        return False
    if Padding.of(again) != Padding.of(tokenizer):
        return False
    # Texts in the tokenizer's own language and signs: its tokens in a random order.
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(tokenizer), size=size) for size in rng.integers(1, max(2, max_length // 2), TRIED)]
    for text in ("", "a", *(tokenizer.decode(ids, skip_special_tokens=True) for ids in drawn)):
        expected = tokenizer(text, truncation=True, max_length=max_length)
        if tokenizer(text)["input_ids"] == expected["input_ids"] and dict(again(text)) != dict(expected):
            return False
    return True


def _step(content: dict[str, Any], count: int) -> dict[str, Any]:
    """The pre-tokenizer that keeps the first `count` tokens (or words) of a text, as in `tokenizer.json`."""
    model, own = content["model"], content["pre_tokenizer"] or {}
    if own.get("type") == "BertPreTokenizer" and model.get("type") in ("WordLevel", "WordPiece"):
        pattern = _words(count) if model["type"] == "WordLevel" else _pieces(model, count)
    else:
        pattern = rf"\A(?:[{SPACES}]*+[^{SPACES}]++){{0,{count}}}"
    return {"type": "Split", "pattern": {"Regex": MARK + pattern}, "behavior": "Removed", "invert": True}


def _words(count: int) -> str:
    """Matches the first `count` words as BERT's splitting makes them: signs one by one, other characters together."""
    return rf"\A(?:\s*+(?:[{PUNCTUATION}]|[^\s{PUNCTUATION}]++)){{0,{count}}}"


def _pieces(model: dict[str, Any], count: int) -> str:
    """Matches the first `count` WordPiece tokens.

    WordPiece takes the longest piece that a word begins with, then the longest that continues it, and so on. A word that
    cannot be taken apart in this way, or is too long, is one unknown token.
    """
    prefix, longest = model["continuing_subword_prefix"], model["max_input_chars_per_word"]
    letter = rf"[^\s{PUNCTUATION}]"
    first = _longest(word for word in model["vocab"] if not word.startswith(prefix))
    later = _longest(word.removeprefix(prefix) for word in model["vocab"] if word.startswith(prefix))
    whole = rf"(?!{letter}{{{longest + 1}}})(?=\g<first>\g<later>*+(?!{letter}))"
    start = rf"\s*+(?:[{PUNCTUATION}]|{whole}\g<first>|{letter}++)"
    inside = rf"(?<={letter})(?={letter})\g<later>"
    return rf"(?<first>{first}){{0}}(?<later>{later}){{0}}\A(?:{inside}|{start}){{0,{count}}}"


def _longest(words: Iterable[str]) -> str:
    """Matches the longest of `words` that the text continues with."""
    root: dict[str, Any] = {}
    for word in words:
        node = root
        for character in word:
            node = node.setdefault(character, {})
        node[""] = {}  # a word ends here
    root.pop("", None)
    return f"(?>{_branches(root)})" if root else "(?!)"


def _branches(node: dict[str, Any]) -> str:
    """The regular expression of a node of the tree of words: the longest continuation goes first."""
    ends, branches = "", []
    leaves = "".join(_literal(c) for c, below in node.items() if c and set(below) == {""})
    for character, below in node.items():
        if character and set(below) != {""}:
            branches.append(_literal(character) + _branches(below))
    if leaves:
        branches.append(f"[{leaves}]")
    if "" in node:
        ends = "?"
    return f"(?:{'|'.join(branches)}){ends}" if branches else ""


def _literal(character: str) -> str:
    """A character as it stands for itself in a regular expression, inside of brackets and outside."""
    return character if character.isalnum() else f"\\{character}"
