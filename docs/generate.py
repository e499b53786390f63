"""Pages of the documentation that are made from the code, so that they cannot age.

One page per registered loss from its docstring, in ``docs/losses``, and the pictures of all losses
in ``docs/_pictures``: ``docs/conf.py`` writes them. ``python docs/generate.py`` rewrites the parts
of README.md that are read from elsewhere.
"""

import inspect
import re
import shutil
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measured
from page_tables import markdown, speed_table, table

from prefopt.cli.guide import losses_by_family
from prefopt.losses import Loss, list_losses
from prefopt.losses.common import published_range, without_warnings
from prefopt.losses.vocabulary import VOCABULARY, specs_of

HERE = Path(__file__).resolve().parent
KINDS = {
    "paired": "pairs (chosen and rejected)",
    "unpaired": "unpaired completions, each with a label, desirable or not",
    "ranked": "rankings, best first",
    "preferred": "any: it reads the preferred completions only",
}
NOT_ELSEWHERE = """\
None of TRL 1.16, LLaMA-Factory, Axolotl, ms-swift, OpenRLHF, NeMo-RL, open-instruct, HALOs,
torchtune and Liger 0.8.5 had this loss in November 2026."""
README = HERE.parent / "README.md"
README_PART = "<!-- Made by `make docs`: {name} -->\n"
README_END = "<!-- End -->\n"
LEGEND = """\
$\\pi$ is the policy, $x$ the prompt, $y_c$ the chosen and $y_r$ the rejected completion, $|y|$ the
length of a completion in tokens. As code:"""


def write_loss_pages(folder: Path) -> None:
    """Write ``index.md`` and a page per registered loss; remove pages of losses that are gone.

    Args:
        folder: Made if missing.
    """
    losses = list_losses()
    pages = {"index.md": loss_index(losses)} | {
        f"{loss.name}.md": loss_page(loss) for loss in losses
    }
    folder.mkdir(exist_ok=True)
    for stale in {path.name for path in folder.iterdir()} - set(pages):
        path = folder / stale
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:  # an unchanged page is not built again
            path.write_text(text)


def write_pictures(folder: Path) -> None:
    """Draw every loss, for its page and small for the gallery, if that is not done.

    Args:
        folder: Made if missing.
    """
    import pictures  # matplotlib takes a second, which the tests of the pages need not

    sources = {Path(inspect.getfile(loss.function)) for loss in list_losses()}
    drawing = {HERE / "pictures.py", HERE / "loss_curves.py"}
    newest = max(path.stat().st_mtime for path in sources | drawing)
    folder.mkdir(exist_ok=True)
    with without_warnings():  # a picture may go where no paper has been
        for loss in list_losses():
            path = folder / f"{loss.name}.svg"
            if not path.exists() or path.stat().st_mtime < newest:
                pictures.write_picture(loss, path)
            path = folder / f"small_{loss.name}.svg"
            if not path.exists() or path.stat().st_mtime < newest:
                pictures.write_small(loss, path)


def write_readme(path: Path = README) -> None:
    """Rewrite the parts of the README that are read from elsewhere.

    Args:
        path: The README; each part stands between two comments, which stay.

    Raises:
        ValueError: If a part is not there, once.
    """
    text = path.read_text()
    for name, make in README_PARTS.items():
        start, rest = text.split(README_PART.format(name=name))
        _, end = rest.split(README_END, 1)
        text = f"{start}{README_PART.format(name=name)}\n{make()}\n\n{README_END}{end}"
    path.write_text(text)


def readme_counts() -> str:
    """Return what the README says of how losses were checked."""
    found = measured.counts()
    return (
        f"`prefopt losses` says what each of the {found['losses']} is; `prefopt losses NAME` shows "
        "one in full, and `prefopt losses --why` says which to try for your data or problem. The "
        "documentation (`make docs`) has a page for each, with formula and pictures. "
        f"{found['matched']} recorded values of other projects' code are matched, "
        f"{found['not_targets']} listed with the reason why not: "
        "[docs/faithfulness.md](docs/faithfulness.md)."
    )


def readme_table() -> str:
    """Return the table of the README: the losses of prefopt, by family."""
    losses = [loss for loss in list_losses() if loss.built_in]
    return table(
        ("", ""),
        [
            (family.title, ", ".join(f"`{loss.name}`" for loss in members))
            for family, members in losses_by_family(losses)
        ],
    )


