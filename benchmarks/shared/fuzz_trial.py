"""One trial of bad_inputs.py: build, train and evaluate on what was drawn, and judge what came of it."""

from __future__ import annotations

import io
import linecache
import logging
import os
import random
import re
import shutil
import signal
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, PartialState
from peft import PeftModel
from torch import nn

import r2f_hf
from r2f_hf import R2FConfig, R2FTrainer
from r2f_hf.data.loading import load_rows
from r2f_hf.probes import find_probes
from r2f_hf.probes.lora_probe import DELTA, PROBE
from shared.fuzz_models import FAITHFUL, build_model, build_tokenizer
from shared.fuzz_rows import MARKER, DrawnSet, build_set
from shared.fuzz_settings import USUAL


SOURCE = Path(r2f_hf.__file__).parent
LIBRARIES = tuple(f"{os.sep}{name}{os.sep}" for name in ("transformers", "datasets", "peft", "accelerate"))
# Longer than any trial takes, by far: one that does not end is a finding.
SECONDS = 60
LOGGERS = ("", "r2f_hf", "transformers", "datasets", "peft", "accelerate", "trl")


@dataclass(frozen=True)
class Trial:
    """
    All that is drawn.

    Args:
        model (`tuple[str, str, str | None]`):
            Name, dtype and what was done to it before, see [`~shared.fuzz_models.build_model`].
        tokenizer (`str`):
            Its name.
        template (`str`, *optional*):
            Name of a chat template.
        settings (`dict`):
            Settings other than the usual ones.
        sets (`tuple[DrawnSet]`):
            The sets.
        calls (`str`):
            `"unlearn"`, or `"train"`: the same calls one by one.
    """

    model: tuple[str, str, str | None]
    tokenizer: str
    template: str | None
    settings: dict[str, Any]
    sets: tuple[DrawnSet, ...]
    calls: str


@dataclass
class Verdict:
    """
    What came of a trial.

    Args:
        kind (`str`):
            `"trained"`, `"refused"`, `"finding"`, or `"unbuildable"` if the inputs themselves cannot be made.
        signature (`str`):
            What is the same in two findings of one kind. Of a refusal, which line refused.
        detail (`str`):
            The end of the traceback, or what is wrong.
    """

    kind: str
    signature: str = ""
    detail: str = ""


@dataclass
class Watched:
    """What a trial has shown to the user so far."""

    shown: io.StringIO = field(default_factory=io.StringIO)


class Wrong(Exception):
    """A check of a trial that failed. Its message is the signature."""


def run(trial: Trial) -> Verdict:
    """
    Run a trial in a folder of its own.

    Args:
        trial ([`Trial`]):
            What was drawn.

    Returns:
        [`Verdict`]
    """
    folder = Path(tempfile.mkdtemp(prefix="bad_inputs_"))
    before = os.getcwd()
    try:
        (folder / "inputs").mkdir()
        (folder / "work").mkdir()
        os.chdir(folder / "work")
        try:
            Path("file").touch()
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                model = build_model(*trial.model)
                tokenizer = build_tokenizer(trial.tokenizer, trial.template)
                sets = {each.name: build_set(each, folder / "inputs") for each in trial.sets}
        except Exception as error:
            return Verdict("unbuildable", type(error).__name__, str(error)[:500])
        return judge(trial, model, tokenizer, sets, folder / "work")
    finally:
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)


def judge(trial: Trial, model: Any, tokenizer: Any, sets: dict[str, tuple[Any, bool]], folder: Path) -> Verdict:
    """Hand everything to the project as a user does, and judge what comes back."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    weights, flags, state_dict_names = Snapshot(model), *facts(model)
    error: BaseException | None = None
    trainer: R2FTrainer | None = None
    with watch(folder) as watched:
        try:
            args = R2FConfig(**USUAL | trial.settings)
            rows = {
                f"{name}_dataset": load_rows(value, name) if is_file else value
                for name, (value, is_file) in sets.items()
            }
            trainer = R2FTrainer(model, args, processing_class=tokenizer, **rows)
            if trial.calls == "unlearn":
                metrics = trainer.unlearn()["after"]
            else:
                trainer.train()
                metrics = trainer.evaluate()
                trainer.save_model()
        except Exception as raised:
            error = raised
    try:
        if error is None:
            check_trained(trial, trainer, weights, metrics, watched.shown.getvalue())
        elif weights.changed() and not stopped_by_wish(trial, error):
            raise Wrong("weights changed before an error")
        check_no_leak(error, watched.shown.getvalue(), folder)
        if wrapped_alone(trial, model, trainer):
            trainer.model.unload()
        check_facts(model, flags, state_dict_names)
    except Wrong as wrong:
        said = str(wrong)
        where = "" if error is None else f" [{origin(error)[0]}]"
        return Verdict("finding", said.partition(":")[0] + where, said + "\n" + tail(error))
    if error is None:
        return Verdict("trained")
    where, raised = origin(error)
    if raised == "project" or (raised == "library" and names_a_setting(trial, model, error)):
        return Verdict("refused", where, f"{type(error).__name__}: {error}"[:600])
    return Verdict("finding", f"{type(error).__name__} at {where}", tail(error))


class Snapshot:
    """The weights of a model, to compare with later."""

    def __init__(self, model: Any):
        self.parameters = list(model.named_parameters()) if isinstance(model, nn.Module) else []
        self.values = [parameter.detach().clone() for _, parameter in self.parameters]

    def changed(self) -> list[str]:
        """The names of those that are not bit for bit what they were."""
        return [
            name
            for (name, parameter), value in zip(self.parameters, self.values, strict=True)
            if parameter.device.type != "meta" and not same_bits(parameter.detach(), value)
        ]

    def spoilt(self) -> list[str]:
        """The names of those that were finite and no longer are."""
        return [
            name
            for (name, parameter), value in zip(self.parameters, self.values, strict=True)
            if value.device.type != "meta" and value.isfinite().all() and not parameter.isfinite().all()
        ]


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors are the same, NaN included."""
    return torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))


