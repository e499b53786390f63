"""From the log-probs that ``hh_real.py`` measured to accuracies, a table and a chart."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefopt.evaluation import Estimate, bootstrap_interval, mean_interval, preference_accuracy

# What these losses call a completion's score, besides its log-ratio to the start; None of the
# others has one: at the start, all their rewards are 0.
OWN_SCORES = {"slic": "log-prob", "orpo": "mean log-prob", "sft": "mean log-prob"}
HH = ("dpo", "ipo", "kto (pairs)", "kto (one thumb)", "slic", "orpo", "discopop", "sft (control)")
RESAMPLES = 2000


class Pairs(NamedTuple):
    """Held-out pairs, the better completion and the worse one.

    Attributes:
        before: Log-probs of both under the start; (B, 2), nats.
        after: Log-probs of both under the trained policy; (B, 2), nats.
        lengths: Of both; (B, 2), tokens.
        groups: Which pairs belong together, because they are of one tree or ranking; (B,).
    """

    before: Tensor
    after: Tensor
    lengths: Tensor
    groups: Tensor

    @property
    def margins(self) -> Tensor:
        """Log-ratio to the start of the better minus that of the worse; (B,), nats."""
        ratios = self.after - self.before
        return ratios[:, 0] - ratios[:, 1]


def pairs_of(result: Mapping[str, Any]) -> Pairs:
    """Return all pairs of better and worse in held-out rows; of thumbs, each up with each down."""
    before = [logp for row in result["before"] for logp in row]
    after = [logp for row in result["after"] for logp in row]
    lengths = [length for row in result["lengths"] for length in row]
    first, chosen, rejected, groups = 0, [], [], []
    for number, (row, ranks) in enumerate(zip(result["before"], result["ranks"], strict=True)):
        for i in range(len(ranks)):
            for j in range(len(ranks)):
                if ranks[i] < ranks[j]:
                    chosen.append(first + i)
                    rejected.append(first + j)
                    groups.append(result["trees"][number] if result["trees"] else number)
        first += len(row)
    if not chosen:
        labels = [label for row in result["desirable"] for label in row]
        for up in (i for i, label in enumerate(labels) if label):
            for down in (i for i, label in enumerate(labels) if not label):
                chosen.append(up)
                rejected.append(down)
        groups = [0] * len(chosen)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    index = torch.tensor([chosen, rejected]).T
    return Pairs(
        torch.tensor(before, dtype=torch.float64)[index],
        torch.tensor(after, dtype=torch.float64)[index],
        torch.tensor(lengths)[index],
        torch.tensor([numbers[group] for group in groups]),
    )


def sign_test(margins: Tensor) -> float:
    """Return the two-sided p-value of as many positive margins by chance; ties are left out."""
    wins, losses = int((margins > 0).sum()), int((margins < 0).sum())
    total, fewer = wins + losses, min(wins, losses)
    tail = sum(math.comb(total, k) for k in range(fewer + 1)) / 2**total if total else 1.0
    return min(1.0, 2 * tail)


def own_score_margins(pairs: Pairs, objective: str) -> tuple[Tensor, Tensor] | None:
    """Return margins of a loss's own score before and after; None if it is the log-ratio."""
    score = OWN_SCORES.get(objective)
    if score is None:
        return None
    scale = pairs.lengths if score == "mean log-prob" else torch.ones_like(pairs.lengths)
    before, after = pairs.before / scale, pairs.after / scale
    return before[:, 0] - before[:, 1], after[:, 0] - after[:, 1]


def mcnemar_test(before: Tensor, after: Tensor) -> float:
    """Return the exact p-value that as many pairs turned right as turned wrong."""
    return sign_test((after > 0).double() - (before > 0).double())


