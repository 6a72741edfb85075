"""Checkpoints as people have them: padding that does not fit, weights under other names, unusual architectures, odd configs.

Nothing may go wrong silently: a checkpoint gives the outputs that `transformers` gives for each text alone, or it is refused in
one line before anything is trained. All checkpoints are tiny and random, made here.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Core
from tokenizers import models, pre_tokenizers

from distill.checks import UserError
from distill.data.splits import Task
from distill.models.build import build_student, word_tokenizer
from distill.models.engine import Engine
from distill.models.loading import load_classifier, load_encoder, load_tokenizer
from distill.models.trial import settle_padding, try_out, try_saving
from distill.settings import (
    CheckpointStudent,
    CheckpointTeacher,
    FinetuneTeacher,
    TeachersSettings,
    TransformerEncoderSettings,
    TruncateStudent,
)
from distill.student import Student
from distill.teachers.encoders import TransformerEncoder
from distill.teachers.sources import load_pool, load_teacher

pytestmark = pytest.mark.faults

CPU = Engine(torch.device("cpu"), None, True)
LENGTH = 24
BERT = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "initializer_range": 0.3}
DEPTH = {"num_hidden_layers": 3}
DECODER = BERT | DEPTH | {"num_key_value_heads": 2, "head_dim": 8}
GPT2 = {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 32, "initializer_range": 0.3}
DEBERTA = BERT | DEPTH | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}


def bare_tokenizer(task: Task, **special: str) -> Any:
    """A tokenizer of words that adds no special tokens to a text, as GPT-2's and Llama's; `special` names some of its own."""
    words = sorted({w for s in task.splits.values() for t in s.texts for part in t for w in part.lower().split()})
    core = Core(models.WordLevel({w: i for i, w in enumerate(["<|end|>", "<unk>", *words])}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **({"unk_token": "<unk>"} | special))


def words_of(task: Task) -> Any:
    """A tokenizer with BERT's special tokens, for all texts of a task."""
    return word_tokenizer([t for s in task.splits.values() for t in s.texts], 512)


def saved(folder: Path, name: str, tokenizer: Any, task: Task, sizes: dict[str, Any], **changes: Any) -> Path:
    """A classifier of the task with random weights, and its tokenizer. `changes` edit config.json afterwards."""
    torch.manual_seed(3)
    labels = {"id2label": dict(enumerate(task.label_names)), "label2id": {n: i for i, n in enumerate(task.label_names)}}
    config = transformers.CONFIG_MAPPING[name](**{"vocab_size": len(tokenizer), **labels, **sizes})
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    edit(folder, **changes)
    return folder


def edit(folder: Path, file: str = "config.json", **changes: Any) -> None:
    known = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(known | changes))


