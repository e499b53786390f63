"""Which loss for which data and failure: the guide of ``prefopt losses --why`` and of the docs."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Losses that answer the same question, shown together."""

    name: str
    title: str
    text: str


@dataclass(frozen=True)
class Advice:
    """When to use a loss and when not.

    Attributes:
        family: Name of its family.
        use: Completes "use it when".
        avoid: Completes "not when".
    """

    family: str
    use: str
    avoid: str


@dataclass(frozen=True)
class Situation:
    """A row of the decision guide.

    Attributes:
        data: Kind of data.
        wish: What is wanted, or what went wrong.
        losses: Losses or sums of losses to try, the first first.
        why: Why these.
    """

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
        "and to pairs that are hopelessly wrong.",
    ),
    Family(
        "data",
        "Pairs: labels, scores and lengths of the data",
        "They change the margin, or how much a pair counts, by what the data say about it: how "
        "sure the label is, by how much the chosen completion is better, how long both are.",
    ),
    Family(
        "anchored",
        "Pairs: each completion on its own",
        "The margin can grow while both completions become less likely. These losses say where "
        "the chosen one should go, or hold it, or the whole policy, to the reference.",
    ),
    Family(
        "batch",
        "Pairs: the batch as a whole",
        "The loss of a pair depends on the other pairs of the optimiser step, which is therefore "
        "computed at once, over micro-batches and processes.",
    ),
    Family(
        "searched",
        "Pairs: found by a language model",
        "DiscoPOP and its siblings were proposed by a language model and kept by how their "
        "policies scored, so they have properties that nobody would have designed.",
    ),
    Family(
        "no_reference",
        "Pairs without a reference",
        "They compare log-probs of the policy itself: nothing has to be scored beforehand, and "
        "nothing but the loss holds the policy back.",
    ),
    Family(
        "unpaired",
        "Single completions",
        "Each completion is desirable or not. Pairs can be used too: each gives two thumbs.",
    ),
    Family(
        "ranked",
        "Rankings",
        "They see all completions of a prompt at once. A loss for pairs also takes rankings, as "
        "all their pairs.",
    ),
    Family(
        "term",
        "Terms of a sum",
        "They look at preferred completions only, of any data, and are added to another loss.",
    ),
)

