"""Training the spectral decoder on a proxy model: pairs of a sketch and its true gradient, and the fit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..gradients import LoraSketch
from ..probes import GradientSubspace, draw_probes
from .core import SketchCore
from .spectral import SpectralDecoder, spectral_features


# Every fourth layer, and the last quarter of the batches, are kept for validation.
VALIDATION_PART = 4

# Numbers of rows that the probes hold out, so that the filter sees cores that are square and ones that are not.
HELD_OUT = (0, 2)


@dataclass
class FilterPairs:
    r"""
    Sketches of one rank, with all that their true gradients say about a filter. The gradients are not kept.

    With the gradient's norm scaled to 1, a gate `g` reconstructs it with the cosine

        cos(g) = (K + c·g) / √(K + gᵀ M g)

    Args:
        features (`torch.Tensor` of shape `(n, k, features)`):
            Features from [`spectral_features`].
        known (`torch.Tensor` of shape `(n,)`):
            `K`, the part of the gradient's energy that the sketches hold exactly.
        inner (`torch.Tensor` of shape `(n, k)`):
            `c`, the inner product of each term `Yₖ Zₖᵀ / σₖ` with the gradient.
        gram (`torch.Tensor` of shape `(n, k, k)`):
            `M`, the inner products of the terms with each other.
    """

    features: Tensor
    known: Tensor
    inner: Tensor
    gram: Tensor

    def cosine(self, gate: Tensor) -> Tensor:
        """
        Cosine between the reconstruction and the true gradient.

        Args:
            gate (`torch.Tensor` of shape `(n, k)`):
                The gate.

        Returns:
            `torch.Tensor` of shape `(n,)`.
        """
        energy = self.known + torch.einsum("ni,nij,nj->n", gate, self.gram, gate)
        return (self.known + (self.inner * gate).sum(-1)) / energy.clamp_min(torch.finfo(energy.dtype).tiny).sqrt()

    @classmethod
    def of(cls, sketch: LoraSketch, G: Tensor) -> FilterPairs:
        """One pair, from a sketch and its gradient of shape `(out_features, in_features)`."""
        core = SketchCore.of(sketch)
        Y, Z = core.terms
        Y = Y * core.inverse_sigma
        energy = G.square().sum()
        known = core.reconstruct(torch.zeros_like(core.sigma)).norm().square()
        return cls(
            features=spectral_features([core])[0][None],
            known=(known / energy)[None],
            inner=(((G @ Z) * Y).sum(0) / energy)[None],
            gram=((Y.T @ Y) * (Z.T @ Z) / energy)[None],
        )

    def to(self, device: str | torch.device) -> FilterPairs:
        """The pairs on another device."""
        return FilterPairs(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    @classmethod
    def cat(cls, pairs: Sequence[FilterPairs]) -> FilterPairs:
        """Concatenate pairs of one rank."""
        return cls(*(torch.cat([getattr(pair, name) for pair in pairs]) for name in cls.__dataclass_fields__))


def proxy_modules(model: PreTrainedModel, count: int, seed: int) -> list[str]:
    """
    Draw linear modules of a proxy at random, to take their gradients. The head is left out.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The proxy.
        count (`int`):
            The largest number of modules.
        seed (`int`):
            Seed of the draw.

    Returns:
        `list[str]`: Their names, in the order of the model.
    """
    head = model.get_output_embeddings()
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    return [names[index] for index in sorted(order[:count])]


def full_gradients(model: PreTrainedModel, batch: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """
    True gradients of a batch's loss in the weights of some modules.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model. All its parameters are frozen when this returns.
        batch (`dict[str, torch.Tensor]`):
            `input_ids`, `attention_mask` and `labels`.
        names (`Sequence[str]`):
            Names of the modules.

    Returns:
        `dict[str, torch.Tensor]`: The gradients by name, each of shape `(out_features, in_features)`, fp32.

    Raises:
        `ValueError`: If a gradient is NaN or infinite.
    """
    modules = {name: model.get_submodule(name) for name in names}
    model.requires_grad_(False)
    for module in modules.values():
        module.weight.requires_grad_(True)
    inputs = {key: value.to(model.device) for key, value in batch.items()}
    # A module that the batch does not use, such as an expert, has no gradient: it counts as zero.
    weights = [module.weight for module in modules.values()]
    gradients = torch.autograd.grad(model(**inputs).loss, weights, allow_unused=True, materialize_grads=True)
    model.requires_grad_(False)
    for name, G in zip(names, gradients, strict=True):
        if not G.isfinite().all():
            raise ValueError(
                f"The gradient of {name} is NaN or infinite. Load the proxy in fp32 or bf16 (`dtype`), and check "
                "its text."
            )
    return {
        name: (G.T if isinstance(module, Conv1D) else G).float()
        for (name, module), G in zip(modules.items(), gradients, strict=True)
    }


def layer_of(name: str) -> int:
    """Number of the layer that a module belongs to, from its name. It is 0 for a module outside of layers."""
    match = re.search(r"\.(\d+)\.", name)
    return int(match[1]) if match else 0


def collect_pairs(
    model: PreTrainedModel,
    batches: Sequence[dict[str, Tensor]],
    names: Sequence[str],
    ranks: Sequence[int],
    seed: int,
    disable_tqdm: bool = False,
) -> dict[tuple[int, str], FilterPairs]:
    """
    Collect pairs for training and validation: of every module and batch, with blind and warm probes of every rank.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The proxy.
        batches (`Sequence[dict[str, torch.Tensor]]`):
            Batches of text. The warm probes see them in this order.
        names (`Sequence[str]`):
            Names of the modules.
        ranks (`Sequence[int]`):
            Ranks of the probes.
        seed (`int`):
            Seed of the probes.
        disable_tqdm (`bool`, *optional*, defaults to `False`):
            Whether to hide the progress bar.

    Returns:
        `dict[tuple[int, str], FilterPairs]`: The pairs by rank of the core, and by `"train"` or `"validation"`.
        Validation takes the held-out layers on the held-out batches, training takes the other layers on the others.

    Raises:
        `ValueError`: If all modules are in one layer, or if none has a gradient that a probe could sketch.
    """
    layers = sorted({layer_of(name) for name in names})
    if len(layers) < 2:
        raise ValueError(
            "The modules to learn from are all in one layer, so none is left for validation. Use a proxy with more "
            "layers, or more modules (`num_modules`)."
        )
    validation_layers = set(layers[VALIDATION_PART - 1 :: VALIDATION_PART] or layers[-1:])
    first_validation = len(batches) - len(batches) // VALIDATION_PART
    streams = [
        (rank, warm, held_out)
        for rank in ranks
        for warm in (False, True)
        for held_out in HELD_OUT
        if rank > 2 * held_out
    ]
    subspaces: list[dict[str, GradientSubspace]] = [{} for _ in streams]
    pairs: dict[tuple[int, str], list[FilterPairs]] = {}
    for step, batch in enumerate(tqdm(batches, desc="Gradients of the proxy", disable=disable_tqdm)):
        gradients = full_gradients(model, batch, names)
        for (rank, warm, held_out), subspace in zip(streams, subspaces, strict=True):
            for name, G in gradients.items():
                if rank > min(G.shape) or not G.any():
                    continue
                A, B = (probe.to(G.device) for probe in draw_probes(seed + held_out, step, name, *G.shape, rank))
                if name in subspace:
                    A, B = subspace[name].probes(A, B, held_out)
                sketch = LoraSketch(Y=G @ A.T, Z=B.T @ G, A=A, B=B, held_out=held_out)
                if warm:
                    subspace[name] = GradientSubspace.after(sketch, subspace.get(name))
                held_layer, held_batch = layer_of(name) in validation_layers, step >= first_validation
                if held_layer == held_batch:
                    split = "validation" if held_layer else "train"
                    pairs.setdefault((rank - held_out, split), []).append(FilterPairs.of(sketch, G))
    if not any(split == "train" for _, split in pairs):
        raise ValueError(
            f"No module of the proxy has dimensions as large as the smallest rank ({min(ranks)}), or all gradients "
            "are zero. Lower `ranks`, or use another proxy."
        )
    return {key: FilterPairs.cat(parts) for key, parts in pairs.items()}


def fit(
    decoder: SpectralDecoder,
    pairs: dict[tuple[int, str], FilterPairs],
    steps: int,
    learning_rate: float,
    seed: int,
    disable_tqdm: bool = False,
) -> dict[int, dict[str, float]]:
    """
    Fit a spectral decoder to pairs. The loss is `1 - cosine`, and all ranks weigh the same.

    Args:
        decoder ([`SpectralDecoder`]):
            The decoder, trained in place.
        pairs (`dict[tuple[int, str], FilterPairs]`):
            Pairs from [`collect_pairs`].
        steps (`int`):
            Steps of AdamW under a one-cycle schedule. Each takes 256 pairs of every rank.
        learning_rate (`float`):
            Peak learning rate.
        seed (`int`):
            Seed of the batches.
        disable_tqdm (`bool`, *optional*, defaults to `False`):
            Whether to hide the progress bar.

    Returns:
        `dict[int, dict[str, float]]`: For each rank of the core, the mean cosines on `train` and `validation`. For
        comparison also those of the plain inverse (`inverse`) and of the best fixed Tikhonov threshold (`best_tau`) on
        `validation`.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    training = [part for (_, split), part in pairs.items() if split == "train"]
    decoder.train()
    for _ in (bar := tqdm(range(steps), desc="Fit", disable=disable_tqdm)):
        losses = []
        for part in training:
            index = torch.randint(len(part.known), (256,), generator=generator)
            batch = FilterPairs(*(getattr(part, name)[index] for name in FilterPairs.__dataclass_fields__))
            losses.append(1 - batch.cosine(decoder.gate_of(batch.features)).mean())
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(cosine=f"{1 - loss.item():.4f}")
    decoder.eval()
    return {rank: scores(decoder, pairs, rank) for rank in sorted({rank for rank, _ in pairs})}


@torch.no_grad()
def scores(decoder: SpectralDecoder, pairs: dict[tuple[int, str], FilterPairs], rank: int) -> dict[str, float]:
    """Mean cosines at one rank: of the decoder, and of the baselines that it has to beat."""
    parts = {split: pairs[rank, split] for split in ("train", "validation") if (rank, split) in pairs}
    result = {split: part.cosine(decoder.gate_of(part.features)).mean().item() for split, part in parts.items()}
    if "validation" in parts:
        validation = parts["validation"]
        squared = (2 * validation.features[..., 0]).exp()
        taus = [0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5]
        result["best_tau"] = max(validation.cosine(squared / (squared + tau**2)).mean().item() for tau in taus)
        result["inverse"] = validation.cosine(torch.ones_like(squared)).mean().item()
    return result
