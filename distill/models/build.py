"""Building a student: one function for each kind, and the registry `STUDENTS` that `build_student` looks them up in.

A kind of your own is a dataclass in `distill.settings.STUDENT_KINDS` and a function in `STUDENTS`, both under its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import transformers
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from distill.checks import UserError, one_of
from distill.models.engine import isolated_rng
from distill.models.loading import load_classifier, load_tokenizer, quiet, resolve
from distill.models.trial import try_out, try_saving
from distill.settings import CheckpointStudent, FreshStudent, StudentSettings, TruncateStudent

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
Texts = Sequence[tuple[str, ...]]


def word_tokenizer(texts: Texts, max_length: int, size: int = 30_000) -> Any:
    """A lower-casing tokenizer whose tokens are the `size` most frequent words of `texts`, special tokens included.

    It depends on the texts only, not on their order.
    """
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordLevel

    normalizer = normalizers.BertNormalizer()
    splitter = pre_tokenizers.BertPreTokenizer()
    counts = Counter(
        word for text in texts for part in text for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(part))
    )
    words = [w for w, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))][: size - len(SPECIAL_TOKENS)]
    core = Tokenizer(WordLevel({w: i for i, w in enumerate((*SPECIAL_TOKENS, *words))}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizer, splitter
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
    """A BERT classifier with random weights.

    Args:
        config: fields of `BertConfig`.
        tokenizer: its tokenizer, which sets the size of the vocabulary.
        labels: names of the classes.
        seed: seed of the weights.
        what: how error messages name the model.

    Raises:
        UserError: for an unknown field, or values that do not make a model.
    """
    known = sorted(BertConfig().to_dict())
    for key in config:
        one_of(key, known, f"{what}: config key")
    defaults = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "id2label": dict(enumerate(labels)),
        "label2id": {name: i for i, name in enumerate(labels)},
    }
    try:
        with quiet(), isolated_rng(seed):
            return BertForSequenceClassification(BertConfig(**(defaults | config)))
    except Exception as error:  # transformers and torch raise errors of many classes for bad values
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{what}: config {config} makes no BERT model ({type(error).__name__}: {reason})") from None


Built = tuple[nn.Module, Any]  # a model and its tokenizer


def build_fresh(settings: FreshStudent, labels: Sequence[str], texts: Texts, seed: int) -> Built:
    """Kind `fresh`: random weights. The tokenizer is that of `path`, or made from `texts`."""
    if settings.path is None:
        tokenizer = word_tokenizer(texts, settings.max_length)
    else:
        tokenizer = load_tokenizer(resolve(settings.path, "student"), "student")
    config = {"max_position_embeddings": settings.max_length, **settings.config}
    if settings.dropout is not None:
        config |= {"hidden_dropout_prob": settings.dropout, "attention_probs_dropout_prob": settings.dropout}
    return fresh_classifier(config, tokenizer, labels, seed, "student"), tokenizer


def build_truncate(settings: TruncateStudent, labels: Sequence[str], texts: Texts, seed: int) -> Built:
    """Kind `truncate`: the first `layers` layers of a checkpoint, with a new head."""
    folder = resolve(str(settings.path), "student")
    model = load_classifier(folder, labels, seed, "student", settings.layers, settings.dropout)
    return model, load_tokenizer(folder, "student")


def build_checkpoint(settings: CheckpointStudent, labels: Sequence[str], texts: Texts, seed: int) -> Built:
    """Kind `checkpoint`: a whole checkpoint, with a new head."""
    folder = resolve(str(settings.path), "student")
    model = load_classifier(folder, labels, seed, "student", None, settings.dropout)
    return model, load_tokenizer(folder, "student")


STUDENTS: dict[str, Callable[[Any, Sequence[str], Texts, int], Built]] = {
    FreshStudent.kind: build_fresh,
    TruncateStudent.kind: build_truncate,
    CheckpointStudent.kind: build_checkpoint,
}


def build_student(settings: StudentSettings, labels: Sequence[str], texts: Texts, seed: int) -> Built:
    """The student's model and tokenizer.

    Args:
        settings: settings of one of the kinds in `STUDENTS`.
        labels: names of the C classes.
        texts: training texts, from which a student of kind `fresh` without a `path` makes its vocabulary.
        seed: seed of the weights that are drawn.

    Raises:
        UserError: for an unknown kind, or a model that cannot run, be trained or be saved: all of it is tried out here.
    """
    one_of(settings.kind, tuple(STUDENTS), "student.kind")
    model, tokenizer = STUDENTS[settings.kind](settings, labels, texts, seed)
    try_out(model, tokenizer, texts, settings.max_length, "student", trains=True)
    if settings.kind != FreshStudent.kind:
        try_saving(model, tokenizer, "student")
    return model, tokenizer
