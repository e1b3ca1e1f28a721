"""What is left inside a model that no longer says it: unlearning depth, and what a probe for truth makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import metrics
from ..data.collator import pad_token_id
from ..data.rendering import ChatOptions
from ..data.rows import content_hash
from ..lookup import lookup
from ..metrics.memorisation.truth_stability import FOLDS
from ..runs.weights import weights_hash
from ..scoring import context_length, hidden_states, patching_falls
from .kept import kept
from .suites import SUITES
from .suites.base import Remarks, Rows, Settings, Statements, Statistics


# Rises when other statistics are computed than before, so that older files are not reused.
DEPTH = 1

# Layers whose states say less about an answer do not count.
THRESHOLD = 0.05
# A probe that judges known statements worse than this tells nothing about others.
LEAST_ACCURACY = 0.7
FEW_STATEMENTS = 24
KINDS = ("forget", "true", "false", "unfamiliar")
# From the names of the probe's figures to those of the suite's metrics.
PROBE = {
    "truth_stability": "truth_stability",
    "judged_true": "forget_judged_true",
    "unfamiliar": "forget_unfamiliar",
    "probe_accuracy": "truth_probe_accuracy",
}
ASK = "It has to be asked for (`depth`)."


def check_depth(suite: str) -> None:
    """
    Refuse to look into models for a suite that has no statements to do so.

    Args:
        suite (`str`):
            A name from [`SUITES`].

    Raises:
        `ValueError`: If the suite has none.
    """
    if lookup(SUITES, suite, "suite").statements is None:
        able = " and ".join(name for name, each in SUITES.items() if each.statements is not None)
        raise ValueError(f"The {suite} suite cannot measure `depth`. Leave it out; the suites {able} can.")


def run_depth(
    suite: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    splits: Mapping[str, Rows],
    output_dir: str | Path | None = None,
    knows: PreTrainedModel | None = None,
    batch_size: int = 16,
    options: ChatOptions | None = None,
    max_length: int | None = None,
) -> Statistics:
    """
    Look into a model. On several processes, all of them have to call it.

    Two models are in memory at most: `model`, and the one that knows the answers.

    Args:
        suite (`str`):
            A name from [`SUITES`] whose suite has `statements`.
        model ([`~transformers.PreTrainedModel`]):
            The model to look into: the unlearned one, gold, or the original one. It is used in evaluation mode.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        splits (`Mapping[str, Dataset]`):
            The rows of each split.
        output_dir (`str` or `Path`, *optional*):
            Folder for the file `depth.json`. A later run with the same weights, rows and settings reads it.
        knows ([`~transformers.PreTrainedModel`], *optional*):
            The model before unlearning. The hidden states of `model` are put into it, once per layer. Without it there
            is no unlearning depth.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows per forward pass.
        options ([`ChatOptions`], *optional*):
            Arguments of the chat template, and a system prompt.
        max_length (`int`, *optional*):
            Tokens of an example. Defaults to what the model reads.

    Returns:
        `dict`: It contains no text. `falls` (`list[list[float]]`) has what [`patching_falls`] gives, if `knows` is
        given. `probe` (`dict[str, float]`) has the figures of the metric `truth_stability`, if there are at least five
        statements of each kind; `statements` (`dict[str, int]`) says how many there are.

    Raises:
        `ValueError`: If the suite has no statements, or if the two models have other shapes.
    """
    check_depth(suite)
    settings = Settings(batch_size, None, options, max_length)
    statements = SUITES[suite].statements(tokenizer, splits, context_length(model), settings)
    weights = [weights_hash(each.state_dict()) for each in (model, knows) if each is not None]
    key = content_hash([DEPTH, suite, weights, statements])
    file = None if output_dir is None else Path(output_dir) / "depth.json"
    training, _ = model.training, model.eval()
    found = kept(file, key, lambda: _look(model, knows, statements, pad_token_id(tokenizer, model), batch_size))
    model.train(training)
    return found


def _look(
    model: PreTrainedModel, knows: PreTrainedModel | None, statements: Statements, padding: int, batch_size: int
) -> Statistics:
    """What there is to find in a model."""
    found: Statistics = {}
    if knows is not None and statements["key_words"]:
        examples = statements["key_words"]
        found["falls"] = patching_falls(knows.eval(), model, examples, padding, batch_size, desc="depth: layers")
    if all(len(statements[kind]) >= FOLDS for kind in KINDS):
        states = {}
        found["statements"] = {kind: len(statements[kind]) for kind in KINDS}
        for kind in KINDS:
            of_kind = hidden_states(model, statements[kind], padding, None, batch_size, f"depth: {kind} statements")
            states["predictions" if kind == "forget" else kind] = of_kind.tolist()
        probe = metrics.load("truth_stability").compute(**states)
        found["probe"] = {name: probe[name] for name in PROBE}
    return found


def summarise_depth(
    found: Statistics, gold: Statistics | None = None, original: Statistics | None = None
) -> dict[str, float]:
    """
    Compute the metrics from what [`run_depth`] found in each model.

    Args:
        found (`dict`):
            What was found in the model to judge.
        gold (`dict`, *optional*):
            The same for a model that never saw the forget set.
        original (`dict`, *optional*):
            The same for the model before unlearning. Its `falls` are not used.

    Returns:
        `dict[str, float]`: The metrics by name.

        - `unlearning_depth`, with gold: 1 if the model's hidden states say as little of the answers as gold's, and 0
          if they say as much as those of the model before unlearning;
        - `truth_stability`, `forget_judged_true`, `forget_unfamiliar` and `truth_probe_accuracy`: the figures of the
          metric `truth_stability`;
        - the same of the other models, with `original_` and `gold_` in front.
    """
    summary = {}
    if _knows(found, gold):
        depth = metrics.load("unlearning_depth").compute(
            predictions=found["falls"], gold=gold["falls"], threshold=THRESHOLD
        )
        summary["unlearning_depth"] = depth["unlearning_depth"]
    for role, of_model in (("", found), ("original_", original), ("gold_", gold)):
        if of_model is not None and "probe" in of_model:
            summary |= {f"{role}{ours}": of_model["probe"][theirs] for theirs, ours in PROBE.items()}
    return summary


def remark_on_depth(
    found: Statistics | None, gold: Statistics | None = None, original: Statistics | None = None
) -> Remarks:
    """
    Say what is left out, and which figures mean little.

    Args:
        found (`dict`, *optional*):
            What was found in the model to judge; `None` if nobody asked for it.
        gold (`dict`, *optional*):
            The same for gold.
        original (`dict`, *optional*):
            The same for the model before unlearning.

    Returns:
        [`Remarks`]
    """
    if found is None:
        return Remarks([], {"unlearning_depth": ASK, "truth_stability": ASK})
    notes, left_out = [], {}
    if not _knows(found, gold):
        left_out["unlearning_depth"] = (
            "It needs the original model, a gold model, and forget rows that fit into one window. The original model "
            "has to know the answers, and gold must not."
        )
    else:
        rows = metrics.load("unlearning_depth").compute(
            predictions=found["falls"], gold=gold["falls"], threshold=THRESHOLD
        )
        if rows["left_out"]:
            notes.append(
                f"unlearning_depth: {len(rows['left_out'])} of {len(rows['rows'])} rows do not count. No layer of the "
                "original model says more about their answers than gold's."
            )
    if "probe" not in found:
        left_out["truth_stability"] = (
            f"It needs at least {FOLDS} rows of the forget and the holdout set, and {FOLDS} retain rows with wrong "
            "answers, all in one format."
        )
    elif min(found["statements"].values()) < FEW_STATEMENTS:
        notes.append(
            f"truth_stability: the probe has {min(found['statements'].values())} statements of a kind. Its figures "
            "are uncertain with so few."
        )
    if "probe" in found and found["probe"]["probe_accuracy"] < LEAST_ACCURACY:
        notes.append(
            f"truth_stability: the probe judges {found['probe']['probe_accuracy']:.2f} of the known statements right. "
            "The model's states hardly tell true from not true, and these figures mean little."
        )
    return Remarks(notes, left_out)


def _knows(found: Statistics, gold: Statistics | None) -> bool:
    """Whether gold's states say less of some answer than those of the model before unlearning."""
    if gold is None or "falls" not in found or "falls" not in gold:
        return False
    return max(max(row) for row in gold["falls"]) > THRESHOLD
