"""BibTeX entries: of the papers that methods are from, and of this project."""

from __future__ import annotations

import re

from ray_unlearn import __version__

ARXIV = re.compile(r"arXiv:(\d{2})(\d{2})\.(\d{4,5})")
PAPERS = {
    "2203.12817": ("Liu, Bo and others", "Continual Learning and Private Unlearning"),
    "2305.18290": (
        "Rafailov, Rafael and others",
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    ),
    "2401.06121": ("Maini, Pratyush and others", "{TOFU}: A Task of Fictitious Unlearning for {LLMs}"),
    "2402.10052": (
        "Dong, Yijiang River and others",
        "{UNDIAL}: Self-Distillation with Adjusted Logits for Robust Unlearning in Large Language Models",
    ),
    "2403.03218": (
        "Li, Nathaniel and others",
        "The {WMDP} Benchmark: Measuring and Reducing Malicious Use With Unlearning",
    ),
    "2404.05868": (
        "Zhang, Ruiqi and others",
        "Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning",
    ),
    "2409.13474": (
        "Mekala, Anmol and others",
        "Alternate Preference Optimization for Unlearning Factual Knowledge in Large Language Models",
    ),
    "2410.07163": (
        "Fan, Chongyu and others",
        "Simplicity Prevails: Rethinking Negative Preference Optimization for {LLM} Unlearning",
    ),
    "2502.19301": (
        "Wang, Qizhou and others",
        "Rethinking {LLM} Unlearning Objectives: A Gradient Perspective and Go Beyond",
    ),
    "2503.01224": ("Yang, Bo", "{CE-U}: Cross Entropy Unlearning"),
    "2505.11953": (
        "Yang, Puning and others",
        "Exploring Criteria of Loss Reweighting to Enhance {LLM} Unlearning",
    ),
    "2506.05314": (
        "Entesari, Taha and others",
        "Constrained Entropic Unlearning: A Primal-Dual Framework for Large Language Models",
    ),
}
"""By arXiv number, authors and title of what the shipped methods name."""


def cite(paper: str) -> str:
    """BibTeX for every arXiv number in a method's `paper`, and for this project behind them. A number that is not in
    PAPERS has an entry without authors and title."""
    entries = []
    for year, month, number in dict.fromkeys(ARXIV.findall(paper)):
        name = f"{year}{month}.{number}"
        authors, title = PAPERS.get(name, ("", ""))
        fields = {"author": authors, "title": title, "year": f"20{year}", "eprint": name, "archivePrefix": "arXiv"}
        entries.append(_entry("misc", f"arxiv-{name}", fields))
    ours = {
        "title": "{ray_unlearn}: search of the settings of language-model unlearning",
        "author": "{The ray_unlearn authors}",
        "version": __version__,
    }
    return "\n\n".join([*entries, _entry("software", "ray_unlearn", ours)])


def _entry(kind: str, key: str, fields: dict[str, str]) -> str:
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items() if value)
    return f"@{kind}{{{key},\n{lines}\n}}"