def facts(model: Any) -> tuple[list[tuple[nn.Parameter, bool]], list[str]]:
    """Which parameters are trained, and the names in the state dict: both have to stay."""
    if not isinstance(model, nn.Module):
        return [], []
    return [(parameter, parameter.requires_grad) for parameter in model.parameters()], plain_names(model)


def plain_names(model: nn.Module) -> list[str]:
    """The names in the state dict. PEFT leaves a layer of its own where an adapter was that it has deleted."""
    return [name.replace(".base_layer", "") for name in model.state_dict()]


def check_facts(model: Any, flags: list[tuple[nn.Parameter, bool]], names: list[str]) -> None:
    """After a refusal, and after `unload()`, the model is as it was."""
    if not isinstance(model, nn.Module) or any(DELTA in name or PROBE in name for name in model.state_dict()):
        return
    if [parameter for parameter, was in flags if parameter.requires_grad != was]:
        raise Wrong("requires_grad altered")
    if plain_names(model) != names:
        raise Wrong("names of the state dict altered")


def wrapped_alone(trial: Trial, model: Any, trainer: R2FTrainer | None) -> bool:
    """Whether a model carries the probes and nothing else, so that `unload()` gives it back."""
    if trainer is None or trial.settings.get("update_target") == "adapter" or isinstance(model, PeftModel):
        return False
    return isinstance(getattr(trainer, "model", None), PeftModel)


def check_trained(trial: Trial, trainer: R2FTrainer, weights: Snapshot, metrics: dict[str, float], shown: str) -> None:
    """A run that ended has done what was asked for."""
    if trainer.state.global_step < 1:
        raise Wrong("no step was taken")
    spoilt = weights.spoilt()
    if spoilt:
        raise Wrong(f"weights became NaN or infinite: {spoilt}")
    changed = weights.changed()
    to_adapter = trainer.target.adapter is not None
    probes = find_probes(trainer.model, writable=not to_adapter)
    allowed = {id(probe.weight) for probe in probes}
    others = [name for name, parameter in weights.parameters if name in set(changed) and id(parameter) not in allowed]
    if (to_adapter and changed) or others:
        raise Wrong(f"weights changed that were not to: {others or changed}")
    if not to_adapter and not changed and "no weight has changed" not in shown:
        raise Wrong("no weight changed, and nobody said so")
    for name, value in metrics.items():
        if name.endswith("_probability") and not 0 <= value <= 1 and "predictions are NaN" not in shown:
            raise Wrong(f"a probability is none: {name} is {value}")
    check_tokens(trial, trainer)


def check_tokens(trial: Trial, trainer: R2FTrainer) -> None:
    """What is trained on holds each row's question and answer, where the tokens can be read back."""
    nothing = {-100, trainer.processing_class.unk_token_id, trainer.processing_class.eos_token_id}
    for examples in (trainer.splits.views, trainer.splits.retain, trainer.splits.holdout):
        for item in {each["item"] for each in examples}:
            # The windows of a text are one item, and one of them may hold nothing but the text's end.
            labels = {label for each in examples if each["item"] == item for label in each["labels"]}
            if labels <= nothing:
                raise Wrong("trained on unknown tokens alone")
    cut = {"max_length", "prompt_column", "completion_column", "window_overlap"} & trial.settings.keys()
    if trial.tokenizer not in FAITHFUL or cut or trial.model[0] == "short context":
        return
    tokenizer = trainer.processing_class
    examples = {"forget": trainer.splits.originals, "retain": trainer.splits.retain, "holdout": trainer.splits.holdout}
    for drawn in trial.sets:
        for index, texts in enumerate(drawn.learned() if examples[drawn.name] else []):
            # A file of text is one row.
            pieces = [each for each in examples[drawn.name] if each["item"] == index or drawn.container == ".txt"]
            ids = [token for each in pieces for token in each["input_ids"]]
            labels = [token for each in pieces for token in each["labels"] if token >= 0]
            # Windows of a text share tokens, which carry a label in one of them.
            ids = labels if drawn.format in ("text", "texts") else ids
            read = (normal(tokenizer.decode(ids)), normal(tokenizer.decode(labels)))
            if texts is not None and any(normal(text) not in found for text, found in zip(texts, read, strict=True)):
                raise Wrong(f"trained on something else: {drawn.name}[{index}] is {read} and not {texts}")


