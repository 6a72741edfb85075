"""The folder of the tutorial on support tickets: 600 tickets of three classes, two fine-tuned checkpoints, one LLM's answers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tokenizers
import torch
import torch.nn.functional as F
import transformers

from distill.models.engine import Engine, isolated_rng
from distill.settings import StudentSettings
from distill.student import Student

LABELS = ("account", "billing", "technical")
SAID = {
    "account": ["reset my password", "change my email address", "close the account", "log in with the new phone"],
    "billing": ["a second invoice", "the refund for last month", "my card was charged twice", "the price on the bill"],
    "technical": ["the app crashes on start", "an error when I export", "the page stays white", "sync stops halfway"],
}
OPENINGS = ["Hello,", "Hi team,", "Urgent!", "Good morning,", "For the third time:"]
FRAMES = ["please help with {}", "I have a question about this: {}", "{} and nobody answers", "can you look at {}?"]
CLOSINGS = ["Thanks.", "Best, Kim", "Sent from my phone", "", "I am waiting for your call."]


def tickets(count: int, seed: int) -> pd.DataFrame:
    """`count` tickets with their labels. One in eight mentions a second matter too, which is not what it is about."""
    draw, rows = random.Random(seed), []
    for _ in range(count):
        label = draw.choice(LABELS)
        text = draw.choice(FRAMES).format(draw.choice(SAID[label]))
        if draw.random() < 0.125:
            text += f", not about {draw.choice(SAID[draw.choice(LABELS)])}"
        rows.append(
            {
                "ticket": f"{draw.choice(OPENINGS)} {text}. Case {draw.randrange(10**6)}. {draw.choice(CLOSINGS)}",
                "queue": label,
            }
        )
    return pd.DataFrame(rows)


def make_folder(folder: Path) -> None:
    """Write train.csv, test.csv, new.csv, the checkpoints `bert` and `roberta`, and llm.csv."""
    train, test = tickets(450, 0), tickets(150, 1)
    train.to_csv(folder / "train.csv", index=False)
    test.to_csv(folder / "test.csv", index=False)
    tickets(40, 2)[["ticket"]].to_csv(folder / "new.csv", index=False)
    texts = list(train["ticket"])
    common: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    common |= {"num_hidden_layers": 2, "max_position_embeddings": 140, "initializer_range": 0.1}
    for name, order in (
        ("bert", ("technical", "billing", "account")),
        ("roberta", ("billing", "account", "technical")),
    ):
        tokenizer = word_pieces(texts) if name == "bert" else byte_pairs(texts)
        named = {"id2label": dict(enumerate(order)), "label2id": {label: i for i, label in enumerate(order)}}
        kind = transformers.BertConfig if name == "bert" else transformers.RobertaConfig
        config = kind(**common, **named, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
        with isolated_rng(0):
            model = transformers.AutoModelForSequenceClassification.from_config(config)
        fine_tune(model, tokenizer, train, order)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    answers = {}
    for split, frame in (("train", train), ("test", test)):
        answers |= {f"{split}-{i}": label for i, label in enumerate(frame["queue"])}
    draw = np.random.default_rng(3)
    probs = np.array([draw.dirichlet([1.0 + 6.0 * (label == gold) for label in LABELS]) for gold in answers.values()])
    pd.DataFrame({"id": list(answers), **dict(zip(LABELS, probs.T, strict=True))}).to_csv(
        folder / "llm.csv", index=False
    )


def word_pieces(texts: list[str]) -> Any:
    """A WordPiece tokenizer made of the texts."""
    core = tokenizers.BertWordPieceTokenizer()
    core.train_from_iterator(texts, vocab_size=200, show_progress=False)
    return transformers.BertTokenizer(vocab=core.get_vocab())


def byte_pairs(texts: list[str]) -> Any:
    """A byte-level BPE tokenizer made of the texts."""
    core = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    core.train_from_iterator(texts, vocab_size=400, special_tokens=special, show_progress=False)
    parts = json.loads(core.to_str())["model"]
    return transformers.RobertaTokenizer(vocab=parts["vocab"], merges=[tuple(m) for m in parts["merges"]])


def fine_tune(model: Any, tokenizer: Any, frame: pd.DataFrame, order: tuple[str, ...]) -> None:
    """Train a classifier on the tickets for a second or two."""
    student = Student(
        model, tokenizer, StudentSettings(lr=2e-3, max_length=64), Engine(torch.device("cpu"), fast=False)
    )
    tokens = student.tokenize([(text,) for text in frame["ticket"]])
    gold = torch.tensor([order.index(label) for label in frame["queue"]])
    draw = np.random.default_rng(0)
    with isolated_rng(0):
        for _ in range(60):
            rows = draw.integers(len(gold), size=32)
            student.step(tokens.batch(rows), lambda z, rows=rows: F.cross_entropy(z, gold[rows], reduction="none"))