def rename(folder: Path, new: Callable[[str], str | None]) -> None:
    """Give every weight another name; None: leave it out."""
    weights = {new(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file({k: v for k, v in weights.items() if k is not None}, folder / "model.safetensors", {"format": "pt"})


def teacher(folder: Path, task: Task, home: Path, max_length: int = LENGTH) -> Any:
    return load_teacher(CheckpointTeacher(name="t", path=str(folder), max_length=max_length), task, home, CPU)


@torch.no_grad()
def alone(folder: Path, task: Task, role: str = "dev", max_length: int = LENGTH) -> np.ndarray:
    """Logits by `transformers`, one text at a time, so without padding."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in task.splits[role].texts:
        inputs = tokenizer(
            *text, truncation=True, max_length=max_length, return_tensors="pt", return_token_type_ids=False
        )
        rows.append(model(**inputs).logits[0])
    return torch.stack(rows).numpy()


def close(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(np.abs(b).max()))


def one_line(run: Callable[[], Any], *words: str) -> None:
    with pytest.raises(UserError) as caught:
        run()
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    for word in words:
        assert word in text, text


# --- padding ----------------------------------------------------------------------------------------------------------


def no_pad(task: Task, folder: Path) -> Path:
    """GPT-2 as it is published: no padding token anywhere."""
    return saved(folder, "gpt2", bare_tokenizer(task, eos_token="<|end|>"), task, GPT2)


def no_pad_llama(task: Task, folder: Path) -> Path:
    tokenizer = bare_tokenizer(task, eos_token="<|end|>")
    return saved(folder, "llama", tokenizer, task, DECODER | {"bos_token_id": 0, "eos_token_id": 0})


def pad_in_the_config_alone(task: Task, folder: Path) -> Path:
    tokenizer = bare_tokenizer(task, eos_token="<|end|>")
    return saved(folder, "llama", tokenizer, task, DECODER | {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1})


def pad_in_the_tokenizer_alone(task: Task, folder: Path) -> Path:
    return saved(folder, "gpt2", bare_tokenizer(task, pad_token="<|end|>"), task, GPT2)


def two_pads(task: Task, folder: Path) -> Path:
    tokenizer = bare_tokenizer(task, pad_token="<|end|>")
    return saved(folder, "llama", tokenizer, task, DECODER | {"pad_token_id": 1})


def pad_beyond_the_embeddings(task: Task, folder: Path) -> Path:
    """`[PAD]` added to the tokenizer, the embeddings not resized."""
    saved(folder, "gpt2", bare_tokenizer(task, eos_token="<|end|>"), task, GPT2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    return folder


def pad_of_minus_one(task: Task, folder: Path) -> Path:
    tokenizer = bare_tokenizer(task, eos_token="<|end|>")
    return saved(folder, "llama", tokenizer, task, DECODER | {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": -1})


def left(name: str, sizes: dict[str, Any]) -> Callable[[Task, Path], Path]:
    def make(task: Task, folder: Path) -> Path:
        tokenizer = words_of(task)
        tokenizer.padding_side = "left"
        if name in ("gpt2", "llama"):
            tokenizer.model_input_names = ["input_ids", "attention_mask"]
        pads = {"pad_token_id": tokenizer.pad_token_id}
        return saved(folder, name, tokenizer, task, sizes | pads)

    return make


PADDING: dict[str, Callable[[Task, Path], Path]] = {
    "no padding token: GPT-2": no_pad,
    "no padding token: Llama": no_pad_llama,
    "in the config alone": pad_in_the_config_alone,
    "in the tokenizer alone": pad_in_the_tokenizer_alone,
    "another in each": two_pads,
    "beyond the embeddings": pad_beyond_the_embeddings,
    "minus one": pad_of_minus_one,
    "left: GPT-2": left("gpt2", GPT2),
    "left: BERT": left("bert", BERT | DEPTH),
    "left: RoBERTa": left("roberta", BERT | DEPTH),
    "left: Llama": left("llama", DECODER),
}


@pytest.mark.parametrize("make", PADDING.values(), ids=PADDING)
def test_padding_is_harmless(make: Callable[[Task, Path], Path], small_task: Task, tmp_path: Path) -> None:
    """A teacher gives the logits of each text alone. So does a student, whose saved form needs no more care."""
    folder = make(small_task, tmp_path / "model")
    expected = alone(folder, small_task)
    assert float(np.ptp(expected, 0).min()) > 0.05  # the texts differ
    close(teacher(folder, small_task, tmp_path).compute(small_task.splits["dev"]), expected)
    settings = CheckpointStudent(path=str(folder), max_length=LENGTH)
    texts = small_task.splits["train"].texts
    student = Student(*build_student(settings, small_task.label_names, texts, 0), settings, CPU)
    close(student.predict(student.tokenize(small_task.splits["dev"].texts)).numpy(), expected)
    student.save(tmp_path / "student")
    classify = transformers.pipeline("text-classification", str(tmp_path / "student"), batch_size=8, top_k=None)
    if classify.tokenizer.pad_token is None:  # only a special token can be made one without changing how texts are read
        return
    answers = classify([t[0] for t in small_task.splits["dev"].texts], truncation=True, max_length=LENGTH)
    probs = np.array(
        [[next(a["score"] for a in row if a["label"] == n) for n in small_task.label_names] for row in answers]
    )
    np.testing.assert_allclose(probs, torch.from_numpy(expected).softmax(-1).numpy(), atol=1e-3)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_encoder_is_not_padded_on_the_left(pooling: str, small_task: Task, tmp_path: Path) -> None:
    vectors = []
    for side in ("right", "left"):
        folder = left("bert", BERT | DEPTH)(small_task, tmp_path / side)
        edit(folder, "tokenizer_config.json", padding_side=side)
        settings = TransformerEncoderSettings(path=str(folder), max_length=LENGTH, pooling=pooling)
        vectors.append(TransformerEncoder(settings, CPU).compute(small_task.splits["dev"]))
    np.testing.assert_array_equal(*vectors)


def test_a_text_without_tokens(small_task: Task, tmp_path: Path) -> None:
    folder = no_pad(small_task, tmp_path / "model")
    source = teacher(folder, small_task, tmp_path).load()
    tokens = source.tokenize([("",), ("the film",)])
    assert tokens.lengths.tolist() == [1, 2]
    assert source.predict(tokens).isfinite().all()


@pytest.mark.parametrize(("name", "more"), [("fnet", {}), ("convbert", {"embedding_size": 16})])
def test_padding_that_matters_by_design(
    name: str, more: dict[str, Any], small_task: Task, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = saved(tmp_path / "model", name, words_of(small_task), small_task, BERT | DEPTH | more)
    with caplog.at_level(logging.WARNING):
        assert teacher(folder, small_task, tmp_path).compute(small_task.splits["dev"]).shape == (24, 2)
    (line,) = [r.getMessage() for r in caplog.records if "padding" in r.getMessage()]
    assert re.match(r"teacher t: \w+ mixes padding into its outputs by design \(off by ", line)


def test_padding_that_matters_by_mistake(small_task: Task, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "bert", words_of(small_task), small_task, BERT | DEPTH)
    model, tokenizer = load_classifier(folder, None, 0, "x"), load_tokenizer(folder, "x")
    texts = small_task.splits["train"].texts
    before = torch.get_rng_state()
    one_line(
        lambda: try_out(model, tokenizer, texts, LENGTH, "teacher t", lambda batch: model(batch["input_ids"]).logits),
        "teacher t: BertForSequenceClassification gives a text other outputs in a padded batch than alone (off by ",
        "use a checkpoint whose model leaves padding out",
    )
    assert torch.equal(before, torch.get_rng_state())


def test_a_token_that_ends_texts_is_no_padding() -> None:
    """A head that looks for the last token that is not padding would overlook it."""
    core = Core(models.WordLevel({"a": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")
    model = transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**GPT2, vocab_size=3))
    assert settle_padding(model, tokenizer).id == 1
    ending = lambda text: {"input_ids": [0, 1]}  # noqa: E731
    plain = {"pad_token_id": None, "eos_token_id": 1, "unk_token_id": 2, "bos_token_id": None, "sep_token_id": None}
    fake = type(
        "Ending", (), plain | {"all_special_ids": [], "padding_side": "right", "__call__": staticmethod(ending)}
    )
    model.config.pad_token_id = None
    assert settle_padding(model, fake()).id == 2
    assert model.config.pad_token_id == 2


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Path]:
    """A BERT classifier of the bundled task."""
    from distill.data.load import load_task
    from distill.settings import CorpusSettings, TaskSettings

    sizes = CorpusSettings(train=64, reward=24, dev=24, test=24, pool=32, noise=0.0)
    task = load_task(TaskSettings(corpus=sizes))
    folder = saved(tmp_path_factory.mktemp("plain") / "model", "bert", words_of(task), task, BERT | DEPTH)
    return task, folder


def copy(plain: tuple[Task, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain[1], tmp_path / "model"))


WRAPPED: dict[str, Callable[[str], str]] = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "DataParallel": lambda name: f"module.{name}",
    "an attribute": lambda name: f"model.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "an attribute around": lambda name: f"model._orig_mod.{name}",
    "inside": lambda name: name.replace("bert.encoder", "bert._orig_mod.encoder"),
    "every layer": lambda name: re.sub(r"(layer\.\d+)", r"\1._checkpoint_wrapped_module", name),
}


@pytest.mark.parametrize("new", WRAPPED.values(), ids=WRAPPED)
def test_known_prefixes_are_taken_off(new: Callable[[str], str], plain: tuple[Task, Path], tmp_path: Path) -> None:
    task, clean = plain
    folder = copy(plain, tmp_path)
    rename(folder, new)
    assert load_file(folder / "model.safetensors").keys() != load_file(clean / "model.safetensors").keys()
    makes: list[Callable[[Path], Any]] = [
        lambda place: load_classifier(place, None, 0, "t"),
        lambda place: load_classifier(place, task.label_names, 0, "s", 2),
        lambda place: load_encoder(place, "e"),
    ]
    for make in makes:
        known = make(clean).state_dict()
        for name, value in make(folder).state_dict().items():
            assert torch.equal(value, known[name]), name
    # A saved student has the plain names again.
    load_classifier(folder, None, 0, "t").save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again/model.safetensors").keys() == load_file(clean / "model.safetensors").keys()


def without_layer(name: str) -> str | None:
    return None if ".layer.1." in name else name


LOST: dict[str, tuple[Callable[[str], str | None], str]] = {
    "an unknown prefix": (lambda name: f"backbone.net.{name}", "embeddings.word_embeddings.weight"),
    "another family": (lambda name: name.replace("bert.", "roberta.").replace("self.query", "q_lin"), "weight"),
    "a layer": (without_layer, "encoder.layer.1.attention.self.query.weight"),
    "one weight": (
        lambda name: None if name.endswith("layer.0.output.dense.bias") else name,
        "layer.0.output.dense.bias",
    ),
    "the embeddings": (lambda name: None if "embeddings" in name else name, "embeddings.word_embeddings.weight"),
}


@pytest.mark.parametrize(("new", "first"), LOST.values(), ids=LOST)
def test_missing_weights_are_named(
    new: Callable[[str], str | None], first: str, plain: tuple[Task, Path], tmp_path: Path
) -> None:
    """They would be drawn at random: in a teacher, a student, a truncated student, a teacher to fine-tune and an encoder."""
    task, texts = plain[0], plain[0].splits["train"].texts
    folder = copy(plain, tmp_path)
    rename(folder, new)
    said = (f"{folder} holds no weights for ", first, "save_pretrained")
    one_line(lambda: teacher(folder, task, tmp_path).load(), "teacher t: ", *said)
    whole = CheckpointStudent(path=str(folder), max_length=LENGTH)
    one_line(lambda: build_student(whole, task.label_names, texts, 0), "student: ", *said)
    cut = TruncateStudent(path=str(folder), max_length=LENGTH, layers=2)
    one_line(lambda: build_student(cut, task.label_names, texts, 0), "student: ", *said)
    tuned = FinetuneTeacher(name="f", path=str(folder), max_length=LENGTH)
    one_line(lambda: load_teacher(tuned, task, tmp_path, CPU), "teacher f: ", *said)
    encoder = TransformerEncoder(TransformerEncoderSettings(path=str(folder), max_length=LENGTH), CPU)
    one_line(lambda: encoder.compute(task.splits["dev"]), "encoder: ", *said)


def test_layers_that_are_cut_may_be_missing(plain: tuple[Task, Path], tmp_path: Path) -> None:
    folder = copy(plain, tmp_path)
    rename(folder, lambda name: None if ".layer.2." in name else name)
    load_classifier(folder, ["no", "yes"], 0, "student", 2)
    one_line(lambda: load_classifier(folder, ["no", "yes"], 0, "student", 3), "encoder.layer.2.")


def test_weights_of_more_layers_than_the_config_has(plain: tuple[Task, Path], tmp_path: Path) -> None:
    folder = copy(plain, tmp_path)
    edit(folder, num_hidden_layers=2)
    for labels in (None, ["no", "yes"]):
        one_line(lambda labels=labels: load_classifier(folder, labels, 0, "x"), "encoder.layer.2.", "has fewer layers")
    load_classifier(folder, ["no", "yes"], 0, "x", 1)


def test_only_a_head_may_be_new(plain: tuple[Task, Path], tmp_path: Path) -> None:
    """A new head may have another number of classes; poolers are missing in checkpoints of language models."""
    assert load_classifier(plain[1], ["a", "b", "c"], 0, "student").classifier.weight.shape == (3, 16)
    folder = copy(plain, tmp_path)
    rename(folder, lambda name: None if "pooler" in name or "classifier" in name else name)
    load_classifier(folder, ["a", "b", "c"], 0, "student")
    load_encoder(folder, "encoder")
    one_line(lambda: load_classifier(folder, None, 0, "teacher t"), "no weights for bert.pooler", "kind=finetune")
    edit(folder, intermediate_size=8)
    one_line(lambda: load_classifier(folder, ["a"], 0, "x"), "intermediate.dense", "has shape (32", "says (8")


# --- architectures ----------------------------------------------------------------------------------------------------


def refuse_length(folder: Path, task: Task, home: Path, most: int) -> None:
    """`most` tokens work, one more is refused before anything is stored or trained, with the number."""
    texts = task.splits["train"].texts
    teacher(folder, task, home, most).load()
    line = f"max_length={most + 1} is more than its {most} positions"
    one_line(lambda: teacher(folder, task, home, most + 1).load(), f"teacher t: {line}")
    settings = CheckpointStudent(path=str(folder), max_length=most + 1)
    one_line(lambda: build_student(settings, task.label_names, texts, 0), f"student: {line}")
    encoder = TransformerEncoder(TransformerEncoderSettings(path=str(folder), max_length=most + 1), CPU)
    one_line(lambda: encoder.load(task.splits["train"]), f"encoder: {line}")


@pytest.mark.parametrize(
    ("name", "more", "most"),
    [
        ("bert", {}, 32),
        ("roberta", {"pad_token_id": 0}, 31),
        ("mpnet", {"pad_token_id": 1}, 30),
        ("xlm-roberta", {"pad_token_id": 1}, 30),
        ("gpt2", {}, 32),
        ("opt", {"word_embed_proj_dim": 16, "ffn_dim": 32}, 32),
    ],
)
def test_the_positions_are_found_out(
    name: str, more: dict[str, Any], most: int, small_task: Task, tmp_path: Path
) -> None:
    sizes = GPT2 if name == "gpt2" else BERT | DEPTH | {"max_position_embeddings": 32} | more
    refuse_length(saved(tmp_path / "m", name, words_of(small_task), small_task, sizes), small_task, tmp_path, most)


def test_longformer_pads_to_its_window(small_task: Task, tmp_path: Path) -> None:
    sizes = BERT | DEPTH | {"max_position_embeddings": 34, "attention_window": 8, "pad_token_id": 1}
    folder = saved(tmp_path / "m", "longformer", words_of(small_task), small_task, sizes)
    refuse_length(folder, small_task, tmp_path, 32)
    close(teacher(folder, small_task, tmp_path).compute(small_task.splits["dev"]), alone(folder, small_task))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("deberta-v2", DEBERTA | {"position_biased_input": False, "max_position_embeddings": 32}),
        ("llama", DECODER | {"max_position_embeddings": 32}),
        ("modernbert", BERT | DEPTH | {"max_position_embeddings": 32}),
    ],
)
def test_relative_positions_have_no_end(
    name: str, sizes: dict[str, Any], small_task: Task, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = words_of(small_task)
    special = {"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    folder = saved(tmp_path / "m", name, tokenizer, small_task, sizes | special)
    with caplog.at_level(logging.WARNING):
        teacher(folder, small_task, tmp_path, 64).load()
    assert any("max_length=64 is more than the 32 positions" in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize("name", ["modernbert", "qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3", "longformer"])
def test_lists_of_one_entry_a_layer_are_cut(name: str, small_task: Task, tmp_path: Path) -> None:
    """A truncated student is trained, saved and loaded again: its configuration has two layers everywhere."""
    special = {"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    sizes = (BERT | DEPTH if name in ("modernbert", "longformer") else DECODER) | special | {"sliding_window": 8}
    sizes |= {"longformer": {"attention_window": 8}}.get(name, {})
    folder = saved(tmp_path / "m", name, words_of(small_task), small_task, sizes)
    settings = TruncateStudent(path=str(folder), max_length=LENGTH, layers=2, lr=0.01)
    train = small_task.splits["train"]
    student = Student(*build_student(settings, small_task.label_names, train.texts, 0), settings, CPU)
    tokens = student.tokenize(train.texts)
    student.step(tokens.batch(np.arange(8)), lambda logits: logits.square().sum(-1))
    student.save(tmp_path / "student")
    dev = small_task.splits["dev"]
    close(
        teacher(tmp_path / "student", small_task, tmp_path).compute(dev),
        student.predict(student.tokenize(dev.texts)).numpy(),
    )


def test_what_cannot_be_cut(small_task: Task, tmp_path: Path) -> None:
    sizes = {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32, "block_sizes": [1, 2]}
    folder = saved(tmp_path / "m", "funnel", words_of(small_task), small_task, sizes)
    settings = TruncateStudent(path=str(folder), max_length=LENGTH, layers=2)
    texts = small_task.splits["train"].texts
    one_line(
        lambda: build_student(settings, small_task.label_names, texts, 0),
        f"student: {folder} cannot be cut to 2 layers",
        "keep all its layers",
    )


def test_a_model_that_cannot_be_saved_is_refused_before_training(plain: tuple[Task, Path]) -> None:
    model, tokenizer = load_classifier(plain[1], None, 0, "x"), load_tokenizer(plain[1], "x")
    try_saving(model, tokenizer, "student")
    model.config.num_hidden_layers = 2  # so that the third layer has no place in what is loaded again
    one_line(lambda: try_saving(model, tokenizer, "student"), "student: bert.encoder.layer.2.", "is lost when")
    model.config.hidden_size = 20
    one_line(lambda: try_saving(model, tokenizer, "student"), "student: ")


def test_t5_as_an_encoder(small_task: Task, tmp_path: Path) -> None:
    """Its decoder would need inputs of its own. The encoder alone is used."""
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    folder = saved(
        tmp_path / "m", "t5", words_of(small_task), small_task, sizes | {"pad_token_id": 0, "eos_token_id": 3}
    )
    encoder = TransformerEncoder(TransformerEncoderSettings(path=str(folder), max_length=LENGTH), CPU)
    vectors = encoder.compute(small_task.splits["dev"])
    assert vectors.shape == (24, 16)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    rows = np.array([5, 1])
    np.testing.assert_allclose(encoder.at(small_task.splits["dev"], rows), vectors[rows], atol=1e-5)


def test_checkpoints_are_tried_before_a_teacher_is_fine_tuned(small_task: Task, tmp_path: Path) -> None:
    folder = saved(
        tmp_path / "m", "bert", words_of(small_task), small_task, BERT | DEPTH | {"max_position_embeddings": 8}
    )
    pool = [FinetuneTeacher(name="f"), CheckpointTeacher(name="t", path=str(folder), max_length=16)]
    home = tmp_path / "home"
    one_line(lambda: load_pool(TeachersSettings(pool=pool), small_task, home, CPU), "teacher t: max_length=16 is more")
    assert not home.exists()


@pytest.mark.parametrize("file", ["spm.model", "spiece.model", "sentencepiece.bpe.model"])
def test_a_tokenizer_that_needs_sentencepiece(
    file: str, plain: tuple[Task, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is read by the library, whatever its name is. Where the package is missing, that is what the line says."""
    monkeypatch.setattr("distill.models.loading._is_installed", lambda package: package != "sentencepiece")
    folder = copy(plain, tmp_path)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    (folder / file).write_bytes(b"not one")
    one_line(
        lambda: load_tokenizer(folder, "teacher t"), "teacher t: ", f"reading {file} needs the package sentencepiece"
    )


@pytest.mark.parametrize("name", ["CanineTokenizer", "ByT5Tokenizer"])
def test_tokenizers_without_a_file(name: str, plain: tuple[Task, Path], tmp_path: Path) -> None:
    folder = copy(plain, tmp_path)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    assert len(load_tokenizer(folder, "x")("the film")["input_ids"]) > 8


# --- configurations ---------------------------------------------------------------------------------------------------


CONFIGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "id2label from 1": ({"id2label": {"1": "a", "2": "b"}, "label2id": {"a": 1, "b": 2}}, ("id2label", "from 0")),
    "id2label with a gap": ({"id2label": {"0": "a", "2": "b"}, "label2id": {"a": 0, "b": 2}}, ("id2label", "from 0")),
    "id2label in words": ({"id2label": {"a": "0", "b": "1"}}, ("not a transformers configuration", "'a'")),
    "a list for id2label": ({"id2label": ["a", "b"]}, ("not a transformers configuration",)),
    "an activation nobody has": ({"hidden_act": "glue"}, ("could not be loaded", "glue")),
    "heads that do not divide": ({"num_attention_heads": 3}, ("could not be loaded",)),
    "chunks that do not divide": ({"chunk_size_feed_forward": 7}, ("BertForSequenceClassification cannot run on",)),
    "a padding token beyond the vocabulary": ({"pad_token_id": 99_999}, ("could not be loaded",)),
    "dropout above one": ({"hidden_dropout_prob": 2.0}, ("teacher t: ",)),
    "a smaller vocabulary": ({"vocab_size": 5}, ("has shape", "config.json")),
    "a width in words": ({"hidden_size": "wide"}, ("teacher t: ",)),
}


@pytest.mark.parametrize(("changes", "words"), CONFIGS.values(), ids=CONFIGS)
def test_faults_of_a_config_are_one_line(
    changes: dict[str, Any], words: tuple[str, ...], plain: tuple[Task, Path], tmp_path: Path
) -> None:
    folder = copy(plain, tmp_path)
    edit(folder, **changes)
    one_line(lambda: teacher(folder, plain[0], tmp_path).load(), *words)


@pytest.mark.parametrize("changes", [{"return_dict": False}, {"torchscript": True}, {"output_hidden_states": True}])
def test_how_outputs_are_returned_does_not_matter(
    changes: dict[str, Any], plain: tuple[Task, Path], tmp_path: Path
) -> None:
    task, clean = plain
    folder = copy(plain, tmp_path)
    edit(folder, **changes)
    dev = task.splits["dev"]
    np.testing.assert_array_equal(
        teacher(folder, task, tmp_path).compute(dev), teacher(clean, task, tmp_path).compute(dev)
    )
    settings = TransformerEncoderSettings(path=str(folder), max_length=LENGTH)
    assert TransformerEncoder(settings, CPU).compute(dev).shape == (24, 16)


def test_a_tokenizer_that_fails_on_texts(plain: tuple[Task, Path], tmp_path: Path) -> None:
    folder = copy(plain, tmp_path)
    known = json.loads((folder / "tokenizer.json").read_text())
    known["model"]["unk_token"] = "[GONE]"
    (folder / "tokenizer.json").write_text(json.dumps(known))
    source = teacher(folder, plain[0], tmp_path)
    one_line(lambda: source.load().tokenize([("never seen",)]), "its tokenizer fails on the texts", "Missing [UNK]")


def test_a_model_without_logits(plain: tuple[Task, Path]) -> None:
    model, tokenizer = load_classifier(plain[1], None, 0, "x"), load_tokenizer(plain[1], "x")
    model.forward = lambda input_ids, attention_mask, **more: SimpleNamespace(logits=input_ids.float())
    one_line(
        lambda: try_out(model, tokenizer, plain[0].splits["train"].texts, LENGTH, "student"),
        "student: BertForSequenceClassification cannot run on",
        "no logits of shape (1, 2)",
    )
