"""Which loss for which data and failure: the guide of ``prefopt losses --why`` and of the docs.

When to use a loss, when not, and its family stand in the file of the loss. Here are the texts that
belong to no loss alone: what a family is, and which losses to try in which situation.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from prefopt.losses import Loss


@dataclass(frozen=True)
class Family:
    """Losses that answer the same question, shown together."""

    name: str
    title: str
    text: str


@dataclass(frozen=True)
class Situation:
    """A row of the decision guide: losses, or sums of losses, to try first for data and a wish."""

    data: str
    wish: str
    losses: tuple[str, ...]
    why: str

    def loss_names(self) -> set[str]:
        """Return the names in ``losses``, those within sums too."""
        return set(re.findall(r"[a-z]\w*", " ".join(self.losses)))


FAMILIES = (
    Family(
        "margin",
        "Pairs: a function of the reward margin",
        "They look at how much more the policy prefers the chosen completion than the reference "
        "does, and at nothing else. They differ in what they do to pairs that are already right, "
        "and to pairs that are far on the wrong side.",
    ),
    Family(
        "data",
        "Pairs: labels, scores and lengths of the data",
        "They change the margin, or the weight of a pair, by what the data says about it: how sure "
        "the label is, how much better the chosen completion is, how long both are.",
    ),
    Family(
        "anchored",
        "Pairs: each completion on its own",
        "The margin can grow while both completions become less likely. These losses say where "
        "the chosen one should go, or keep it (or the whole policy) near the reference.",
    ),
    Family(
        "batch",
        "Pairs: the batch as a whole",
        "The loss of a pair depends on the other pairs of the optimiser step, so it is computed "
        "for the whole step at once, over micro-batches and processes.",
    ),
    Family(
        "searched",
        "Pairs: found by a language model",
        "DiscoPOP and its siblings were proposed by a language model and selected by how their "
        "policies scored, so they have properties that nobody would design.",
    ),
    Family(
        "no_reference",
        "Pairs without a reference",
        "They compare log-probs of the policy itself: nothing needs scoring beforehand, and only "
        "the loss holds the policy back.",
    ),
    Family(
        "unpaired",
        "Unpaired completions",
        "Each completion has a label, desirable or not. Pairs can be used too: the chosen "
        "completion counts as desirable, the rejected one as not.",
    ),
    Family(
        "ranked",
        "Rankings",
        "They see all completions of a prompt at once. A loss for pairs also takes rankings: all "
        "their pairs.",
    ),
    Family(
        "term",
        "Terms of a sum",
        "They look only at preferred completions, of any kind of data, and are added to another "
        "loss.",
    ),
)

SITUATIONS = (
    Situation(
        "pairs",
        "a first run",
        ("dpo",),
        "best understood, and the usual baseline",
    ),
    Situation(
        "pairs",
        "too little memory or time for a reference",
        ("simpo", "cpo + sft", "orpo"),
        "no reference; simpo needs its beta and gamma tuned, orpo starts from a base model",
    ),
    Situation(
        "pairs",
        "rewards keep growing, and the policy ends far from the reference",
        ("ipo", "tdpo", "chi_po"),
        "ipo gives the margin a finite target; tdpo and chi_po penalise the divergence itself",
    ),
    Situation(
        "pairs",
        "chosen completions become less likely in training",
        ("dpo + 0.2*sft", "dpop", "nca", "apo_zero", "cal_dpo"),
        "the margin alone does not say where the chosen completion should go; these do",
    ),
    Situation(
        "pairs",
        "both completions are nearly the same text",
        ("dpop", "dpo + 0.2*sft"),
        "DPO then lowers both; dpop penalises every nat that the chosen one falls",
    ),
    Situation(
        "pairs",
        "answers grow longer",
        ("r_dpo", "ln_dpo", "ld_dpo", "simpo"),
        "a price per token, log-ratios per token, or a tail that counts less",
    ),
    Situation(
        "pairs",
        "some labels are wrong",
        ("dpo", "robust"),
        "dpo with `label_smoothing` is bounded below; robust is unbiased if you know the share",
    ),
    Situation(
        "pairs with probabilities",
        "annotators disagree",
        ("soft_dpo", "geometric_dpo"),
        "the first reproduces the probability, the second gives unsure pairs less weight",
    ),
    Situation(
        "pairs with scores",
        "the size of the difference should count",
        ("odpo", "rpo"),
        "an offset that grows with the margin, or a fit to it",
    ),
    Situation(
        "pairs",
        "the policy already writes better than the chosen completions",
        ("apo_down",),
        "it lowers both, the rejected one more",
    ),
    Situation(
        "pairs, sampled and judged anew",
        "rounds of self-play",
        ("sppo",),
        "each round regresses log-ratios on the win rate",
    ),
    Situation(
        "pairs",
        "the worst cases matter most",
        ("aot",),
        "it compares whole distributions, including their low ends",
    ),
    Situation(
        "unpaired",
        "a first run",
        ("kto",),
        "made for this; weights even out the labels",
    ),
    Situation(
        "unpaired",
        "mismatched completions cost too much, or the reward should classify",
        ("apo_zero_unpaired", "bco"),
        "neither needs the KL estimate of kto",
    ),
    Situation(
        "rankings",
        "only the order is known",
        ("plackett_luce", "rrhf + sft"),
        "the likelihood of the order; or, without a reference, a hinge on each pair",
    ),
    Situation(
        "rankings with scores",
        "scores mean something",
        ("lipo", "infonca", "nca_ranked"),
        "weights from the scores; or the policy's choice fitted to theirs",
    ),
    Situation(
        "any",
        "long reasoning: which is better, how good each is, and how to write it (MPO)",
        ("0.8*dpo + 0.2*bco_pair + sft",),
        "the sum of arXiv:2411.10442, which has images in its data; images are not read here",
    ),
)


def losses_by_family(losses: Sequence[Loss]) -> list[tuple[Family, list[Loss]]]:
    """Return the families that have losses, each with its losses, in the order to show them.

    A family that is not in ``FAMILIES`` comes after those; losses without a family come last.
    """
    known = {family.name: family for family in FAMILIES}
    others = sorted({loss.family for loss in losses} - {*known, ""})
    families = [
        *FAMILIES,
        *(Family(name, name.replace("_", " ").capitalize(), "") for name in others),
    ]
    groups = [
        (family, [loss for loss in losses if loss.family == family.name]) for family in families
    ]
    groups.append(
        (Family("other", "Other losses", ""), [loss for loss in losses if not loss.family])
    )
    return [(family, members) for family, members in groups if members]
