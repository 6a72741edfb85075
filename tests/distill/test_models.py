"""Loading checkpoints, building students, the engine, and the errors of each."""

from __future__ import annotations

import contextlib
import copy
import logging
import shutil
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import transformers
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from distill.checks import UserError
from distill.models.build import STUDENTS, build_student, fresh_classifier, word_tokenizer
from distill.models.engine import Engine, isolated_rng, pick_amp, pick_device
from distill.models.fast import speed_up, trim_last_layer
from distill.models.loading import (
    load_classifier,
    load_encoder,
    load_tokenizer,
    output_order,
    quiet,
    resolve,
)
from distill.models.trial import try_out
from distill.settings import (
    STUDENT_KINDS,
    CheckpointStudent,
    FreshStudent,
    RunSettings,
    StudentSettings,
    TruncateStudent,
)

TEXTS = [("The soup was SOGGY!",), ("the plot", "was not café-like"), ("plot the plot",)]


# --- the order of outputs ---------------------------------------------------------------------------------------------


def outputs(*names: str) -> Any:
    return SimpleNamespace(config=SimpleNamespace(num_labels=len(names), id2label=dict(enumerate(names))))


TASK = ("not_entailment", "neutral", "entailment")


@pytest.mark.parametrize(
    ("names", "given", "expected"),
    [
        (TASK, None, [0, 1, 2]),
        (("entailment", "not_entailment", "neutral"), None, [1, 2, 0]),
        (("ENTAILMENT", "Not-Entailment", " neutral "), None, [1, 2, 0]),
        (("not entailment", "Entailment", "NEUTRAL"), None, [0, 2, 1]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), None, [0, 1, 2]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), ("neutral", "entailment", "not_entailment"), [2, 0, 1]),
        (("a", "b", "c"), ("neutral", "not-entailment", "Entailment"), [1, 0, 2]),
    ],
)
def test_output_order(names: tuple[str, ...], given: tuple[str, ...] | None, expected: list[int]) -> None:
    assert output_order(outputs(*names), TASK, given, "teacher t") == expected


def test_default_names_give_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        output_order(outputs("LABEL_0", "LABEL_1"), ("no", "yes"), None, "teacher t")
        output_order(outputs("yes", "no"), ("no", "yes"), None, "teacher u")
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["teacher t"]


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (("a", "b"), None, r"teacher t: has 2 classes, the task has 3 \(not_entailment, neutral, entailment\)"),
        (("a", "b", "c"), ("x", "y"), r"teacher t: labels lists 2 names for 3 outputs"),
        (
            ("a", "neutral", "b"),
            None,
            r"no output named 'not_entailment'; its outputs are a, neutral, b; set .*labels=",
        ),
        (("a", "b", "c"), ("neutral", "neutral", "entailment"), r"no output named 'not_entailment'"),
        (("LABEL_0", "LABEL_1", "x"), None, r"no output named"),
    ],
)
def test_output_order_refuses(names: tuple[str, ...], given: tuple[str, ...] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        output_order(outputs(*names), TASK, given, "teacher t")


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 3, 4])
def test_truncation_keeps_the_first_layers(zoo: dict[str, Path], layers: int) -> None:
    whole = transformers.BertModel.from_pretrained(zoo["bert"]).state_dict()
    model = load_classifier(zoo["bert"], ["no", "yes"], 0, "student", layers)
    assert model.config.num_hidden_layers == layers
    assert model.config.id2label == {0: "no", 1: "yes"}
    kept = {k.removeprefix("bert."): v for k, v in model.state_dict().items() if k.startswith("bert.")}
    assert {int(k.split(".")[2]) for k in kept if k.startswith("encoder.layer.")} == set(range(layers))
    assert all(torch.equal(v, whole[k]) for k, v in kept.items())
    assert not model.training


def test_the_seed_sets_the_new_head(zoo: dict[str, Path]) -> None:
    a, b, c = (load_classifier(zoo["bert"], ["x", "y", "z"], s, "student", 1).classifier.weight for s in (0, 0, 1))
    assert a.shape == (3, 16)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("name", ["bert", "roberta", "xlnet", "albert"])
def test_dropout_is_set_everywhere(zoo: dict[str, Path], name: str) -> None:
    for rate in (0.0, 0.25):
        model = load_classifier(zoo[name], ["no", "yes"], 0, "student", None, rate)
        assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {rate}


