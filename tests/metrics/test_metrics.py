"""Every metric is a file that loads by its name and by its path. An unknown name is answered with the nearest."""

from __future__ import annotations

from pathlib import Path

import evaluate
import pytest

from r2f_hf import metrics


@pytest.mark.parametrize("name", metrics.METRICS)
def test_every_metric_says_what_it_takes_and_where_it_comes_from(name: str, tmp_path: Path) -> None:
    loaded = evaluate.load(str(metrics.METRICS[name]), cache_dir=str(tmp_path))
    assert loaded.name == name and "predictions" in loaded.features
    assert loaded.description and loaded.citation and "Returns:" in loaded.inputs_description
    assert metrics.load(name).description == loaded.description


@pytest.mark.parametrize("name", metrics.METRICS)
def test_every_metric_has_a_test_in_its_room(name: str) -> None:
    room = metrics.METRICS[name].parent.name
    tests = (Path(__file__).parent / room / f"test_{room}.py").read_text()
    assert f'"{name}"' in tests


def test_an_unknown_metric_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"Unknown metric: 'truthratio'\. Did you mean 'truth_ratio'"):
        metrics.load("truthratio")


def test_an_unknown_definition_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"Unknown definition: 'openunlearning'\. Did you mean 'open-unlearning'"):
        metrics.load("probability").compute(predictions=[-1.0], definition="openunlearning")


@pytest.mark.parametrize("name", metrics.METRICS)
def test_no_rows_are_no_score(name: str) -> None:
    empty = {
        "probability": {},
        "rouge": {"references": []},
        "rouge_l_recall": {"references": []},
        "verbatim_memorisation": {"references": []},
        "knowledge_memorisation": {"references": []},
        "rwku_recall": {"references": [], "levels": []},
        "truth_ratio": {"wrong": []},
        "unlearning_depth": {"gold": []},
        "truth_stability": {"true": [], "false": [], "unfamiliar": []},
        "relearning_ratio": {"before": [], "gold": [], "gold_before": []},
        "quantisation_ratio": {"before": []},
        "forget_quality": {"gold": []},
        "mia_loss": {"holdout": []},
        "mia_zlib": {"texts": [], "holdout": [], "holdout_texts": []},
        "mia_min_k": {"holdout": []},
        "mia_min_k_plus_plus": {
            "means": [],
            "deviations": [],
            "holdout": [],
            "holdout_means": [],
            "holdout_deviations": [],
        },
        "mia_gradnorm": {"holdout": []},
        "mia_reference": {"reference": [], "holdout": [], "holdout_reference": []},
        "privleak": {"gold": []},
        "privacy_score": {"gold": []},
        "multiple_choice": {"labels": [], "choices": []},
        "usr_gur": {"utility": [], "utility_before": []},
    }
    with pytest.raises(ValueError):
        metrics.load(name).compute(predictions=[], **empty.get(name, {}))
