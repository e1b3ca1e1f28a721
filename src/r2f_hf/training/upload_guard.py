"""UploadGuard: refuses to push a folder in which rows of the forget set stand."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..runs.upload import check_upload


class UploadGuard(TrainerCallback):
    """
    Looks through the output folder before Trainer pushes it to the Hub, see [`~r2f_hf.runs.upload.check_upload`].

    Args:
        rows (`Sequence[Sequence[str]]`):
            The texts of the forget rows.
    """

    def __init__(self, rows: Sequence[Sequence[str]]):
        self.rows = rows

    def on_push_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """
        Look through the folder. Trainer calls this before every push.

        Raises:
            `ValueError`: Naming the file and the row.
        """
        if state.is_world_process_zero:
            check_upload(args.output_dir, self.rows)
