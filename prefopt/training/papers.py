"""The papers of losses as BibTeX, to cite what a model was trained with."""

import re
from typing import NamedTuple

from prefopt.losses.registry import Loss

_CITED = re.compile(
    r"(?P<authors>[A-Z][^,;()]*) (?P<year>\d{4})(?: \([^)]*\))?, arXiv:(?P<id>\d{4}\.\d{5})"
)


class Paper(NamedTuple):
    """A paper by its number on arXiv.

    Attributes:
        authors: The first author, surname first.
        title: As BibTeX takes it.
    """

    authors: str
    title: str


PAPERS = {
    "2304.05302": Paper(
        "Yuan, Zheng",
        "{RRHF}: Rank Responses to Align Language Models with Human Feedback without tears",
    ),
    "2305.10425": Paper(
        "Zhao, Yao", "{SLiC-HF}: Sequence Likelihood Calibration with Human Feedback"
    ),
    "2305.18290": Paper(
        "Rafailov, Rafael",
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    ),
    "2309.06657": Paper(
        "Liu, Tianqi", "Statistical Rejection Sampling Improves Preference Optimization"
    ),
    "2310.12036": Paper(
        "Azar, Mohammad Gheshlaghi",
        "A General Theoretical Paradigm to Understand Learning from Human Preferences",
    ),
    "2401.08417": Paper(
        "Xu, Haoran",
        "Contrastive Preference Optimization: Pushing the Boundaries of {LLM} Performance in "
        "Machine Translation",
    ),
    "2402.00856": Paper(
        "Ji, Haozhe", "Towards Efficient Exact Optimization of Language Model Alignment"
    ),
    "2402.01306": Paper(
        "Ethayarajh, Kawin", "{KTO}: Model Alignment as Prospect Theoretic Optimization"
    ),
    "2402.01878": Paper(
        "Liu, Tianqi", "{LiPO}: Listwise Preference Optimization through Learning-to-Rank"
    ),
    "2402.05369": Paper(
        "Chen, Huayu", "Noise Contrastive Alignment of Language Models with Explicit Rewards"
    ),
    "2402.05749": Paper(
        "Tang, Yunhao",
        "Generalized Preference Optimization: A Unified Approach to Offline Alignment",
    ),
    "2402.10571": Paper("Amini, Afra", "Direct Preference Optimization with an Offset"),
    "2402.13228": Paper(
        "Pal, Arka", "Smaug: Fixing Failure Modes of Preference Optimisation with {DPO}-Positive"
    ),
    "2403.00409": Paper(
        "Ray Chowdhury, Sayak",
        "Provably Robust {DPO}: Aligning Language Models with Noisy Feedback",
    ),
    "2403.07691": Paper(
        "Hong, Jiwoo", "{ORPO}: Monolithic Preference Optimization without Reference Model"
    ),
    "2403.19159": Paper(
        "Park, Ryan", "Disentangling Length from Quality in Direct Preference Optimization"
    ),
    "2404.04656": Paper(
        "Jung, Seungjae", "Binary Classifier Optimization for Large Language Model Alignment"
    ),
    "2404.11999": Paper("Zeng, Yongcheng", "Token-level Direct Preference Optimization"),
    "2404.19733": Paper("Pang, Richard Yuanzhe", "Iterative Reasoning Preference Optimization"),
    "2405.00675": Paper(
        "Wu, Yue", "Self-Play Preference Optimization for Language Model Alignment"
    ),
    "2405.14734": Paper(
        "Meng, Yu", "{SimPO}: Simple Preference Optimization with a Reference-Free Reward"
    ),
    "2406.05882": Paper(
        "Melnyk, Igor", "Distributional Preference Alignment of {LLMs} via Optimal Transport"
    ),
    "2406.08414": Paper(
        "Lu, Chris",
        "Discovering Preference Optimization Algorithms with and for Large Language Models",
    ),
    "2406.11704": Paper("{Nvidia}", "{Nemotron-4 340B} Technical Report"),
    "2407.08639": Paper(
        "Wu, Junkang",
        r"{$\beta$-DPO}: Direct Preference Optimization with Dynamic $\beta$",
    ),
    "2407.13399": Paper(
        "Huang, Audrey",
        "Correcting the Mythos of {KL}-Regularization: Direct Alignment without Overoptimization "
        "via Chi-Squared Preference Optimization",
    ),
    "2408.06266": Paper(
        "D'Oosterlinck, Karel",
        "Anchored Preference Optimization and Contrastive Revisions: Addressing "
        "Underspecification in Alignment",
    ),
    "2409.06411": Paper("Liu, Wei", "Length Desensitization in Direct Preference Optimization"),
    "2409.06691": Paper(
        "Furuta, Hiroki", "Geometric-Averaged Preference Optimization for Soft Preference Labels"
    ),
    "2410.03115": Paper(
        "Xu, Haoran",
        "{X-ALMA}: Plug \\& Play Modules and Adaptive Rejection for Quality Translation at Scale",
    ),
    "2411.15124": Paper(
        "Lambert, Nathan", "{Tulu 3}: Pushing Frontiers in Open Language Model Post-Training"
    ),
    "2412.14516": Paper(
        "Xiao, Teng",
        "{Cal-DPO}: Calibrated Direct Preference Optimization for Language Model Alignment",
    ),
    "2501.03884": Paper("Gupta, Aman", "{AlphaPO}: Reward Shape Matters for {LLM} Alignment"),
}


def bibtex_of(loss: Loss) -> str | None:
    """Return the BibTeX entry of a loss's paper; None where its source names none on arXiv.

    The paper of a loss that comes from another package has no title here.

    Args:
        loss: The loss.
    """
    found = _CITED.search(loss.source)
    if found is None:
        return None
    number, year = found["id"], found["year"]
    authors, title = PAPERS.get(number, Paper(found["authors"].removesuffix(" et al."), ""))
    others = " and others" if "et al" in found["authors"] else ""
    surname = re.sub(r"[^a-z]", "", authors.split(",")[0].lower())
    lines = [f"@misc{{{surname}{year}_{number.replace('.', '_')},"]
    lines += [f"  title = {{{title}}},"] if title else []
    lines += [f"  author = {{{authors}{others}}},", f"  year = {{{year}}},"]
    lines += [f"  eprint = {{{number}}},", "  archivePrefix = {arXiv},"]
    return "\n".join([*lines, f"  url = {{https://arxiv.org/abs/{number}}},", "}"])
