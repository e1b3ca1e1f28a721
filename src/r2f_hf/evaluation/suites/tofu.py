"""TOFU: its splits."""

from __future__ import annotations


# The splits that model utility is taken over, where a suite has them.
UTILITY_SPLITS = ("retain", "real_authors", "world_facts")


# TOFU's own names on the Hub (`locuslab/TOFU`), which are also the names of the files in a local copy of it.
TOFU_SPLITS = {
    "forget": "{forget}_perturbed",
    "retain": "retain_perturbed",
    "real_authors": "real_authors_perturbed",
    "world_facts": "world_facts_perturbed",
}