def loss_index(losses: Sequence[Loss]) -> str:
    """Return the page that lists the losses.

    Args:
        losses: All losses.
    """
    rows = [
        (
            ", ".join([f"[`{loss.name}`]({loss.name}.md)", *(f"`{one}`" for one in loss.aliases)]),
            _title(loss)[1],
            loss.data_kind,
            "yes" if loss.needs_reference else "no",
            ", ".join(f"`{name}={value!r}`" for name, value in loss.hyperparameters.items()),
        )
        for loss in losses
    ]
    headings = ("loss, aliases", "what it is", "data", "reference", "defaults")
    toctree = "\n".join(loss.name for loss in losses)
    return f"""\
# Losses

{len(losses)} losses, picked by name (in any case) with `loss_type`, alone or as a weighted sum such
as `"dpo + 0.2*sft"`. [Which loss](../choosing.md) helps to choose, the [gallery](../gallery.md)
shows them side by side, [](../faithfulness.md) says how they were checked. `prefopt losses` prints
what each is, third parties' losses included.

{table(headings, rows)}

Each loss is a function on log-probs, callable without a trainer:

```python
import torch
from prefopt import get_loss

output = get_loss("dpo")(
    chosen_logps=torch.tensor([-20.0]),
    rejected_logps=torch.tensor([-25.0]),
    ref_chosen_logps=torch.tensor([-22.0]),
    ref_rejected_logps=torch.tensor([-24.0]),
    beta=0.1,
)
output.losses, output.chosen_rewards, output.rejected_rewards
```

## What a loss may ask for

Its positional parameters come from this list; the trainer delivers what is asked for. B is the
number of examples.

{table(("input", "meaning"), [(f"`{name}`", spec.meaning) for name, spec in VOCABULARY.items()])}

```{{toctree}}
:hidden:

{toctree}
```
"""


def loss_page(loss: Loss) -> str:
    """Return the page of a loss, from its docstring and signature.

    Args:
        loss: The loss.
    """
    title, what = _title(loss)
    facts = [
        ("name", f"`{loss.name}`"),
        ("aliases", ", ".join(f"`{alias}`" for alias in loss.aliases) or "none"),
        ("data", KINDS[loss.data_kind]),
        ("reference", _reference(loss)),
        ("source", markdown(loss.source) or "not stated"),
        ("departures", markdown(loss.departures) or "not stated"),
    ]
    documented = docstring_section(inspect.getdoc(loss.function) or "", "Args")
    options = [
        (f"`{name}`", f"`{default!r}`", _published(loss, name), markdown(documented.get(name, "")))
        for name, default in loss.hyperparameters.items()
    ]
    inputs = [
        (f"`{name}`", markdown(documented.get(name, "") or VOCABULARY[name].meaning))
        for name in loss.inputs
    ]
    example = next(iter(loss.hyperparameters.items()), None)
    setting = "" if example is None else f", loss_kwargs={{{example[0]!r}: {example[1]!r}}}"
    return (
        "\n\n".join(
            part
            for part in (
                f"# {title}",
                f"{what[:1].upper()}{what[1:]}." if what else "",
                table(("", ""), facts),
                picture(loss),
                "## Formula",
                formula(loss),
                "## When to use it" if loss.use_when else "",
                advice(loss),
                "## How other implementations differ",
                differences(loss),
                "## Hyper-parameters" if options else "",
                table(("name", "default", "published", "meaning"), options) if options else "",
                "## Inputs",
                table(("name", "meaning"), inputs),
                "## Use",
                f'```python\nPreferenceConfig("out", loss_type="{loss.name}"{setting})\n```',
                "## Function",
                f"```{{eval-rst}}\n.. autofunction:: {_dotted(loss)}\n   :no-index-entry:\n```",
            )
            if part
        )
        + "\n"
    )


def picture(loss: Loss) -> str:
    """Return the picture of a loss, with a caption that says what is on its axis.

    Args:
        loss: The loss.
    """
    axes = {
        "paired": "over the margin; half of it comes from the chosen completion, half from the "
        "rejected one, and other inputs are equal",
        "unpaired": "over the reward of the completion, for each label",
        "ranked": "over the reward between neighbours of the ranking, for K completions equally "
        "far apart",
        "preferred": "over the log-ratio of the completion"
        if loss.needs_reference
        else "over the mean log-prob of the completion",
    }
    if loss.data_kind == "paired" and not loss.needs_reference:
        axes["paired"] = "over the difference of the log-probs, of completions one token long"
    if loss.name == "beta_dpo":
        axes["paired"] += ", in a batch with its mirror image"
    elif loss.batch_dependent:
        axes["paired"] += ": what a pair adds to the loss of a batch of others"
    dpo = "" if loss.data_kind == "preferred" else "; the dashed line is `dpo` along the same axis"
    return (
        f"```{{figure}} ../_pictures/{loss.name}.svg\n:alt: Loss and slope of {loss.name}\n\n"
        f"Loss and slope {axes[loss.data_kind]}{dpo}. Drawn from the code.\n```"
    )


