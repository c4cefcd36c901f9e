"""A language model written out token by token, from its weights alone: what PEPE is held against.

Shares no code with the package or the library: each token is told which tokens it attends, where it stands and
which tokens a convolution finds before it, and is computed by itself. For text, whose rotary positions
are the same on every axis.
"""

import math

import torch
from torch.nn import functional as F


def norm(module, x):
    eps = getattr(module, "variance_epsilon", 1e-6)
    return module.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def rotate(x, position, theta):
    """The pairs (x_i, x_(i + d/2)) turned by position * theta^(-2i/d), head by head."""
    half = x.shape[-1] // 2
    angles = position * theta ** (-torch.arange(half, dtype=x.dtype) / half)
    one, other = x[..., :half], x[..., half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([one * cos - other * sin, other * cos + one * sin], dim=-1)


class Slow:
    """Runs tokens one after the other; a token's number is its place in ``self.kept``."""

    def __init__(self, model):
        self.model = model.model.language_model
        self.config = model.config.get_text_config()
        self.theta = float(self.config.rope_parameters["rope_theta"])
        self.kept = []

    @torch.no_grad()
    def run(self, ids, position, sees, before):
        """Run tokens; gives their numbers and hidden states (L, D).

        Args:
            ids: of the tokens, each seeing those before it in this list.
            position: rotary position of the first.
            sees: numbers of earlier tokens that all of them attend.
            before: numbers of the tokens that a convolution finds before the first.
        """
        numbers, states, path = [], [], list(before)
        for k, token in enumerate(ids):
            layers = []
            x = self.model.embed_tokens.weight[token].double()
            for i, layer in enumerate(self.model.layers):
                x, held = self._layer(i, layer, x, position + k, [*sees, *numbers], path)
                layers.append(held)
            self.kept.append(layers)
            numbers.append(len(self.kept) - 1)
            path.append(numbers[-1])
            final = getattr(self.model, "norm", None) or self.model.embedding_norm
            states.append(norm(final, x))
        return numbers, torch.stack(states)

    def _layer(self, i, layer, x, position, seen, path):
        first = getattr(layer, "input_layernorm", None) or layer.operator_norm
        second = getattr(layer, "post_attention_layernorm", None) or layer.ffn_norm
        if hasattr(layer, "self_attn"):
            out, held = self._attend(i, layer.self_attn, norm(first, x), position, seen)
        else:
            out, held = self._convolve(i, layer.conv, norm(first, x), path)
        x = x + out
        return x + self._feed(layer, norm(second, x)), held

    def _attend(self, i, a, x, position, seen):
        size = a.head_dim
        q, k, v = (p(x).view(-1, size) for p in (a.q_proj, a.k_proj, a.v_proj))
        for name in ("q_norm", "q_layernorm"):
            if hasattr(a, name):
                q = norm(getattr(a, name), q)
                k = norm(getattr(a, name.replace("q_", "k_")), k)
        q, k = rotate(q, position, self.theta), rotate(k, position, self.theta)
        others = [self.kept[n][i] for n in seen]
        out = []
        for head in range(len(q)):
            own = head * len(k) // len(q)
            pairs = [(key[own], value[own]) for key, value in others] + [(k[own], v[own])]
            scores = torch.stack([q[head] @ key / math.sqrt(size) for key, _ in pairs]).softmax(0)
            out.append(sum(s * value for s, (_, value) in zip(scores, pairs, strict=True)))
        project = getattr(a, "o_proj", None) or a.out_proj
        return project(torch.cat(out)), (k, v)

    def _convolve(self, i, c, x, path):
        b, gate, y = c.in_proj(x).chunk(3)
        inputs = b * y
        width = c.conv.weight.shape[-1]
        reached = [self.kept[n][i] for n in path[len(path) - width + 1 :]] + [inputs]
        weight = c.conv.weight[:, 0, -len(reached) :]
        mixed = sum(weight[:, j] * value for j, value in enumerate(reached))
        if c.conv.bias is not None:
            mixed = mixed + c.conv.bias
        return c.out_proj(gate * mixed), inputs

    def _feed(self, layer, x):
        m = getattr(layer, "mlp", None)
        if m is not None:
            return m.down_proj(F.silu(m.gate_proj(x)) * m.up_proj(x))
        m = layer.feed_forward
        return m.w2(F.silu(m.w1(x)) * m.w3(x))
