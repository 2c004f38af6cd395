"""Sliding-window attention, and the ring that decoding with it needs. This module needs torch."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .band import Band, band_attention
from .cache import PastLayer
from .form import Form, Heads


class Window(Form):
    """Causal: a token sees the last `window` ones, itself among them. Two-sided: `window` // 2 on either side, and itself.

    The `first` tokens are seen from everywhere, and in a two-sided model they see everything.
    """

    def __init__(self, window: int, first: int = 0) -> None:
        self.window, self.first = window, first

    def __call__(self, module: nn.Module, heads: Heads) -> Tensor:
        """Linear in the number of tokens."""
        half = self.window // 2
        left, right = (self.window - 1, 0) if heads.causal else (half, half)
        attended = band_attention(heads, Band(heads.causal, left, right, self.first))
        everywhere = self.first - (heads.k.shape[2] - heads.q.shape[2])  # queries among the first tokens
        if heads.causal or everywhere <= 0:
            return attended
        mask = None if heads.padding is None else heads.padding[:, None, None]
        first = replace(heads, q=heads.q[:, :, :everywhere]).softmax(mask)
        return torch.cat([first, attended[:, everywhere:]], dim=1)

    def past_layer(self) -> PastLayer:
        """The keys and values that the next token can see, and no others."""
        return Ring(self.window, self.first)


class Ring(PastLayer):
    """The first keys and values, and the last `window`, each new one over the oldest: their order means nothing to a query."""

    def __init__(self, window: int, first: int) -> None:
        super().__init__()
        self.window, self.first = window, first
        self._given: Tensor | None = None  # positions that `update` returned; None where they stand as in the ring

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Room for all that is ever kept."""
        super().lazy_initialization(key_states, value_states)
        size = self.first + self.window
        self.keys, self.values = (x.new_zeros(*x.shape[:2], size, x.shape[3]) for x in (key_states, value_states))

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """One token: all that it sees, itself among it. A prompt, or a part of one: what was kept and all of it, in order."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = key_states.shape[2]
        if new == 1:
            slot = self._slot(self.seen)
            self.keys[:, :, slot], self.values[:, :, slot] = key_states[:, :, 0].detach(), value_states[:, :, 0].detach()
            self.seen, self._given = self.seen + 1, None
            return self.keys[:, :, : self.seen], self.values[:, :, : self.seen]
        if self.seen:
            slots = self._slots(self._kept())
            key_states = torch.cat([self.keys[:, :, slots], key_states], dim=2)
            value_states = torch.cat([self.values[:, :, slots], value_states], dim=2)
        self._given = torch.cat([self._kept(), self._positions(self.seen, self.seen + new)])
        self.seen += new
        kept = self._kept()
        at = torch.searchsorted(self._given, kept)
        self.keys[:, :, self._slots(kept)] = key_states[:, :, at].detach()
        self.values[:, :, self._slots(kept)] = value_states[:, :, at].detach()
        return key_states, value_states

    def returned(self, padding: Tensor) -> Tensor:
        """In the ring's order after a single token, in time's order after several."""
        kept = self._kept()
        return padding[:, kept[self._slots(kept).argsort()] if self._given is None else self._given]

    def _kept(self) -> Tensor:
        """Positions of the tokens in the ring, in time's order."""
        first = min(self.first, self.seen)
        return torch.cat([self._positions(0, first), self._positions(max(first, self.seen - self.window), self.seen)])

    def _positions(self, start: int, stop: int) -> Tensor:
        return torch.arange(start, stop, device=self.device)  # beside the keys: a GPU would wait for numbers from elsewhere

    def _slots(self, positions: Tensor) -> Tensor:
        return torch.where(positions < self.first, positions, self.first + (positions - self.first) % self.window)

    def _slot(self, position: int) -> int:
        return position if position < self.first else self.first + (position - self.first) % self.window
