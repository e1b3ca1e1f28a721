"""Truth stability, as an `evaluate` metric."""

import datasets
import evaluate
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from r2f_hf.metrics.checks import check_lists


# Parts that the statements are split into to see how well the probe works.
FOLDS = 5

_DESCRIPTION = """
Whether what was forgotten looks unfamiliar to a model, or false. Linear probes (logistic regressions) on the hidden
states of statements judge it, after arXiv 2511.19166:

- the probe for true against not true is fitted to true, false and unfamiliar statements. `judged_true` is the share of
  forgotten statements that it finds true;
- the same probe is fitted twice to these and the forgotten statements: once with the forgotten ones as not true, and
  once as true. `truth_stability` is the share of true and false statements, left out of both fits, that both judge
  alike. It is the lower the more the forgotten statements lie among them;
- the probe for unfamiliar against familiar is fitted to true, false and unfamiliar statements. `unfamiliar` is the
  share of forgotten statements that it finds unfamiliar.

Unfamiliar statements are about things that no model has seen, such as a holdout set of invented people.
`probe_accuracy` says how well the first probe judges statements that it was not fitted to. Where it is near 0.5, the
model's states do not tell true from not true, and the other figures mean nothing. The paper fits a multiple-instance
support vector machine to the states of several tokens; here a statement has one state.
"""

_CITATION = """
@article{dies2025representational, title={Representational Stability of Truth in Large Language Models}, author={Dies,
Samantha and Maynard, Courtney and Savcisens, Germans and Eliassi-Rad, Tina}, journal={arXiv:2511.19166}, year={2025}}
"""

_INPUTS = """
Args:
    predictions (`list[list[float]]`): hidden states of the forgotten statements. [`hidden_states`] computes them.
    true (`list[list[float]]`): those of true statements that the model should still know.
    false (`list[list[float]]`): those of the same statements made wrong.
    unfamiliar (`list[list[float]]`): those of statements that the model never saw.
    seed (`int`, *optional*, defaults to `0`): seed of the order in which statements are left out.
Returns:
    `dict`: `truth_stability`, `unfamiliar`, `judged_true` and `probe_accuracy` (`float`), and `rows` (`list[float]`),
        for each forgotten statement the probability that it is unfamiliar.
"""


class TruthStability(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))}),
        )

    def _compute(self, predictions, true, false, unfamiliar, seed=0):
        sets = {"predictions": predictions, "true": true, "false": false, "unfamiliar": unfamiliar}
        states = {}
        for name, rows in sets.items():
            states[name] = check_lists(rows, name, "hidden state")
            if len(rows) < FOLDS:
                raise ValueError(f"`{name}` has {len(rows)} rows. The probe needs at least {FOLDS} of each kind.")
            for index, row in enumerate(states[name]):
                if len(row) != len(states["predictions"][0]):
                    raise ValueError(f"Row {index} of `{name}` has {len(row)} numbers. All rows need equally many.")
        forgotten = np.stack(states["predictions"])
        kinds = np.repeat(["true", "false", "unfamiliar"], [len(true), len(false), len(unfamiliar)])
        known = np.stack(states["true"] + states["false"] + states["unfamiliar"])
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000, class_weight="balanced"))
        is_true, familiar = kinds == "true", kinds != "unfamiliar"
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        accuracy = cross_val_score(probe, known, is_true, cv=folds, scoring="balanced_accuracy")
        judged_true = probe.fit(known, is_true).predict(forgotten).mean()
        same = []
        # In as many dimensions as hidden states have, a probe gets all statements right that it is fitted to.
        for fitted, left_out in folds.split(known, kinds):
            statements = np.concatenate([known[fitted], forgotten])
            before, after = (
                probe.fit(statements, np.append(is_true[fitted], np.full(len(forgotten), called_true))).predict(
                    known[left_out][familiar[left_out]]
                )
                for called_true in (False, True)
            )
            same += (before == after).tolist()
        chance = probe.fit(known, ~familiar).predict_proba(forgotten)[:, 1]
        return {
            "truth_stability": float(np.mean(same)),
            "unfamiliar": float((chance > 0.5).mean()),
            "judged_true": float(judged_true),
            "probe_accuracy": float(accuracy.mean()),
            "rows": chance.tolist(),
        }
