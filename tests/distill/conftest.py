"""Tiny checkpoints on disk, and small tasks made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from distill.data import bundled
from distill.data.load import load_task
from distill.data.splits import Split, Task
from distill.settings import CorpusSettings, TaskSettings

CORPUS = bundled.reviews(150, np.random.default_rng(5)).texts
COMMON = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "initializer_range": 0.2}


def train(core: Any, trainer: Any) -> Any:
    core.train_from_iterator(CORPUS, trainer)
    return core


def wordpiece() -> Any:
    core = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    train(core, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False))
    return transformers.BertTokenizer(vocab=core.get_vocab())


def byte_bpe() -> Any:
    core = tokenizers.ByteLevelBPETokenizer()
    core.train_from_iterator(
        CORPUS, vocab_size=400, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False
    )
    parts = json.loads(core.to_str())["model"]
    return transformers.RobertaTokenizer(vocab=parts["vocab"], merges=[tuple(m) for m in parts["merges"]])


def pieces(special: list[str]) -> list[tuple[str, float]]:
    """The vocabulary of a unigram model, as SentencePiece would give it."""
    core = tokenizers.Tokenizer(models.Unigram())
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    train(
        core,
        trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False),
    )
    return [tuple(p) for p in json.loads(core.to_str())["model"]["vocab"]]


def unigram_left() -> Any:
    special = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]
    return transformers.XLNetTokenizer(vocab=pieces(special), unk_id=0)


def unigram_right() -> Any:
    return transformers.AlbertTokenizer(vocab=pieces(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]))


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four families of pretrained model with random weights and four kinds of tokenizer, each in a folder of its own."""
    t = transformers
    made = {
        "bert": (t.BertModel, t.BertConfig, wordpiece(), COMMON | {"num_hidden_layers": 4}),
        "roberta": (
            t.RobertaModel,
            t.RobertaConfig,
            byte_bpe(),
            COMMON | {"num_hidden_layers": 1, "type_vocab_size": 1},
        ),
        "xlnet": (
            t.XLNetModel,
            t.XLNetConfig,
            unigram_left(),
            {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32, "initializer_range": 0.2},
        ),
        "albert": (
            t.AlbertModel,
            t.AlbertConfig,
            unigram_right(),
            COMMON | {"num_hidden_layers": 1, "embedding_size": 8},
        ),
    }
    root = tmp_path_factory.mktemp("zoo")
    for name, (model, config, tokenizer, widths) in made.items():
        torch.manual_seed(len(name))
        sized = config(**widths, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
        model(sized).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in made}


@pytest.fixture(scope="session")
def small_task() -> Task:
    """The bundled task in its smallest useful size; the labels of training are clean."""
    return load_task(TaskSettings(corpus=CorpusSettings(train=64, reward=24, dev=24, test=24, pool=32, noise=0.0)))


@pytest.fixture(scope="session")
def pairs() -> Callable[..., Split]:
    """`pairs(count)`: a train split of text pairs of uneven lengths."""

    def make(count: int = 13, role: str = "train") -> Split:
        made = bundled.reviews(2 * count, np.random.default_rng(3)).texts
        return Split(
            role,
            np.array([f"p{i}" for i in range(count)]),
            list(zip(made[:count], made[count:], strict=True)),
            np.arange(count) % 2,
        )

    return make
