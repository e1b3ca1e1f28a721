"""Unlearning depth, as an `evaluate` metric."""

import datasets
import evaluate
import numpy as np

from r2f_hf.metrics.checks import check_lists, check_rows


_DESCRIPTION = """
How deep inside a model the forgetting goes (UDS, arXiv 2605.24614). Hidden states of another model replace those of
the model that knows the answer, layer by layer. They do so at the tokens that predict the answer's key words, whose
mean log-probability then falls. It falls by d_1 with a model that never saw the answer (gold), and by d_2 with the
model to judge. Over the layers with d_1 above the threshold:

    UDS = sum d_1 clip(d_2/d_1, 0, 1) / sum d_1

It is 1 if the judged model's hidden states say as little as gold's. It is 0 if they say as much as those of the model
that knows.

[`patching_falls`] computes d_1 and d_2. The authors' code puts the last layer's states through the final norm once too
often. `final_norm=True` of that function gives their numbers.
"""

_CITATION = """
@article{lee2026measuring, title={Measuring the Depth of {LLM} Unlearning via Activation Patching}, author={Lee, Jaeung
and Kim, Dohyun and Jo, Jaemin}, journal={arXiv:2605.24614}, year={2026}}
"""

_INPUTS = """
Args:
    predictions (`list[list[float]]`): d_2 of each layer, for each row.
    gold (`list[list[float]]`): d_1 of each layer, for each row.
    threshold (`float`, *optional*, defaults to `0.05`): layers with a smaller d_1 carry no knowledge, and do not
    count.
Returns:
    `dict`: `unlearning_depth` (`float`), the mean; `rows` (`list[float]`), that of each row, or `None` if no layer of
        it carries knowledge; and `left_out` (`list[int]`), the numbers of these rows, which the mean leaves out.
"""


class UnlearningDepth(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
        )

    def _compute(self, predictions, gold, threshold=0.05):
        check_rows(predictions=predictions, gold=gold)
        if threshold <= 0:
            raise ValueError(
                f"`threshold` is {threshold}, and must be above 0: it is divided by falls that are larger."
            )
        judged, known = check_lists(predictions, "predictions", "layer"), check_lists(gold, "gold", "layer")
        rows = []
        for index, (fall, gold_fall) in enumerate(zip(judged, known, strict=True)):
            if len(fall) != len(gold_fall):
                raise ValueError(
                    f"Row {index} has {len(fall)} layers in `predictions` and {len(gold_fall)} in `gold`."
                )
            counted = gold_fall > threshold
            weights = gold_fall[counted]
            rows.append(float(np.clip(fall[counted], 0, weights).sum() / weights.sum()) if counted.any() else None)
        left_out = [index for index, row in enumerate(rows) if row is None]
        if len(left_out) == len(rows):
            raise ValueError(
                f"No layer of any row has a fall above `threshold={threshold}` in `gold`: the model that is patched "
                "does not know the answers, or the gold model does."
            )
        mean = float(np.mean([row for row in rows if row is not None]))
        return {"unlearning_depth": mean, "rows": rows, "left_out": left_out}