def group_bootstrap(values: Tensor, groups: Tensor, seed: int = 0) -> Estimate:
    """Return a mean and its 95% interval, resampling whole groups of values."""
    count = int(groups.max()) + 1
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, groups, values.double())
    sizes = torch.bincount(groups, minlength=count).double()
    picks = torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(seed))
    means = sums[picks].sum(1) / sizes[picks].sum(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(values.double().mean().item(), low, high, count)


def auc(result: Mapping[str, Any], seed: int = 0) -> Estimate:
    """Return how often a completion with thumbs up has the larger log-ratio than one down."""
    ratios = torch.tensor(result["after"]).flatten() - torch.tensor(result["before"]).flatten()
    labels = torch.tensor(result["desirable"]).flatten()
    up, down = ratios[labels], ratios[~labels]
    wins = (up[:, None] > down).double() + 0.5 * (up[:, None] == down)
    generator = torch.Generator().manual_seed(seed)
    means = torch.stack(
        [
            wins[torch.randint(len(up), (len(up),), generator=generator)][
                :, torch.randint(len(down), (len(down),), generator=generator)
            ].mean()
            for _ in range(RESAMPLES)
        ]
    )
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(wins.mean().item(), low, high, len(labels))


def summarise(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of one method."""
    pairs = pairs_of(result)
    margins = pairs.margins
    right = (margins > 0).double() + 0.5 * (margins == 0)
    thumbs = not any(result["ranks"])
    if thumbs:
        accuracy = auc(result)
    elif result["method"] in HH:
        accuracy = preference_accuracy(*(pairs.after - pairs.before).unbind(1))
    else:
        accuracy = group_bootstrap(right, pairs.groups)
    summary: dict[str, Any] = {
        "method": result["method"],
        "settings": result["settings"],
        "facts": result["facts"],
        "train_rows": result["train_rows"],
        "held_out_rows": result["held_out_rows"],
        "held_out_set_aside": result["held_out_set_aside"],
        "accuracy": accuracy,
        "accuracy_bootstrap": None if thumbs else group_bootstrap(right, pairs.groups),
        "p_against_half": None if thumbs else sign_test(margins),
        "margin_nats": mean_interval(margins),
        "logps_before": pairs.before.mean(0).tolist(),
        "logps_after": pairs.after.mean(0).tolist(),
        "longer_preferred": ((margins > 0) == (pairs.lengths[:, 0] > pairs.lengths[:, 1]))[
            pairs.lengths[:, 0] != pairs.lengths[:, 1]
        ]
        .double()
        .mean()
        .item(),
        "longer_is_better": preference_accuracy(*pairs.lengths.double().unbind(1)),
        "train_seconds": result["train_seconds"],
        "seconds": result["seconds"],
        "peak_rss_bytes": result["peak_rss_bytes"],
        "above_start": accuracy.low > 0.5,
        "margins_nats": None if thumbs else [round(m, 3) for m in margins.tolist()],
        "losses": [entry["loss"] for entry in result["history"] if "loss" in entry],
    }
    own = own_score_margins(pairs, result["objective"])
    if own is not None:
        before, after = own
        zero = torch.zeros_like(before)
        summary |= {
            "own_score": OWN_SCORES[result["objective"]],
            "own_before": preference_accuracy(before, zero),
            "own_after": preference_accuracy(after, zero),
            "own_mcnemar_p": mcnemar_test(before, after),
            "own_gain": bootstrap_interval((after > 0).double() - (before > 0).double()),
        }
    return summary


def write_results(
    path: Path, record: dict[str, Any], start: Mapping[str, Any], results: Sequence[Any]
) -> None:
    """Write PATH.json, PATH.md and PATH.png.

    Args:
        path: Without an ending.
        record: The circumstances.
        start: Facts of the model that all methods start from.
        results: What each method measured.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    summaries = [summarise(result) for result in results]
    content = {"record": record, "start": start, "methods": summaries}
    path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    path.with_suffix(".md").write_text(_page(record, start, summaries))
    draw(path.with_suffix(".png"), [s for s in summaries if s["method"] in HH])


def _page(
    record: Mapping[str, Any], start: Mapping[str, Any], summaries: Sequence[Mapping[str, Any]]
) -> str:
    hh = [s for s in summaries if s["method"] in HH]
    others = [s for s in summaries if s["method"] not in HH]
    lines = ["# Real preferences: every method from one small start", ""]
    lines += _circumstances(record, start)
    if hh:
        lines += ["", "## Anthropic HH (helpful-base), 354 held-out pairs", "", *_hh_table(hh)]
        own = [s for s in hh if "own_score" in s]
        lines += ["", "Losses without a reference also have a score of their own:", ""]
        lines += _own_table(own) if own else []
        longer = hh[0]["longer_is_better"]
        lines += [
            "",
            f"For comparison: to choose the longer answer is right in {_percent(longer)}.",
        ]
        lines += ["", *_verdict(hh)]
    if others:
        lines += ["", "## Human rankings, human thumbs, conversations", "", *_other_table(others)]
    lines += ["", *_DEFINITIONS]
    return "\n".join(lines) + "\n"


_DEFINITIONS = [
    "## What the columns say",
    "",
    "- *Log-ratio accuracy*: share of held-out pairs in which training raised the log-prob of the "
    "chosen answer by more than that of the rejected one (the implicit reward of DPO, for every "
    "method: policy minus start). The start itself gives no margin, that is 50%. In brackets the "
    "95% interval (Wilson), then the p-value of the two-sided sign test. *Above the start*: the "
    "interval lies above 50%.",
    "- *Own score*: SLiC ranks by log-prob, ORPO by mean log-prob per token; these the start has "
    "too. The gain is over the same pairs, with a bootstrap interval and McNemar's exact test.",
    "- *Margin*: mean log-ratio of chosen minus rejected, with its 95% interval. Log-probs are "
    "means over held-out answers, summed over tokens. All in nats, by a plain padded forward that "
    "shares no code with the training engine.",
    "- *Agrees with longer*: share of pairs of unequal length in which the method ranks the longer "
    "answer higher.",
    "- Rankings: all pairs of a ranking, interval by resampling trees. Thumbs: how often an answer "
    "with net thumbs up has the larger log-ratio than one with net thumbs down (AUC), interval by "
    "resampling both sides.",
    "- *Seconds*: of training alone, in a process of one thread, beside the other processes. "
    "*Memory*: peak resident memory of that process, libraries included.",
]


def _circumstances(record: Mapping[str, Any], start: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    changed = record["changed_files"]
    lines = [
        f"Commit {record['commit'][:12]}"
        + (f" with changed files: {', '.join(changed)}" if changed else "")
        + f"; {record['date']}; {versions}; {record['device']}, {record['dtype']}, "
        f"{record['jobs']} processes of {record['threads_per_process']} thread, load average "
        f"{record['load_average_at_start']} at the start; seed {record['seed']}; "
        f"{record['seconds']} s for all methods, {start['seconds']:.0f} s for the start. "
        + record["note"],
        "",
        "Unless a row says otherwise: "
        + ", ".join(f"{key} {value}" for key, value in record["training"].items())
        + ".",
        "",
        f"The start: Llama of {start['parameters']:,} parameters, vocabulary "
        f"{start['vocabulary']}, fitted to {start['text_tokens']:,} tokens of text and to the "
        f"chosen answers; made at commit {start['commit'][:12]}.",
    ]
    return [line.rstrip() for line in lines]


def _hh_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| method | options | log-ratio accuracy | p | above the start | margin | "
        "chosen before → after | rejected before → after | agrees with longer | seconds | memory |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for s in rows:
        chosen, rejected = zip(s["logps_before"], s["logps_after"], strict=True)
        lines.append(
            f"| {s['method']} | {_options(s['settings'])} | {_percent(s['accuracy'])} | "
            f"{_p(s['p_against_half'])} | {'yes' if s['above_start'] else 'no'} | "
            f"{_nats(s['margin_nats'])} | {_change(chosen)} | {_change(rejected)} | "
            f"{100 * s['longer_preferred']:.0f}% | {s['train_seconds']:.0f} | "
            f"{s['peak_rss_bytes'] / 1e9:.2f} GB |"
        )
    return lines


def _own_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| method | own score | accuracy of the start | after | gain | McNemar's p |",
        "|---|---|---|---|---|---|",
    ]
    for s in rows:
        gain = s["own_gain"]
        lines.append(
            f"| {s['method']} | {s['own_score']} | {_percent(s['own_before'])} | "
            f"{_percent(s['own_after'])} | {100 * gain.value:+.1f} "
            f"[{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] points | {_p(s['own_mcnemar_p'])} |"
        )
    return lines


def _other_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| method | options | rows: trained, held out, set aside | accuracy | longer is right | "
        "margin | better before → after | worse before → after | seconds | memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for s in rows:
        better, worse = zip(s["logps_before"], s["logps_after"], strict=True)
        facts = "".join(f", {key.replace('_', ' ')} {value}" for key, value in s["facts"].items())
        lines.append(
            f"| {s['method']} | {_options(s['settings'])} | {s['train_rows']}, "
            f"{s['held_out_rows']}, {s['held_out_set_aside']}{facts} | {_percent(s['accuracy'])} | "
            f"{100 * s['longer_is_better'].value:.0f}% | {s['margin_nats'].value:+.2f} | "
            f"{_change(better)} | {_change(worse)} | {s['train_seconds']:.0f} | "
            f"{s['peak_rss_bytes'] / 1e9:.2f} GB |"
        )
    return lines


def _verdict(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    methods = [s for s in rows if "control" not in s["method"]]
    below = [s["method"] for s in methods if not s["above_start"]]
    if not below:
        return ["Every method raises held-out accuracy above the start beyond its interval."]
    return [f"Not above the start beyond the interval: {', '.join(below)}."]


def _options(settings: Mapping[str, Any]) -> str:
    shown = [
        f"{key} {value}"
        for key, value in ({**settings, **settings.get("loss_kwargs", {})}).items()
        if key not in ("loss_type", "loss_kwargs", "data")
    ]
    return ", ".join(shown) or "defaults"


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f}% [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _nats(estimate: Estimate) -> str:
    return f"{estimate.value:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def _change(values: Sequence[float]) -> str:
    return f"{values[0]:.1f} → {values[1]:.1f}"


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw accuracies with their intervals, and what became of the log-probs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not rows:
        return
    figure = Figure(figsize=(12, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, logps = figure.subplots(1, 2, sharey=True)
    places = range(len(rows), 0, -1)
    longer = 100 * rows[0]["longer_is_better"].value
    accuracy.axvline(50, color="#333333", linewidth=1)
    accuracy.axvline(longer, color="#8A8A8A", linewidth=1, linestyle=":")
    accuracy.text(longer, len(rows) + 0.6, " longer answer", color="#8A8A8A", fontsize=9)
    accuracy.text(50, len(rows) + 0.6, "start ", ha="right", color="#333333", fontsize=9)
    for place, s in zip(places, rows, strict=True):
        value, low, high = (100 * x for x in s["accuracy"][:3])
        colour = "#8A8A8A" if "control" in s["method"] else "#0072B2"
        accuracy.plot([low, high], [place, place], color=colour, linewidth=2)
        accuracy.plot(value, place, "o", color=colour, markersize=7)
        accuracy.annotate(
            f"{value:.1f}", (value, place), xytext=(0, 7), textcoords="offset points", ha="center"
        )
        changes = [a - b for a, b in zip(s["logps_after"], s["logps_before"], strict=True)]
        logps.plot(changes, [place, place], color="#CCCCCC", linewidth=2, zorder=1)
        for change, colour, marker in zip(changes, ("#009E73", "#D55E00"), "os", strict=True):
            logps.plot(change, place, marker, color=colour, markersize=7)
    accuracy.set_yticks(list(places), [s["method"] for s in rows])
    accuracy.set_ylim(0.4, len(rows) + 1.1)
    accuracy.set_xlabel("log-ratio accuracy on held-out pairs, % (95% interval)")
    logps.axvline(0, color="#333333", linewidth=1)
    logps.set_xlabel("change of the mean log-prob of an answer, nats")
    logps.plot([], [], "o", color="#009E73", label="chosen")
    logps.plot([], [], "s", color="#D55E00", label="rejected")
    logps.legend(frameon=False, loc="best")
    for axes in (accuracy, logps):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#E6E6E6", linewidth=0.8)
        axes.set_axisbelow(True)
    figure.suptitle("Learning from real preferences (Anthropic HH), one small start")
    figure.savefig(path)