def test_broken_checkpoints(zoo: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"student: layers=5, but .* has only 4"):
        load_classifier(zoo["bert"], ["no", "yes"], 0, "student", 5)
    with pytest.raises(UserError, match=r"holds no weights for classifier\.bias; it is not a fine-tuned classifier"):
        load_classifier(zoo["bert"], None, 0, "teacher t")
    broken = tmp_path / "broken"
    shutil.copytree(zoo["bert"], broken)
    (broken / "config.json").write_text('{"model_type": "no such model"}')
    with pytest.raises(UserError, match=r"teacher t: .*config\.json is not a transformers configuration"):
        load_classifier(broken, None, 0, "teacher t")
    shutil.copy(zoo["bert"] / "config.json", broken)
    (broken / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match=r"encoder: .* could not be loaded") as caught:
        load_encoder(broken, "encoder")
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused(zoo: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(zoo["bert"], folder)
    (folder / "model.safetensors").unlink()
    torch.save(transformers.BertModel.from_pretrained(zoo["bert"]).state_dict(), folder / "pytorch_model.bin")
    for load in (lambda: load_encoder(folder, "x"), lambda: load_classifier(folder, ["a", "b"], 0, "x")):
        with pytest.raises(UserError, match=r"x: .*pickled has no \.safetensors weights; convert"):
            load()


def test_a_folder_without_a_tokenizer(zoo: dict[str, Path], tmp_path: Path) -> None:
    """The library would make up an empty vocabulary for a folder with a model only."""
    for file in ("config.json", "model.safetensors"):
        shutil.copy(zoo["bert"] / file, tmp_path)
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(tmp_path, "teacher t")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("package:no_such_package/model", r"teacher t: package no_such_package is not installed; .*no-such-package"),
        ("package:not-a-name/model", r"package not-a-name is not installed"),
        ("package:torch/no/such", r"package torch holds no checkpoint 'no/such'"),
        ("./nowhere", r"teacher t: no folder \./nowhere; name an existing folder or a hub id"),
        ("/no/such/folder", r"no folder /no/such/folder"),
        ("a/b/c", r"no folder a/b/c"),
        ("~/no-such-folder-here", r"no folder ~/no-such-folder-here"),
        (
            "some-model-nobody-has/ever-written",
            r"is neither a folder nor a complete copy in the hub's cache .*HF_HUB_OFFLINE=1 .*give an existing folder",
        ),
        ("", r"teacher t: "),
    ],
)
def test_resolve_refuses(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        resolve(path, "teacher t")
    assert "\n" not in str(caught.value)


def test_resolve(zoo: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(str(zoo["bert"]), "x") == zoo["bert"]
    with pytest.raises(UserError, match=r"has no config\.json"):
        resolve(str(tmp_path), "x")
    (tmp_path / "a_package" / "inner").mkdir(parents=True)
    (tmp_path / "a_package" / "__init__.py").touch()
    shutil.copy(zoo["bert"] / "config.json", tmp_path / "a_package" / "inner")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve("package:a_package/inner", "x") == tmp_path / "a_package" / "inner"


# --- students ---------------------------------------------------------------------------------------------------------


def test_word_tokenizer(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(TEXTS, 16)
    assert tokenizer.get_vocab() == word_tokenizer(TEXTS, 16).get_vocab()
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    assert words[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert words[5:8] == ["plot", "the", "was"]  # by count, then by letters: 3, 3, 2
    assert tokenizer("PLOT unseen cafe")["input_ids"] == [2, 5, 1, words.index("cafe"), 3]
    assert tokenizer("plot", "the")["token_type_ids"] == [0, 0, 0, 1, 1]
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path, "x")
    for text in (*TEXTS[0], *TEXTS[1], "", "Ünseen WORDS, the plot"):
        assert dict(again(text)) == dict(tokenizer(text))
    assert (again.pad_token_id, again.model_max_length) == (0, 16)
    assert len(word_tokenizer(TEXTS, 16, size=7)) == 7


@pytest.mark.parametrize(
    "bad", [{"hidden_size": 16, "num_attention_heads": 3}, {"hidden_size": 16, "num_attention_heads": 0}]
)
def test_a_config_that_makes_no_model(bad: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"student: config .* makes no BERT model"):
        fresh_classifier(bad, word_tokenizer(TEXTS, 16), ["a", "b"], 0, "student")


@pytest.mark.parametrize("key", ["hiden_size", "num_layers", "max_length"])
def test_an_unknown_key_of_a_config_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=rf"^student: config key={key} is not known; [^\n]*$"):
        fresh_classifier({key: 16}, word_tokenizer(TEXTS, 16), ["a", "b"], 0, "student")


@pytest.mark.parametrize(("name", "most"), [("bert", 512), ("roberta", 510), ("albert", 512), ("xlnet", None)])
def test_more_tokens_than_positions_are_refused(zoo: dict[str, Path], name: str, most: int | None) -> None:
    model = load_classifier(zoo[name], ["a", "b"], 0, "x")
    ids = torch.full((1, (most or 900) + 1), 7)
    tokenizer = load_tokenizer(zoo[name], "x")
    with torch.no_grad():
        assert model(ids[:, 1:]).logits.isfinite().all()
        try_out(model, tokenizer, TEXTS[:1], most or 900, "x")
        if most is None:
            return
        with pytest.raises((IndexError, RuntimeError)):
            model(ids)
    with pytest.raises(UserError, match=rf"^x: max_length={most + 1} is more than its {most} positions$"):
        try_out(model, tokenizer, TEXTS[:1], most + 1, "x")
    settings = CheckpointStudent(path=str(zoo[name]), max_length=most + 1)
    with pytest.raises(UserError, match=rf"^student: max_length={most + 1} "):
        build_student(settings, ("no", "yes"), TEXTS, 0)


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.mark.parametrize("kind", ["fresh", "truncate", "checkpoint"])
def test_build_student(zoo: dict[str, Path], kind: str) -> None:
    path, common = str(zoo["bert"]), {"max_length": 20, "dropout": 0.0}
    settings: StudentSettings = {
        "fresh": FreshStudent(config=SMALL, **common),
        "truncate": TruncateStudent(path=path, layers=2, **common),
        "checkpoint": CheckpointStudent(path=path, **common),
    }[kind]
    assert settings.kind == kind
    model, tokenizer = build_student(settings, ("no", "yes"), TEXTS, seed=4)
    again, _ = build_student(settings, ("no", "yes"), TEXTS, seed=4)
    other, _ = build_student(settings, ("no", "yes"), TEXTS, seed=5)
    assert model.config.num_hidden_layers == {"fresh": 1, "truncate": 2, "checkpoint": 4}[kind]
    assert model.config.id2label == {0: "no", 1: "yes"}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(model.classifier.weight, other.classifier.weight)
    assert len(tokenizer) == model.config.vocab_size
    assert not any(m.p for m in model.modules() if isinstance(m, torch.nn.Dropout))


def test_a_user_can_add_a_kind_of_student(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataclass among the settings and a builder in the registry, under one name; nothing else has to change."""

    @dataclass
    class OneWordStudent(FreshStudent):
        kind: ClassVar[str] = "one-word"
        word: str = "plot"

    def build(settings: OneWordStudent, labels: Any, texts: Any, seed: int) -> tuple[Any, Any]:
        tokenizer = word_tokenizer([(settings.word,)], settings.max_length)
        return fresh_classifier(SMALL, tokenizer, labels, seed, "student"), tokenizer

    monkeypatch.setitem(STUDENT_KINDS, "one-word", OneWordStudent)
    monkeypatch.setitem(STUDENTS, "one-word", build)
    settings = RunSettings.from_config({"student": {"kind": "one-word", "word": "soup", "max_length": 16}}).student
    model, tokenizer = build_student(settings, ("no", "yes"), TEXTS, 0)
    assert model.config.vocab_size == len(tokenizer) == 6
    with pytest.raises(UserError, match=r"^student\.kind= is not known; choose from .*fresh"):
        build_student(StudentSettings(), ("no", "yes"), TEXTS, 0)


# --- global effects ---------------------------------------------------------------------------------------------------

IMPORTS = """
import torch, transformers, logging, pkgutil, importlib
torch.set_num_threads(3)
transformers.logging.set_verbosity_info()
def state():
    from huggingface_hub.utils import are_progress_bars_disabled
    return (torch.get_num_threads(), transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled(),
            are_progress_bars_disabled(), torch.get_rng_state().sum().item(), logging.getLogger().level,
            len(logging.getLogger().handlers))
before = state()
import distill
names = [m.name for m in pkgutil.walk_packages(distill.__path__, "distill.")]
for name in names:
    importlib.import_module(name)
print(len(names), before == state(), before, state())
"""


def test_importing_changes_nothing_global() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True, timeout=120)
    count, same, *values = done.stdout.split(maxsplit=2)
    assert int(count) > 20
    assert same == "True", values


@pytest.mark.parametrize("bars", [True, False])
@pytest.mark.parametrize("hub_bars", [True, False])
def test_loading_leaves_verbosity_and_progress_bars_as_they_were(
    zoo: dict[str, Path], capfd: pytest.CaptureFixture[str], bars: bool, hub_bars: bool
) -> None:
    library = transformers.logging
    before = library.get_verbosity(), library.is_progress_bar_enabled(), are_progress_bars_disabled()
    try:
        library.set_verbosity_warning()
        (library.enable_progress_bar if bars else library.disable_progress_bar)()
        (enable_progress_bars if hub_bars else disable_progress_bars)()
        load_classifier(zoo["bert"], ["a", "b"], 0, "x", 1)
        load_encoder(zoo["bert"], "x")
        load_tokenizer(zoo["bert"], "x")
        fresh_classifier(SMALL, word_tokenizer(TEXTS, 16), ["a", "b"], 0, "x")
        with contextlib.suppress(UserError), quiet():
            assert library.get_verbosity() == logging.ERROR
            assert not library.is_progress_bar_enabled()
            raise UserError("x")
        assert library.get_verbosity() == logging.WARNING
        assert library.is_progress_bar_enabled() == bars
        assert are_progress_bars_disabled() != hub_bars
        assert capfd.readouterr() == ("", ""), "the library printed something"
    finally:
        library.set_verbosity(before[0])
        (library.enable_progress_bar if before[1] else library.disable_progress_bar)()
        (disable_progress_bars if before[2] else enable_progress_bars)()


# --- the shorter last layer ----------------------------------------------------------------------------------

FAMILIES = {
    "bert": (transformers.BertForSequenceClassification, transformers.BertConfig),
    "roberta": (transformers.RobertaForSequenceClassification, transformers.RobertaConfig),
    "xlm-roberta": (transformers.XLMRobertaForSequenceClassification, transformers.XLMRobertaConfig),
    "camembert": (transformers.CamembertForSequenceClassification, transformers.CamembertConfig),
    "electra": (transformers.ElectraForSequenceClassification, transformers.ElectraConfig),
}


@pytest.fixture
def batch() -> dict[str, Any]:
    ids = torch.randint(3, 40, (5, 9), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(9) < torch.tensor([9, 3, 5, 1, 8])[:, None]).long()
    return {"input_ids": torch.where(mask > 0, ids, 1), "attention_mask": mask}


def classifier(family: str, **more: Any) -> Any:
    model, config = FAMILIES[family]
    torch.manual_seed(3)
    sized = {**SMALL, "num_hidden_layers": 2, "vocab_size": 40, "embedding_size": 16, "initializer_range": 0.3}
    return model(config(**sized, **more)).eval()


def slopes(model: Any, batch: dict[str, Any]) -> list[torch.Tensor]:
    loss = model(**batch).logits.square().sum()
    return [g for g in torch.autograd.grad(loss, list(model.parameters()), allow_unused=True) if g is not None]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_trimmed_classifier_has_the_same_logits_and_gradients(
    family: str, attention: str, batch: dict[str, Any]
) -> None:
    """With padding. The last layer computes one token for each row."""
    model = classifier(family, attn_implementation=attention)
    with torch.no_grad():
        logits = model(**batch).logits
    gradients, names = slopes(model, batch), list(model.state_dict())
    assert trim_last_layer(model)
    shapes = []
    model.base_model.encoder.layer[-1].output.register_forward_hook(lambda *call: shapes.append(call[-1].shape))
    torch.testing.assert_close(model(**batch).logits.detach(), logits, rtol=1e-5, atol=1e-5)
    assert shapes == [(5, 1, 16)]
    trimmed = slopes(model, batch)
    for one, other in zip(trimmed, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == names


def test_a_copy_of_a_trimmed_classifier_has_its_own_last_layer(batch: dict[str, Any]) -> None:
    model = classifier("bert")
    assert trim_last_layer(model)
    other, logits = copy.deepcopy(model), model(**batch).logits.detach()
    with torch.no_grad():
        other.base_model.encoder.layer[-1].attention.self.value.weight.zero_()
    assert torch.equal(model(**batch).logits.detach(), logits)
    assert not torch.allclose(other(**batch).logits.detach(), logits)


def test_trimming_leaves_the_global_generator_alone() -> None:
    model = classifier("bert")
    before = torch.get_rng_state()
    assert trim_last_layer(model)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "missing", ["modeling_utils.ALL_ATTENTION_FUNCTIONS", "models.bert.modeling_bert.eager_attention_forward"]
)
def test_without_the_librarys_internals_the_plain_form_stays(
    missing: str, batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = classifier("bert")
    logits = model(**batch).logits.detach()
    module, _, name = f"transformers.{missing}".rpartition(".")
    stripped = types.ModuleType(module)
    stripped.__dict__.update({k: v for k, v in vars(sys.modules[module]).items() if k != name})
    monkeypatch.setitem(sys.modules, module, stripped)
    assert not trim_last_layer(model)
    assert torch.equal(model(**batch).logits.detach(), logits)


def test_a_model_with_other_layers_keeps_the_plain_form() -> None:
    config = SimpleNamespace(model_type="bert", is_decoder=False, _attn_implementation="sdpa", vocab_size=9)
    model = SimpleNamespace(config=config, base_model=SimpleNamespace(blocks=[]))
    speed_up(model, Engine(torch.device("cpu")))
    assert not trim_last_layer(model)
    assert not trim_last_layer(SimpleNamespace(config=SimpleNamespace()))


@pytest.mark.parametrize("name", ["albert", "xlnet"])
def test_other_families_keep_the_plain_form(zoo: dict[str, Path], name: str) -> None:
    model = load_classifier(zoo[name], ["a", "b"], 0, "x")
    assert not trim_last_layer(model)


@pytest.mark.parametrize("how", ["reads all tokens", "other layers"])
def test_a_model_whose_logits_would_change_keeps_the_plain_form(how: str, batch: dict[str, Any]) -> None:
    model = classifier("bert")
    if how == "reads all tokens":
        pooler = model.bert.pooler
        pooler.forward = lambda states: pooler.dense(states).tanh().mean(1)
    else:
        model.bert.encoder.layer[-1].attention.self.scaling = "?"
        model.bert.encoder.layer[-1].attention.self.forward = lambda states, **_: (states, None)
    logits = model(**batch).logits.detach()
    assert not trim_last_layer(model)
    assert torch.equal(model(**batch).logits.detach(), logits)


def test_building_leaves_the_global_generator_alone(zoo: dict[str, Path]) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    load_classifier(zoo["bert"], ["a", "b"], 0, "x")
    fresh_classifier(SMALL, word_tokenizer(TEXTS, 16), ["a", "b"], 0, "x")
    with isolated_rng(3):
        inside = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    with contextlib.suppress(RuntimeError), isolated_rng(3):
        assert torch.equal(torch.rand(4), inside)
        raise RuntimeError
    assert torch.equal(torch.get_rng_state(), before)


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match=r"device=cuda:99: (no CUDA device found; use device=cpu|only \d+ CUDA)"):
        pick_device("cuda:99")
    assert pick_amp("off", torch.device("cpu")) is None
    assert pick_amp("bf16", torch.device("cpu")) is torch.bfloat16


@pytest.mark.parametrize(("name", "there"), [("cuda", True), ("cuda:0", True), ("cuda:1", True), ("cuda:2", False)])
def test_devices_of_a_machine_with_two(name: str, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    if there:
        assert pick_device(name) == torch.device(name)
    else:
        with pytest.raises(UserError, match=r"device=cuda:2: only 2 CUDA devices found"):
            pick_device(name)


def test_an_engine_describes_itself() -> None:
    cpu = torch.device("cpu")
    assert Engine(cpu).describe() == {"amp": "off", "fast": True}
    assert Engine(cpu, torch.bfloat16, fast=False).describe() == {"amp": "bfloat16", "fast": False}
    assert len({Engine(cpu, amp, fast).form for amp in (None, torch.bfloat16) for fast in (True, False)}) == 4
