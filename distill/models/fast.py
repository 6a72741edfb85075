"""Faster forms of a classifier's forward pass, equal to the plain form but for rounding."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward

from distill.models.engine import Engine


def speed_up(model: Any, engine: Engine) -> None:
    """Let a classifier compute the same sums in faster forms: logits and gradients are the same but for rounding."""
    plain = engine.device.type == "cpu" and engine.amp is not None
    if plain and getattr(model.config, "_attn_implementation", None) == "sdpa":
        model.set_attn_implementation("eager")  # the fused kernel's backward in bf16 is the slower one on processors
    trim_last_layer(model)


FIRST_TOKEN_FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra")


def trim_last_layer(model: Any) -> bool:
    """Let a classifier that reads the first token alone compute its last layer for that token alone.

    The last layer's other outputs are read by nobody, but cost as much as a whole layer: logits and gradients are the
    same but for rounding. Dropout draws fewer numbers. Weights and their names stay as they are, so what is saved is
    an ordinary checkpoint.

    Returns:
        Whether it was done: not for other families, and not where the trimmed model says something else.
    """
    known = model.config.model_type in FIRST_TOKEN_FAMILIES and not model.config.is_decoder
    if not known or model.config._attn_implementation not in ("sdpa", "eager"):
        return False
    layer = model.base_model.encoder.layer[-1]
    if "forward" in vars(layer):  # a copy of one that was trimmed
        return True
    with torch.no_grad():
        ids = torch.arange(6, device=model.device).view(2, 3) % model.config.vocab_size
        mask = torch.ones_like(ids)
        mask[0, 2] = 0
        whole = model(input_ids=ids, attention_mask=mask).logits
        layer.forward = MethodType(_first_token_forward, layer)
        try:
            same = torch.allclose(model(input_ids=ids, attention_mask=mask).logits, whole, rtol=1e-3, atol=1e-4)
        except (AttributeError, TypeError, RuntimeError):  # a release of transformers that builds its layers otherwise
            same = False
    if not same:
        del layer.forward
    return same


def _first_token_forward(
    layer: Any, hidden_states: Tensor, attention_mask: Tensor | None, *_: Any, **__: Any
) -> Tensor:
    """`BertLayer.forward` for the first token's query: states `[B,1,H]` from `[B,L,H]`; the mask is `[B or 1,1,L or 1,L]`."""
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
