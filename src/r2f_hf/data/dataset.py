"""The training dataset: forget examples, each with its views and its share of retain examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from .formatting import Encoded


class ForgetRetainDataset(Dataset):
    """
    One item is one forget example in `num_views` wordings, together with `retain_per_forget` retain examples.

    An epoch is one pass over the forget set. Retain examples are dealt from shuffled passes over the whole retain set,
    so that each is used equally often however long the forget set is, and which ones come with item `i` of epoch `e`
    depends on (seed, e, i) alone: a resumed run sees what an uninterrupted one would have.

    Args:
        forget (`Sequence[Sequence[dict]]`):
            For each forget example its encoded views, the original wording first. A view may have second answers,
            which take turns over the epochs.
        retain (`Sequence[dict]`):
            Encoded retain examples; may be empty.
        num_views (`int`, *optional*, defaults to `1`):
            Views of an example to use in a step. Where an example has more, they take turns over the epochs.
        retain_per_forget (`int`, *optional*, defaults to `1`):
            Retain examples for each forget example.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the retain shuffle.
        with_answers (`bool`, *optional*, defaults to `True`):
            Whether the forget examples themselves are used. If not, only their second answers are.
    """

    def __init__(
        self,
        forget: Sequence[Sequence[Encoded]],
        retain: Sequence[Encoded],
        num_views: int = 1,
        retain_per_forget: int = 1,
        seed: int = 0,
        with_answers: bool = True,
    ):
        self.forget = forget
        self.retain = retain
        self.num_views = num_views
        self.retain_per_forget = retain_per_forget if len(retain) else 0
        self.seed = seed
        self.with_answers = with_answers
        # In shared memory: the loader's workers may have copies of the rest that outlive an epoch.
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()
        self._round, self._order = -1, torch.empty(0, dtype=torch.long)

    def set_epoch(self, epoch: int) -> None:
        """Called at the start of an epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.forget)

    def __getitem__(self, index: int) -> dict[str, list[Encoded]]:
        views, epoch = self.forget[index], int(self._epoch)
        first = epoch * self.num_views
        start = (epoch * len(self) + index) * self.retain_per_forget
        chosen = [views[(first + k) % len(views)] for k in range(min(self.num_views, len(views)))]
        retain = [self._retain(position) for position in range(start, start + self.retain_per_forget)]
        # One second answer per view. Neighbours begin at different ones.
        second = [view["second"][(epoch + index) % len(view["second"])] for view in chosen if "second" in view]
        return {"forget": chosen if self.with_answers else [], "retain": retain} | (
            {"second": second} if second else {}
        )

    def _retain(self, position: int) -> Encoded:
        round_, offset = divmod(position, len(self.retain))
        if round_ != self._round:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + round_)
            self._round, self._order = round_, torch.randperm(len(self.retain), generator=generator)
        return self.retain[int(self._order[offset])]
