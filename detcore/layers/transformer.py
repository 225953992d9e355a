"""The two halves of a transformer layer, named as published checkpoints name them (Vaswani et al., "Attention is all
you need", 2017), and layers in a row. Neither half adds its input: where shortcut and norm stand is up to the layer."""
from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention of queries to keys, of `width` channels split into `heads`; `dropout` is the share of the
    attention, and of the output, left out in training."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.attn = nn.MultiheadAttention(width, heads)  # its parameters; computed below, where masks may broadcast
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, key: Tensor | None = None, *, query_pos: Tensor | None = None,
                key_pos: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """[N, Q, C].

        Args:
            query: [N, Q, C]; key: [N, K, C], which are the values too; None: the queries.
            query_pos, key_pos: added to queries and keys, not to values.
            mask: bool, broadcast to [N, heads, Q, K], true where a query may look; None: everywhere.
        """
        if key is None:
            key, key_pos = query, query_pos
        inputs = (query if query_pos is None else query + query_pos, key if key_pos is None else key + key_pos, key)
        weights, biases = self.attn.in_proj_weight.chunk(3), self.attn.in_proj_bias.chunk(3)
        q, k, v = (F.linear(x, w, b).unflatten(2, (self.heads, -1)).transpose(1, 2)
                   for x, w, b in zip(inputs, weights, biases))
        out = F.scaled_dot_product_attention(q, k, v, mask, self.dropout.p if self.training else 0.0)
        return self.dropout(self.attn.out_proj(out.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """Two layers for each position by itself: `width` channels in and out, `hidden` between them, where the activation
    `act` is; `dropout` is the share left out after either layer in training."""

    def __init__(self, width: int, hidden: int, *, act: type[nn.Module] = nn.ReLU, dropout: float = 0.0):
        super().__init__()
        self.layers = nn.Sequential(nn.Sequential(nn.Linear(width, hidden), act(), nn.Dropout(dropout)),
                                    nn.Linear(hidden, width), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] of the same shape."""
        return self.layers(x)


class Layers(nn.Module):
    """Layers one after the other; `post_norm` is for what is predicted from after each of them, None for nothing."""

    def __init__(self, layers: Sequence[nn.Module], post_norm: nn.Module | None = None):
        super().__init__()
        self.layers, self.post_norm = nn.ModuleList(layers), post_norm
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def norm(self, x: Tensor) -> Tensor:
        """What is predicted from after a layer, [..., C] like what the layer gives."""
        return x if self.post_norm is None else self.post_norm(x)
