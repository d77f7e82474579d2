"""Einstein sums and attention from matrix products: functions, exact replacements."""

from __future__ import annotations

import math

import torch

from ..forms import Leave


def check_einsum(equation: str, *operands: object) -> Leave | None:
    """Leave a sum that `einsum_by_matmul` does not take."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    text = equation.replace(" ", "")
    if "->" not in text or "." in text or len(operands) != 2 or text.count(",") != 1:
        return Leave("not two operands with all their indices written out")
    inputs, output = text.split("->")
    first, second = inputs.split(",")
    if any(len(set(part)) != len(part) for part in (first, second, output)):
        return Leave("an index twice in one operand")
    alone = (set(first) ^ set(second)) - set(output)
    return Leave(f"the index {min(alone)!r} is summed in one operand alone") if alone else None


def einsum_by_matmul(equation: str, *operands: torch.Tensor) -> torch.Tensor:
    """Return `torch.einsum` of two operands as one batched matrix product.

    Indices in both operands and in the output are the batch, those in both only are summed, the
    others are rows and columns.
    """
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    a, b = operands
    inputs, output = equation.replace(" ", "").split("->")
    first, second = inputs.split(",")
    sizes = dict(zip(first, a.shape, strict=True)) | dict(zip(second, b.shape, strict=True))
    batch = [i for i in first if i in second and i in output]
    summed = [i for i in first if i in second and i not in output]
    rows = [i for i in first if i not in second]
    columns = [i for i in second if i not in first]

    def count(indices: list[str]) -> int:
        return math.prod(sizes[i] for i in indices)

    left = a.permute([first.index(i) for i in (*batch, *rows, *summed)])
    right = b.permute([second.index(i) for i in (*batch, *summed, *columns)])
    product = torch.matmul(
        left.reshape(count(batch), count(rows), count(summed)),
        right.reshape(count(batch), count(summed), count(columns)),
    )
    order = [*batch, *rows, *columns]
    product = product.reshape([sizes[i] for i in order])
    return product.permute([order.index(i) for i in output])


def check_attention(*_: object, enable_gqa: bool = False, **__: object) -> Leave | None:
    """Leave a call that `attention_by_matmul` does not take."""
    return Leave("grouped queries (enable_gqa)") if enable_gqa else None


def attention_by_matmul(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attn_mask: torch.Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Return `torch.nn.functional.scaled_dot_product_attention`: two products and a softmax."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query * scale, key.transpose(-2, -1))
    if is_causal:
        shape = (query.shape[-2], key.shape[-2])
        attn_mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(attn_mask.logical_not(), float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = torch.softmax(scores, -1)
    if dropout_p > 0.0:
        weights = torch.dropout(weights, dropout_p, True)
    return torch.matmul(weights, value)
