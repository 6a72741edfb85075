"""Faster forms of a classifier's forward pass. They give the same logits and gradients, except for rounding.

They replace a part of the library's own classes. Where a release of `transformers` has other classes, a model keeps
its plain form.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor

from distill.models.engine import Engine
from distill.models.loading import quiet

# What a release of the library with other classes raises, here or in the changed forward pass.
CHANGED = (ImportError, AttributeError, TypeError, RuntimeError)


def speed_up(model: Any, engine: Engine) -> None:
    """Let a classifier compute in the faster forms that the engine has a use for. Its weights stay as they are."""
    bf16_on_cpu = engine.device.type == "cpu" and engine.amp is not None
    if bf16_on_cpu and getattr(model.config, "_attn_implementation", None) == "sdpa":
        # On processors the backward pass of the fused kernel is the slower one in bf16.
        with quiet():
            model.set_attn_implementation("eager")
    trim_last_layer(model)


# Families whose classifier reads the first token only, and whose layers are built like BERT's.
FIRST_TOKEN_FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra")


def trim_last_layer(model: Any) -> bool:
    """Let a classifier that reads the first token only compute its last layer for that token only.

    The other outputs of the last layer are never read, but cost as much as a whole layer. Logits and gradients are the
    same except for rounding. Dropout draws fewer random numbers. Weights and their names stay as they are, so that the
    saved model is an ordinary checkpoint.

    Returns:
        Whether it was done. A model of another family, or one whose logits would change, keeps its plain form.
    """
    try:
        layer = _last_layer(model)
        if layer is None:
            return False
        if "forward" in vars(layer):  # the model is a copy of one that was trimmed
            return True
        return _replace_forward(model, layer)
    except CHANGED:
        return False


def _last_layer(model: Any) -> Any:
    """The last layer of a model that can be trimmed; None for any other model."""
    known = model.config.model_type in FIRST_TOKEN_FAMILIES and not model.config.is_decoder
    if not known or model.config._attn_implementation not in ("sdpa", "eager"):
        return None
    return model.base_model.encoder.layer[-1]


@torch.no_grad()
def _replace_forward(model: Any, layer: Any) -> bool:
    """Give `layer` the shorter forward pass, unless the logits of a test batch with padding change."""
    ids = torch.arange(6, device=model.device).view(2, 3) % model.config.vocab_size
    mask = torch.ones_like(ids)
    mask[0, 2] = 0
    whole = model(input_ids=ids, attention_mask=mask).logits
    layer.forward = MethodType(_first_token_forward, layer)
    same = False
    try:
        same = torch.allclose(model(input_ids=ids, attention_mask=mask).logits, whole, rtol=1e-3, atol=1e-4)
    finally:
        if not same:
            del layer.forward
    return same


def _first_token_forward(
    layer: Any, hidden_states: Tensor, attention_mask: Tensor | None, *_: Any, **__: Any
) -> Tensor:
    """`BertLayer.forward` for the first token's query only.

    Args:
        layer: the layer.
        hidden_states: `[B,L,H]`.
        attention_mask: `[B or 1, 1, L or 1, L]`.

    Returns:
        `[B,1,H]`.
    """
    # Imported here: a release without them must not keep this module from being imported.
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.bert.modeling_bert import eager_attention_forward

    attention = layer.attention.self
    first = hidden_states[:, :1]

    def heads(states: Tensor) -> Tensor:
        return states.view(*states.shape[:2], -1, attention.attention_head_size).transpose(1, 2)

    attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
    context, _ = attend(
        attention,
        heads(attention.query(first)),
        heads(attention.key(hidden_states)),
        heads(attention.value(hidden_states)),
        None if attention_mask is None else attention_mask[:, :, :1],
        dropout=attention.dropout.p if layer.training else 0.0,
        scaling=attention.scaling,
    )
    out: Tensor = layer.feed_forward_chunk(layer.attention.output(context.flatten(2), first))
    return out