def normal(text: str) -> str:
    """A text without white space, which templates and files may change."""
    return "".join(text.split())


def stopped_by_wish(trial: Trial, error: BaseException) -> bool:
    """Whether a run ended at a bad gradient as it was asked to: the steps before have changed weights then."""
    asked = trial.settings.get("on_bad_gradient") == "stop"
    return asked and isinstance(error, RuntimeError) and origin(error)[1] == "project"


def names_a_setting(trial: Trial, model: Any, error: BaseException) -> bool:
    """Whether the message of a library names what the user has set: a setting, its value, or a model to load."""
    values = [value for value in (*trial.settings.values(), model) if isinstance(value, str) and len(value) > 3]
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", str(error)) for name in (*trial.settings, *values))


def origin(error: BaseException) -> tuple[str, str]:
    """Where an error was raised, and whether by a `raise` of the `"project"` or of a `"library"`."""
    frame, line = last_frame(error.__traceback__)
    path = Path(frame.f_code.co_filename)
    raises = linecache.getline(str(path), line).lstrip().startswith("raise")
    if SOURCE in path.parents:
        return f"{path.relative_to(SOURCE)}:{frame.f_code.co_name}:{line}", "project" if raises else "accident"
    short = "/".join(path.parts[-3:])
    known = any(name in str(path) for name in LIBRARIES)
    # The place in the project, too: one line of a library is reached by many ways.
    ours = [
        f"{Path(each.filename).relative_to(SOURCE)}:{each.name}"
        for each in traceback.extract_tb(error.__traceback__)
        if SOURCE in Path(each.filename).parents
    ]
    where = f"{short}:{frame.f_code.co_name} from {ours[-1] if ours else 'no place of ours'}"
    return where, "library" if raises and known else "accident"


def last_frame(trace: TracebackType | None) -> tuple[FrameType, int]:
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame, trace.tb_lineno


def tail(error: BaseException | None, lines: int = 14) -> str:
    if error is None:
        return ""
    return "\n".join("".join(traceback.format_exception(error)).splitlines()[-lines:])


def check_no_leak(error: BaseException | None, shown: str, folder: Path) -> None:
    """No text to forget is in a message, in a log or in a file."""
    # As Python prints it, with the errors that it came of.
    message = "" if error is None else "".join(traceback.format_exception(error))
    for where, text in (("a message", message), ("a log", shown)):
        if MARKER in text.lower():
            line = next(line for line in text.splitlines() if MARKER in line.lower())
            raise Wrong(f"a text to forget is in {where}: {line[:300]}")
    for path in folder.rglob("*"):
        if path.is_file() and MARKER.encode() in path.read_bytes().lower():
            raise Wrong(f"a text to forget is in a file: {path.relative_to(folder)}")


@contextmanager
def watch(folder: Path) -> Iterator[Watched]:
    """Keep what is printed, logged and warned of, see that files lie within a folder, and end what does not end."""
    watched = Watched()
    handler = logging.StreamHandler(watched.shown)
    for name in LOGGERS:
        logging.getLogger(name).addHandler(handler)
    temporary, tempfile.tempdir = tempfile.tempdir, str(folder)
    with warnings.catch_warnings(record=True) as caught, own_cache(folder / "cache"):
        warnings.simplefilter("always")
        signal.signal(signal.SIGALRM, give_up)
        signal.alarm(SECONDS)
        try:
            with redirect_stdout(watched.shown), redirect_stderr(watched.shown):
                yield watched
        finally:
            signal.alarm(0)
            tempfile.tempdir = temporary
            for name in LOGGERS:
                logging.getLogger(name).removeHandler(handler)
            for each in caught:
                watched.shown.write(f"{each.message}\n")
            # Accelerate keeps the precision of the first trainer otherwise.
            AcceleratorState._reset_state(reset_partial_state=True)
            PartialState._reset_state()


def give_up(*args: Any) -> None:
    raise TimeoutError(f"A trial takes more than {SECONDS} seconds.")


@contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """Let `datasets` keep its cache within a folder."""
    import datasets.config

    before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, folder
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before