ADVICE: dict[str, Advice] = {
    # Pairs: a function of the reward margin.
    "dpo": Advice(
        "margin",
        "there is no reason for another: the best understood, and what others are measured by",
        "labels are deterministic and training is long: margins grow without bound",
    ),
    "robust": Advice(
        "margin",
        "a known share of the labels is flipped at random",
        "that share is a guess: the loss falls without bound as margins grow",
    ),
    "hinge": Advice(
        "margin",
        "pairs that are right by a margin of 1/beta should have no more influence",
        "pairs differ in how clear they are: each is pushed to the same margin",
    ),
    "ipo": Advice(
        "margin",
        "DPO overfits: the margin is drawn to a finite target, so the policy stays near",
        "lengths vary and `normalize` is not thought about: it sets the unit of beta",
    ),
    "gpo": Advice(
        "margin",
        "you want to compare shapes with everything else equal",
        "`f='exponential'` and labels are noisy: wrong pairs dominate",
    ),
    "exo": Advice(
        "margin",
        "a policy of limited capacity should pick one good mode rather than cover all",
        "the policy starts far on the wrong side: the slope vanishes there",
    ),
    "chi_po": Advice(
        "margin",
        "the policy over-optimises, and guarantees under partial coverage matter",
        "completions are long: their summed log-ratios saturate the exponential",
    ),
    # Pairs: labels, scores and lengths of the data.
    "soft_dpo": Advice(
        "data",
        "each pair has a probability, such as a share of votes, and margins should reflect it",
        "probabilities come from an uncalibrated judge: they are reproduced as they are",
    ),
    "geometric_dpo": Advice(
        "data",
        "each pair has a probability, and unsure pairs should count less",
        "margins should stop at what the probability says: that is `soft_dpo`",
    ),
    "odpo": Advice(
        "data",
        "scores say by how much the chosen completion is better",
        "scores of different prompts are on different scales",
    ),
    "rpo": Advice(
        "data",
        "a reward model's margins are trusted and should be reproduced, not just their sign",
        "only the order of scores means something",
    ),
    "r_dpo": Advice(
        "data",
        "answers grow longer because chosen completions are longer",
        "length is what people prefer: that part of the preference is not learnt",
    ),
    "ln_dpo": Advice(
        "data",
        "lengths differ much and long completions should not have the larger reward for it",
        "beta is taken over from DPO: here it is per token, 2 to 15 in the paper",
    ),
    "ld_dpo": Advice(
        "data",
        "the tail of the longer completion should count less, but should count",
        "both completions are about as long: it is then DPO",
    ),
    # Pairs: each completion on its own.
    "nca": Advice(
        "anchored",
        "the likelihood of chosen completions falls in training and should not",
        "the chosen completion is merely the less bad one",
    ),
    "bco_pair": Advice(
        "anchored",
        "the reward should be usable as a classifier of single completions",
        "chosen and rejected rewards drift together quickly: the threshold follows slowly",
    ),
    "apo_zero": Advice(
        "anchored",
        "chosen completions are better than what the policy writes",
        "they are worse: it still makes them more likely",
    ),
    "apo_down": Advice(
        "anchored",
        "the policy already writes better than the chosen completions",
        "chosen completions are to be imitated: it makes them less likely",
    ),
    "sppo": Advice(
        "anchored",
        "pairs are sampled from the policy and judged, round after round",
        "beta is left at the 0.1 of other losses: the paper's is 0.001",
    ),
    "cal_dpo": Advice(
        "anchored",
        "the scale of rewards matters, or chosen likelihood falls under DPO",
        "log-ratios that the data deserve differ much: all are drawn to the same two targets",
    ),
    "dpop": Advice(
        "anchored",
        "the two completions differ in few tokens, and DPO lowers both",
        "the chosen completions should become less likely (see `apo_down`)",
    ),
    "tdpo": Advice(
        "anchored",
        "the policy drifts, and its divergence at each token should be held",
        "no live reference fits in memory: cached log-probs do not suffice",
    ),
    # Pairs: the batch as a whole.
    "aot": Advice(
        "batch",
        "the whole distribution of margins should improve, its low end included",
        "the optimiser step holds few pairs: with one it is DPO",
    ),
    "aot_unpaired": Advice(
        "batch",
        "chosen and rejected completions belong to different prompts",
        "pairs are real and few: what pairs them is thrown away",
    ),
    "beta_dpo": Advice(
        "batch",
        "the quality of pairs changes over the data, and one beta does not fit all",
        "the optimiser step holds few pairs: beta then follows noise",
    ),
    # Pairs: found by a language model.
    "discopop": Advice(
        "searched",
        "you want the loss of that search that did best on held-out tasks",
        "a convex loss is needed: near 0 it pushes margins the wrong way",
    ),
    "cell": Advice(
        "searched",
        "wrong pairs should be corrected more strongly than by DPO",
        "labels are noisy: the exponential makes wrong pairs dominate",
    ),
    "padll": Advice(
        "searched",
        "pairs the policy has the wrong way round are thought to be mislabelled: they count half",
        "those are the pairs to learn from",
    ),
    "dbaql": Advice(
        "searched",
        "you reproduce the paper",
        "the optimiser step holds few pairs: their variance decides the shape",
    ),
    "aql": Advice(
        "searched",
        "you reproduce the paper",
        "results must not depend on the batch size",
    ),
    "aqfl": Advice(
        "searched",
        "you reproduce the paper",
        "results must not depend on the batch size",
    ),
    "pfl": Advice(
        "searched",
        "pairs that the policy itself ranks wrong should get most of the gradient",
        "the reference matters for which pairs those are: it is not asked",
    ),
    # Pairs without a reference.
    "slic": Advice(
        "no_reference",
        "a margin in nats and a likelihood term are all you want to set",
        "lengths differ much: summed log-probs favour the shorter completion",
    ),
    "cpo": Advice(
        "no_reference",
        "memory or time forbids a reference; add `sft` as the paper does",
        "used alone for long: nothing keeps chosen completions likely",
    ),
    "cpo_hinge": Advice(
        "no_reference",
        "pairs ahead by 1/beta nats should stop counting",
        "used alone for long: nothing keeps chosen completions likely",
    ),
    "cpo_ipo": Advice(
        "no_reference",
        "the gap of log-probs per token should settle at a target",
        "a pair deserves more or less than that target",
    ),
    "arpo": Advice(
        "no_reference",
        "pairs are alike, as good and better translations, and the rejected one is good too",
        "rejected completions are bad: alike pairs are both made more likely",
    ),
    "simpo": Advice(
        "no_reference",
        "generation quality per token counts, and length should not",
        "beta and gamma cannot be tuned, or the policy must stay near: no reference holds it",
    ),
    "simpo_hinge": Advice(
        "no_reference",
        "as for `simpo`, and pairs past the target should stop counting",
        "beta and gamma cannot be tuned",
    ),
    "alphapo": Advice(
        "no_reference",
        "under `simpo` the likelihood of both completions falls too far, or not enough",
        "there is no time to tune alpha besides beta and gamma",
    ),
    "orpo": Advice(
        "no_reference",
        "a base model is to be fine-tuned and aligned in one run",
        "it is fine-tuned already: the likelihood term goes on imitating",
    ),
    # Single completions.
    "kto": Advice(
        "unpaired",
        "data are thumbs, also far more of one than of the other",
        "the batch is tiny and completions long: the reference point is estimated from it",
    ),
    "bco": Advice(
        "unpaired",
        "data are thumbs, and the reward should work as a classifier",
        "the two thumbs come from different prompts: they are told apart by the prompt",
    ),
    "apo_zero_unpaired": Advice(
        "unpaired",
        "desirable completions are better than what the policy writes, and no mismatched "
        "completions should be scored",
        "both thumbs lie below what the policy writes",
    ),
    # Rankings.
    "plackett_luce": Advice(
        "ranked",
        "the whole order is trusted, and there are no scores",
        "only the top is: the order of the worst counts as much",
    ),
    "lipo": Advice(
        "ranked",
        "completions have scores, and what is near the top matters most",
        "scores are large numbers: set `score_scale`, for 2 is raised to their power",
    ),
    "infonca": Advice(
        "ranked",
        "completions have scores whose differences mean something",
        "the likelihood of good completions must not fall: see `nca_ranked`",
    ),
    "exo_ranked": Advice(
        "ranked",
        "completions have scores, and the policy should settle on the best",
        "several completions are equally good and all should stay likely",
    ),
    "nca_ranked": Advice(
        "ranked",
        "completions have scores, and good ones should gain likelihood, not only lead",
        "even the best completions are worse than what the policy writes",
    ),
    "rrhf": Advice(
        "ranked",
        "there is no reference and nothing to tune; add `sft` as the paper does",
        "a margin is wanted: pairs in the right order have no gradient",
    ),
    # Terms of a sum.
    "sft": Advice(
        "term",
        "chosen completions should stay, or become, likely: `dpo + 0.2*sft`",
        "chosen completions are worse than what the policy writes",
    ),
    "squared_log_ratio": Advice(
        "term",
        "the policy should stay near the reference on preferred completions",
        "completions are long and the weight is large: it grows with the square of the sum",
    ),
}