def advice(loss: Loss) -> str:
    """Return when to use a loss and when not; nothing for a loss that does not say it."""
    if not loss.use_when:
        return ""
    parts = [f"Use it when {markdown(loss.use_when)}."]
    parts += [f"Not when {markdown(loss.not_when)}."] if loss.not_when else []
    return "\n\n".join([*parts, "[Which loss](../choosing.md) compares it with the others."])


def differences(loss: Loss) -> str:
    """Return how other implementations differ, as the docstring says it."""
    points = [markdown(text) for text in loss.differs_from]
    return "\n".join(f"- {text[:1].upper()}{text[1:]}." for text in points) or NOT_ELSEWHERE


def formula(loss: Loss) -> str:
    """Return the formula: the docstring's ``.. math::`` blocks and what it says of them, the code.

    Args:
        loss: The loss.
    """
    blocks = [f"$$\n{block}\n$$" for block in _math_blocks(_documentation(loss))]
    legend = LEGEND if blocks else ""
    parts = [*blocks, notes(loss), legend, f"```python\n{_body(loss.function)}\n```"]
    return "\n\n".join(filter(None, parts))


def notes(loss: Loss) -> str:
    """Return the paragraphs of the module's docstring after the source, as Markdown.

    Args:
        loss: The loss.
    """
    text = _without_math(_documentation(loss)).split("\nArgs:\n")[0]
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", text)[1:]]
    kept = [part for part in paragraphs if part and not part.startswith("Source:")]
    return "\n\n".join(map(markdown, kept))


def docstring_section(text: str, heading: str) -> dict[str, str]:
    """Return the entries of a section of a Google-style docstring, as name -> text.

    Args:
        text: The docstring, cleaned of its indentation.
        heading: Of the section, such as ``Args``.
    """
    found = re.search(rf"^{heading}:\n((?:[ ]{{4}}.*\n?|\n)*)", text, re.MULTILINE)
    entries: dict[str, str] = {}
    name = ""
    for line in textwrap.dedent(found[1]).splitlines() if found else []:
        start = re.match(r"(\w+)(?: \([^)]*\))?: (.*)", line)
        if start:
            name = start[1]
            entries[name] = start[2]
        elif name and line.strip():
            entries[name] += " " + line.strip()
    return entries


def _reference(loss: Loss) -> str:
    if any(spec.quantity == "divergences" for spec in specs_of(loss.inputs)):
        return "needed, and [live](../reference.md#losses-that-compare-whole-distributions)"
    return "needed" if loss.needs_reference else "not needed"


def _published(loss: Loss, name: str) -> str:
    ends = loss.published.get(name)
    return "" if ends is None else published_range(*ends)


def _documentation(loss: Loss) -> str:
    """Return the docstring that names the source: the function's own, or its module's."""
    own = inspect.getdoc(loss.function) or ""
    shared = inspect.getdoc(inspect.getmodule(loss.function)) or ""
    return own if "Source:" in own or "Source:" not in shared else shared


def _title(loss: Loss) -> tuple[str, str]:
    """Return a heading and what the loss is, from a summary such as ``DPO: logistic loss``."""
    head, colon, rest = loss.summary.partition(": ")
    if not colon or len(head) > 30:
        return loss.name, markdown(loss.summary)
    return head, markdown(rest)


def _math_blocks(text: str) -> list[str]:
    blocks = re.findall(r"^\.\. math::\n((?:[ ]+.*\n?|\n)+)", text, re.MULTILINE)
    return [textwrap.dedent(block).strip() for block in blocks]


def _without_math(text: str) -> str:
    return re.sub(r"^\.\. math::\n((?:[ ]+.*\n?|\n)+)", "\n", text, flags=re.MULTILINE)


def _body(function: Callable[..., Any]) -> str:
    """Return the code of a function after its docstring."""
    source = textwrap.dedent(inspect.getsource(function))
    return textwrap.dedent(source.rpartition('"""')[2].strip("\n"))


def _dotted(loss: Loss) -> str:
    return f"{loss.function.__module__}.{loss.function.__qualname__}"


README_PARTS: dict[str, Callable[[], str]] = {
    "losses": readme_table,
    "counts": readme_counts,
    "speed": speed_table,
}


if __name__ == "__main__":
    write_readme()
