"""The model card of a result: what was asked, how it was done, what was measured, and what it cannot promise."""

from __future__ import annotations

import logging
import math
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.constants import REPOCARD_NAME
from jinja2 import Environment, PackageLoader, StrictUndefined
from peft.utils import SAFETENSORS_WEIGHTS_NAME

from .questions import answers, measured, not_measured, verdict
from .run import Run, read_run


logger = logging.getLogger(__name__)

TAGS = ["unlearning", "machine-unlearning", "r2f-hf", "arxiv:2512.07374"]
# More hashes than these are left to the ledger.
MOST_HASHES = 100
LICENSE_KEYS = ("license", "license_name", "license_link")


def write_model_card(folder: Path, name: str | None = None, more: dict[str, Any] | None = None) -> None:
    """
    Write `README.md` of a folder that a run has been saved to. A `README.md` that is no model card is left alone.

    Args:
        folder (`Path`):
            The folder, with its ledger.
        name (`str`, *optional*):
            Name of the model. Defaults to that of the folder.
        more (`dict[str, Any]`, *optional*):
            Further metadata, such as `language`. They take precedence.
    """
    file = folder / REPOCARD_NAME
    if file.is_file() and not read_metadata(file):
        logger.warning("%s is no model card, and is left as it is.", file)
        return
    model_card(read_run(folder), name or folder.resolve().name, more).save(file)


def model_card(run: Run, name: str, more: dict[str, Any] | None = None) -> ModelCard:
    """
    The model card of a run. It has no text of the rows, and no names of local files.

    Args:
        run ([`Run`]):
            The run.
        name (`str`):
            Name of the model.
        more (`dict[str, Any]`, *optional*):
            Further metadata.
    """
    found = answers(run)
    heading, sentence = verdict(found, run.undone)
    base = run.details.model
    data = {split: on_hub(source) for split, source in run.details.data.items()}
    is_adapter = (run.folder / SAFETENSORS_WEIGHTS_NAME).is_file()
    metadata: dict[str, Any] = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": TAGS,
        "datasets": sorted({source.split(":")[0] for source in data.values() if source}) or None,
        "base_model": base if base and on_hub(base) else None,
        "model_name": name,
        "eval_results": eval_results(run),
    }
    metadata |= taken_over(base) | {key: value for key, value in (more or {}).items() if value is not None}
    # A tag may come alone.
    tags = metadata["tags"] if isinstance(metadata["tags"], list) else [metadata["tags"]]
    metadata["tags"] = list(dict.fromkeys([*TAGS, *tags]))
    request = run.entry["request"]
    environment = Environment(
        loader=PackageLoader("r2f_hf.report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    content = environment.get_template("model_card.md.j2").render(
        card_data=ModelCardData(**metadata).to_yaml(),
        name=name,
        heading=heading,
        sentence=sentence,
        answers=found,
        entry=run.entry,
        recipe=run.recipe,
        number=run.number,
        rows=len(request["rows"]),
        hashes=request["rows"] if len(request["rows"]) <= MOST_HASHES else [],
        sizes=run.details.set_sizes,
        data=data,
        not_measured=not_measured(run, found),
        is_adapter=is_adapter,
        version=version("r2f-hf"),
    )
    return ModelCard(content, ignore_metadata_errors=True)


def eval_results(run: Run) -> list[EvalResult]:
    """The figures after the run, as the Hub's `model-index` has them."""
    suites = " and ".join(report["suite"] for report in run.evaluations) or "rows of the run"
    dataset = f"{suites}; {len(run.entry['request']['rows'])} rows to forget"
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Unlearning",
            dataset_type="unlearning-request",
            dataset_name=dataset,
            metric_type=figure.name,
            metric_name=figure.name.replace("_", " "),
            metric_value=figure.after,
        )
        for _, figure in measured(run)
        if figure.after is not None and math.isfinite(figure.after)
    ]


def on_hub(source: str) -> str | None:
    """A name on the Hub as it is; `None` for a local file or folder, whose name may tell who was forgotten."""
    is_name = re.fullmatch(r"[\w.-]+/[\w.-]+(:[^/]*)?", source) is not None
    return source if is_name and not Path(source).exists() and not Path(source).suffix else None


def taken_over(base: str | None) -> dict[str, Any]:
    """The licence and the base model that the card of the model before the run names, if it lies on the disk."""
    if base is None or not (Path(base) / REPOCARD_NAME).is_file():
        return {}
    known = read_metadata(Path(base) / REPOCARD_NAME)
    return {key: known[key] for key in (*LICENSE_KEYS, "base_model", "language") if known.get(key) is not None}


def read_metadata(file: Path) -> dict[str, Any]:
    """The metadata of a card. They are empty if there are none, or if they cannot be read."""
    try:
        return ModelCard.load(file, ignore_metadata_errors=True).data.to_dict()
    except ValueError:
        return {}