SITUATIONS = (
    Situation(
        "pairs",
        "a first run",
        ("dpo",),
        "best understood, and what the others are measured by",
    ),
    Situation(
        "pairs",
        "memory or time for a reference is short",
        ("simpo", "cpo + sft", "orpo"),
        "no reference; simpo needs its beta and gamma tuned, orpo starts from a base model",
    ),
    Situation(
        "pairs",
        "rewards grow and grow, the policy ends far from the reference",
        ("ipo", "tdpo", "chi_po"),
        "ipo's margin has a finite target; tdpo and chi_po charge for the divergence itself",
    ),
    Situation(
        "pairs",
        "chosen completions become less likely in training",
        ("dpo + 0.2*sft", "dpop", "nca", "apo_zero", "cal_dpo"),
        "the margin alone does not say where the chosen completion goes; these do",
    ),
    Situation(
        "pairs",
        "both completions are nearly the same text",
        ("dpop", "dpo + 0.2*sft"),
        "DPO lowers both there; dpop charges for every nat the chosen one falls",
    ),
    Situation(
        "pairs",
        "answers become longer",
        ("r_dpo", "ln_dpo", "ld_dpo", "simpo"),
        "a price per token, log-ratios per token, or a tail that counts less",
    ),
    Situation(
        "pairs",
        "some labels are wrong",
        ("dpo", "robust"),
        "dpo with `label_smoothing` is bounded below; robust is unbiased if the share is known",
    ),
    Situation(
        "pairs with probabilities",
        "annotators disagree",
        ("soft_dpo", "geometric_dpo"),
        "the first reproduces the probability, the second weighs unsure pairs down",
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
        "it compares whole distributions, their low ends too",
    ),
    Situation(
        "thumbs",
        "a first run",
        ("kto",),
        "made for them; weights even out the labels",
    ),
    Situation(
        "thumbs",
        "no mismatched completions to score, or a reward that classifies",
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
        "multimodal or long reasoning data, as in MPO",
        ("0.8*dpo + 0.2*bco_pair + sft",),
        "the sum of arXiv:2411.10442: which is better, how good, and how to write it",
    ),
)
