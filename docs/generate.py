"""Pages and tables of the documentation that are read from the code, so that they cannot age.

One page per registered loss from its docstring, in ``docs/losses``; and in any page, a line
``{{ name }}`` is replaced by the table of that name (``TABLES``).
"""

import inspect
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from prefopt.config import TRL_FIELDS, PreferenceConfig
from prefopt.losses import Loss, list_losses
from prefopt.losses.registry import VOCABULARY

KINDS = {
    "paired": "pairs (chosen and rejected)",
    "unpaired": "single completions, each desirable or not",
    "ranked": "rankings, best first",
    "preferred": "any: it reads the preferred completions only",
}
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


def loss_index(losses: Sequence[Loss]) -> str:
    """Return the page that lists the losses.

    Args:
        losses: All losses.
    """
    rows = [
        (
            f"[`{loss.name}`]({loss.name}.md)",
            ", ".join(f"`{alias}`" for alias in loss.aliases),
            loss.data_kind,
            "yes" if loss.needs_reference else "no",
            ", ".join(f"`{name}={value!r}`" for name, value in loss.hyperparameters.items()),
            _title(loss)[1],
        )
        for loss in losses
    ]
    headings = ("loss", "aliases", "data", "reference", "defaults", "what it is")
    toctree = "\n".join(loss.name for loss in losses)
    return f"""\
# Losses

{len(losses)} losses, picked by name with `loss_type`, alone or as a weighted sum such as
`"dpo + 0.2*sft"`. `prefopt losses` prints this table, third parties' losses included.

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

{table(("input", "meaning"), [(f"`{name}`", text) for name, text in VOCABULARY.items()])}

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
        ("reference", "needed" if loss.needs_reference else "not needed"),
        ("source", _markdown(loss.source) or "not stated"),
        ("departures", _markdown(loss.departures) or "not stated"),
    ]
    documented = docstring_section(inspect.getdoc(loss.function) or "", "Args")
    options = [
        (f"`{name}`", f"`{default!r}`", _markdown(documented.get(name, "")))
        for name, default in loss.hyperparameters.items()
    ]
    inputs = [
        (f"`{name}`", _markdown(documented.get(name, "") or VOCABULARY[name]))
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
                notes(loss),
                "## Formula",
                formula(loss),
                "## Hyper-parameters" if options else "",
                table(("name", "default", "meaning"), options) if options else "",
                "## Inputs",
                table(("name", "meaning"), inputs),
                "## Use",
                f'```python\nPreferenceConfig("out", loss_type="{loss.name}"{setting})\n```',
                "## Function",
                f"```{{eval-rst}}\n.. autofunction:: {_dotted(loss)}\n   :no-index:\n```",
            )
            if part
        )
        + "\n"
    )


def formula(loss: Loss) -> str:
    """Return the formula: the ``.. math::`` blocks of the docstring, and the code that computes it.

    Args:
        loss: The loss.
    """
    blocks = [f"$$\n{block}\n$$" for block in _math_blocks(_documentation(loss))]
    legend = [LEGEND] if blocks else []
    return "\n\n".join([*blocks, *legend, f"```python\n{_body(loss.function)}\n```"])


def notes(loss: Loss) -> str:
    """Return the paragraphs of the module's docstring after the source, as Markdown.

    Args:
        loss: The loss.
    """
    text = _without_math(_documentation(loss))
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", text)[1:]]
    kept = [part for part in paragraphs if part and not part.startswith("Source:")]
    return "\n\n".join(_markdown(part) for part in kept)


def config_table() -> str:
    """Return the table of the fields that ``PreferenceConfig`` adds or gives another default."""
    inherited = {item.name: item for item in fields(PreferenceConfig.__mro__[1])}
    rows = []
    for item in fields(PreferenceConfig):
        if item.name in inherited and _default(inherited[item.name]) == _default(item):
            continue
        text = _markdown(str(item.metadata.get("help", "")))
        rows.append((f"`{item.name}`", f"`{_default(item)!r}`", text))
    return table(("field", "default", "meaning"), rows)


def trl_table() -> str:
    """Return the table of TRL's fields and what becomes of them."""
    return table(
        ("field of DPOConfig or KTOConfig", "here"),
        [(f"`{name}`", _markdown(text)) for name, text in TRL_FIELDS.items()],
    )


TABLES: dict[str, Callable[[], str]] = {"config_fields": config_table, "trl_fields": trl_table}


def fill_tables(app: Any, docname: str, source: list[str]) -> None:
    """Replace ``{{ name }}`` lines of a page by the tables they name (event ``source-read``).

    Args:
        app: The Sphinx application.
        docname: The page.
        source: Its text, as a list of one.
    """
    for name, make in TABLES.items():
        marker = f"{{{{ {name} }}}}"
        if marker in source[0]:
            source[0] = source[0].replace(marker, make())


def table(headings: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table.

    Args:
        headings: Of the columns.
        rows: Cells, in Markdown.
    """
    lines = [list(headings)]
    lines.append(["---"] * len(lines[0]))
    lines += [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


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


def _documentation(loss: Loss) -> str:
    """Return the docstring that names the source: the function's own, or its module's."""
    own = inspect.getdoc(loss.function) or ""
    shared = inspect.getdoc(inspect.getmodule(loss.function)) or ""
    return own if "Source:" in own or "Source:" not in shared else shared


def _title(loss: Loss) -> tuple[str, str]:
    """Return a heading and what the loss is, from a summary such as ``DPO: logistic loss``."""
    head, colon, rest = loss.summary.partition(": ")
    if not colon or len(head) > 30:
        return loss.name, _markdown(loss.summary)
    return head, _markdown(rest)


def _math_blocks(text: str) -> list[str]:
    blocks = re.findall(r"^\.\. math::\n((?:[ ]+.*\n?|\n)+)", text, re.MULTILINE)
    return [textwrap.dedent(block).strip() for block in blocks]


def _without_math(text: str) -> str:
    return re.sub(r"^\.\. math::\n((?:[ ]+.*\n?|\n)+)", "\n", text, flags=re.MULTILINE)


def _body(function: Callable[..., Any]) -> str:
    """Return the code of a function after its docstring."""
    source = textwrap.dedent(inspect.getsource(function))
    return textwrap.dedent(source.rpartition('"""')[2].strip("\n"))


def _markdown(text: str) -> str:
    """Return docstring text as Markdown: reST's double backticks and roles become code."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text.replace("``", "`"))
    text = re.sub(r"\barXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    return text.replace("<", "&lt;") if "`" not in text else text


def _dotted(loss: Loss) -> str:
    return f"{loss.function.__module__}.{loss.function.__qualname__}"


def _default(item: Any) -> Any:
    if item.default is not MISSING:
        return item.default
    return item.default_factory() if item.default_factory is not MISSING else None
