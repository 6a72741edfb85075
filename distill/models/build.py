"""Building a student: a truncated checkpoint, a checkpoint as it is, or random weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import transformers
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
)

from distill.checks import UserError, one_of
from distill.models.engine import isolated_rng
from distill.models.loading import check_length, load_classifier, load_tokenizer, resolve
from distill.settings import StudentSettings

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def word_tokenizer(texts: Sequence[tuple[str, ...]], max_length: int, size: int = 30_000) -> Any:
    """A lower-casing word-level tokenizer with the `size` commonest words of `texts`; the same texts give the same one."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordLevel

    rules = normalizers.BertNormalizer()
    cut = pre_tokenizers.BertPreTokenizer()
    counts = Counter(
        word for text in texts for part in text for word, _ in cut.pre_tokenize_str(rules.normalize_str(part))
    )
    words = [w for w, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))][: size - len(SPECIAL_TOKENS)]
    core = Tokenizer(WordLevel({w: i for i, w in enumerate((*SPECIAL_TOKENS, *words))}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = rules, cut
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def fresh_classifier(config: dict[str, Any], tokenizer: Any, labels: Sequence[str], seed: int, what: str) -> nn.Module:
    """A BERT classifier with random weights; `config` holds BertConfig fields."""
    names = dict(enumerate(labels))
    known = BertConfig().to_dict()
    for key in config:
        one_of(key, sorted(known), f"{what}: config key")
    try:
        full = BertConfig(
            **{
                "vocab_size": len(tokenizer),
                "pad_token_id": tokenizer.pad_token_id,
                "id2label": names,
                "label2id": {v: k for k, v in names.items()},
                **config,
            }
        )
        with isolated_rng(seed):
            return BertForSequenceClassification(full)
    except Exception as error:  # transformers and torch raise many kinds, all meaning: no such model
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{what}: config {config} makes no BERT model ({type(error).__name__}: {reason})") from None


def build_student(
    settings: StudentSettings, labels: Sequence[str], texts: Sequence[tuple[str, ...]], seed: int
) -> tuple[nn.Module, Any]:
    """The student's model and tokenizer. `texts` (of train) make the vocabulary of a fresh student without a `path`."""
    what = "student"
    if settings.kind == "fresh":
        tokenizer = (
            load_tokenizer(resolve(settings.path, what), what)
            if settings.path
            else word_tokenizer(texts, settings.max_length)
        )
        config = {"max_position_embeddings": settings.max_length, **settings.config}
        if settings.dropout is not None:
            config |= {"hidden_dropout_prob": settings.dropout, "attention_probs_dropout_prob": settings.dropout}
        model = fresh_classifier(config, tokenizer, labels, seed, what)
        check_length(model, settings.max_length, what)
        return model, tokenizer
    folder = resolve(str(settings.path), what)
    layers = settings.layers if settings.kind == "truncate" else None
    model = load_classifier(folder, labels, seed, what, layers, settings.dropout)
    check_length(model, settings.max_length, what)
    return model, load_tokenizer(folder, what)
