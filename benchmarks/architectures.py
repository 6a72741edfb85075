"""Which architectures of `transformers` work: as a teacher, as a truncated student and as an encoder.

    python benchmarks/architectures.py [--only bert,gpt2]

For every model that the installed library can make a sequence classifier of, one tiny checkpoint with random weights is saved
and used on the bundled task. Each use `works`, is `refused` with its line, or is `not applicable`: the library itself cannot run
such a model on a text alone. Any other exception is reported as `fault`. Writes benchmarks/results/architectures.json.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as NAMES

from distill.checks import UserError
from distill.data.load import load_task
from distill.data.splits import Task
from distill.losses import label_loss
from distill.models.build import build_student, word_tokenizer
from distill.models.engine import Engine
from distill.models.loading import quiet, reason
from distill.settings import (
    CheckpointTeacher,
    CorpusSettings,
    TaskSettings,
    TransformerEncoderSettings,
    TruncateStudent,
)
from distill.student import Student
from distill.teachers.encoders import TransformerEncoder
from distill.teachers.sources import load_teacher

ROOT = Path(__file__).resolve().parents[1]
CPU = Engine(torch.device("cpu"))
LENGTH = 24
LARGEST = 20_000_000  # parameters of a tiny checkpoint, at most
USES = ("teacher", "truncated student", "encoder")

# Sizes by the names that configurations give them.
WIDTH = "hidden_size d_model n_embd dim word_embed_proj_dim embedding_size emb_dim embedding_dim hidden_dim_size"
INNER = (
    "intermediate_size d_ff ffn_dim n_inner hidden_dim d_inner encoder_ffn_dim decoder_ffn_dim ffn_hidden_size dff "
    "feed_forward_size"
)
DEPTH = "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_decoder_layers"
HEADS = (
    "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_key_value_heads "
    "n_mamba_heads"
)
HALF = "head_dim d_kv kv_channels d_head q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim mamba_headdim"
POSITIONS = "max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length"
EXPERTS = "num_experts n_routed_experts num_local_experts moe_num_experts"
SPREAD = "initializer_range init_std embed_init_std"
SIZES: dict[str, Any] = {
    **dict.fromkeys(WIDTH.split(), 16),
    **dict.fromkeys(INNER.split(), 32),
    **dict.fromkeys(DEPTH.split(), 3),
    **dict.fromkeys(HEADS.split(), 2),
    **dict.fromkeys(HALF.split(), 8),
    **dict.fromkeys(POSITIONS.split(), 64),
    **dict.fromkeys(EXPERTS.split(), 4),
    **dict.fromkeys(SPREAD.split(), 0.3),
    "initializer_factor": 2.0,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "type_vocab_size": 2,
    "mamba_d_state": 4,
    "mamba_dt_rank": 4,
    "mamba_ngroups": 1,
    "entity_vocab_size": 8,
    "entity_emb_size": 16,
    "pronunciation_vocab_size": 64,
    "shape_vocab_size": 64,
    "pronunciation_embed_dim": 8,
    "shape_embed_dim": 8,
    "full_attention_interval": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MIXED = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
# What some families need besides.
OWN: dict[str, dict[str, Any]] = {
    "canine": {"type_vocab_size": 16, "max_position_embeddings": 256},
    "convbert": {"conv_kernel_size": 3},
    "funnel": {"block_sizes": [1, 2]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]], "window_size": 4},
    "gptj": {"rotary_dim": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "use_mamba_kernels": False},
    "layoutlmv3": {"visual_embed": False, "coordinate_size": 2, "shape_size": 4},
    "lilt": {"hidden_size": 24, "channel_shrink_ratio": 4},
    "longformer": {"attention_window": 8},
    "mobilebert": {"intra_bottleneck_size": 16, "true_hidden_size": 16},
    "mra": {"block_per_row": 1},
    "perceiver": {
        "d_latents": 16,
        "num_latents": 4,
        "num_self_attends_per_block": 3,
        "num_blocks": 1,
        "num_self_attention_heads": 2,
        "num_cross_attention_heads": 2,
        "qk_channels": 16,
        "v_channels": 16,
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "mistral4": {"head_dim": 16, "v_head_dim": 16},
    "qwen3_5_text": MIXED,
    "qwen3_next": MIXED,
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"]},
    "zamba2": {"n_mamba_heads": 4, "layers_block_type": ["linear_attention", "hybrid", "linear_attention"]},
    "reformer": {
        "attn_layers": ["local", "lsh", "local"],
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [8, 8],
        "attention_head_size": 8,
        "is_decoder": False,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_buckets": 2,
        "hash_seed": 0,
    },
}
VISION = {"image_size": 28, "patch_size": 14, "num_hidden_layers": 1}


def tiny_config(name: str, tokenizer: Any, task: Task) -> Any:
    """The configuration of a tiny classifier of the task."""
    special = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
    }

    def shrunk(default: Any, own: dict[str, Any]) -> Any:
        known = default.to_dict()
        changes = {k: v for k, v in (SIZES | special).items() if k in known and not isinstance(known[k], list | dict)}
        for key in getattr(default, "sub_configs", {}):
            part = getattr(default, key, None)
            if part is not None:
                changes[key] = shrunk(part, VISION if "vision" in key else OWN.get(part.model_type, {}))
        return type(default)(**(changes | own))

    config = shrunk(CONFIG_MAPPING[name](), OWN.get(name, {}))
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = tokenizer.pad_token_id
    config.id2label = dict(enumerate(task.label_names))
    config.label2id = {label: i for i, label in enumerate(task.label_names)}
    return config


def small_task() -> Task:
    """The bundled task with few instances."""
    return load_task(TaskSettings(corpus=CorpusSettings(train=32, reward=24, dev=16, test=16, pool=16, noise=0.0)))


def checkpoint(name: str, task: Task, folder: Path) -> str | None:
    """Save a tiny checkpoint; returns why that is not possible, or why the library cannot run it on a text."""
    words = word_tokenizer([t for split in task.splits.values() for t in split.texts], 64)
    tokenizer = transformers.CanineTokenizer() if name == "canine" else words
    try:
        config = tiny_config(name, words, task)
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForSequenceClassification.from_config(config).parameters())
        if size > LARGEST:
            return f"its smallest form here has {size:,} weights"
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        # A length that divides by everything: a family that needs such lengths is refused by the line that says so.
        text = tokenizer(
            *task.splits["train"].texts[0], padding="max_length", truncation=True, max_length=32, return_tensors="pt"
        )
        with torch.no_grad():
            model(input_ids=text["input_ids"], attention_mask=text["attention_mask"])
    except Exception as error:
        return reason(error)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return None


def as_teacher(folder: Path, task: Task, home: Path) -> None:
    """Store logits of a split."""
    spec = CheckpointTeacher(name="t", path=str(folder), max_length=LENGTH)
    logits = load_teacher(spec, task, home, CPU).compute(task.splits["dev"])
    assert np.isfinite(logits).all()


def as_student(folder: Path, task: Task, home: Path) -> None:
    """Train two of three layers for a few steps, save them, and load them as a teacher with the same logits."""
    settings = TruncateStudent(path=str(folder), max_length=LENGTH, layers=2, lr=1e-3)
    train, dev = task.splits["train"], task.splits["dev"]
    student = Student(*build_student(settings, task.label_names, train.texts, 0), settings, CPU)
    tokens, labels = student.tokenize(train.texts), torch.from_numpy(train.labels)
    student.begin(3)
    for i in range(3):
        rows = np.arange(8 * i, 8 * i + 8)
        student.step(tokens.batch(rows), label_loss(labels[rows]))
    student.save(home / "student")
    spec = CheckpointTeacher(name="again", path=str(home / "student"), max_length=LENGTH)
    again = load_teacher(spec, task, home, CPU).compute(dev)
    assert np.allclose(again, student.predict(student.tokenize(dev.texts)).numpy(), rtol=1e-3, atol=1e-4)


def as_encoder(folder: Path, task: Task, home: Path) -> None:
    """Vectors of a split."""
    settings = TransformerEncoderSettings(path=str(folder), max_length=LENGTH)
    assert np.isfinite(TransformerEncoder(settings, CPU).compute(task.splits["dev"])).all()


RUNS: dict[str, Callable[[Path, Task, Path], None]] = dict(zip(USES, (as_teacher, as_student, as_encoder), strict=True))


def outcome(run: Callable[[Path, Task, Path], None], folder: Path, task: Task, home: Path) -> str:
    """`works`, `refused: LINE` or `fault: EXCEPTION` of one use."""
    try:
        run(folder, task, home)
    except UserError as error:
        return f"refused: {str(error).replace(str(folder), 'FOLDER')}"
    except Exception as error:
        return f"fault: {reason(error)}"
    return "works"


def examine(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """For every architecture, what each use of it comes to."""
    task, found = small_task(), {}
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place) / "model"
                cannot = checkpoint(name, task, folder)
                if cannot:
                    found[name] = dict.fromkeys(USES, f"not applicable: {cannot}")
                else:
                    found[name] = {use: outcome(run, folder, task, Path(place)) for use, run in RUNS.items()}
    return found


def main() -> None:
    """Examine all architectures; write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of architectures, separated by commas")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/architectures.json")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    names = args.only.split(",") if args.only else sorted(NAMES)
    found: dict[str, Any] = {}
    for name in names:
        found |= examine([name])
        print(name, *(f"{use}: {said}" for use, said in found[name].items()), sep="\n  ", flush=True)
    counts = {use: dict(Counter(row[use].partition(":")[0] for row in found.values())) for use in USES}
    print(json.dumps(counts, indent=1))
    results = {"transformers": transformers.__version__, "reproduce": "python benchmarks/architectures.py"}
    results |= {"counts": counts, "architectures": found}
    args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
