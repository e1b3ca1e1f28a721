"""Tasks of lm-evaluation-harness on a model that is loaded already."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..lookup import lookup


if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


def check_lm_eval(tasks: Sequence[str], include_path: str | None = None) -> TaskManager:
    """
    Check that lm-evaluation-harness is installed and has some tasks.

    Args:
        tasks (`Sequence[str]`):
            Names of tasks or groups.
        include_path (`str`, *optional*):
            Folder with further tasks.

    Returns:
        `lm_eval.tasks.TaskManager`: It knows where the tasks are.

    Raises:
        `FileNotFoundError`: If there is no such folder.
        `ValueError`: If the package is not installed, or if there is no such task.
    """
    if include_path is not None and not Path(include_path).is_dir():
        raise FileNotFoundError(f"There is no folder {include_path} with tasks of lm-eval.")
    try:
        manager = _task_manager(include_path)
    except ImportError as error:
        raise ValueError(
            "`lm_eval_tasks` needs lm-evaluation-harness, which is not installed: pip install lm_eval"
        ) from error
    for task in tasks:
        lookup(dict.fromkeys(manager.all_tasks), task, "lm-eval task", list_all=False)
    return manager


@cache
def _task_manager(include_path: str | None) -> TaskManager:
    """What knows the tasks. It reads thousands of files."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)


def run_lm_eval(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    include_path: str | None = None,
    batch_size: int = 16,
) -> dict[str, dict[str, float]]:
    """
    Run tasks of lm-evaluation-harness. On several processes, all of them have to call it, and each runs all rows.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model, on its device.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        tasks (`Sequence[str]`):
            Names of tasks or groups, such as `mmlu`.
        include_path (`str`, *optional*):
            Folder with further tasks.
        batch_size (`int`, *optional*, defaults to `16`):
            Rows per forward pass.

    Returns:
        `dict[str, dict[str, float]]`: For each task, its metrics and their standard errors (`<metric>_stderr`). A
        filter other than `none` follows the name of the metric after a comma. Only the main process of each machine
        gets them.

    Raises:
        `ValueError`: If the package is not installed, or if there is no such task.
    """
    manager = check_lm_eval(tasks, include_path)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    training, _ = model.training, model.eval()
    found = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
        tasks=list(tasks),
        task_manager=manager,
        log_samples=False,
    )
    model.train(training)
    results = {} if found is None else found["results"]
    return {
        task: {name.removesuffix(",none"): value for name, value in values.items() if isinstance(value, int | float)}
        for task, values in results.items()
    }
