"""Tables of the documentation that are read from the code, from the guide and from the tests.

In any page, a line ``{{ name }}`` is replaced by the table of that name (``TABLES``).
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from importlib import import_module
from inspect import get_annotations
from pathlib import Path
from typing import Any

import measured
from measured import golden
from transformers import TrainingArguments

from prefopt.cli.foreign import alignment_handbook, axolotl, llama_factory
from prefopt.cli.foreign.conversion import Key
from prefopt.cli.guide import SITUATIONS, losses_by_family
from prefopt.config import PreferenceConfig
from prefopt.losses import __all__ as PUBLIC_OF_LOSSES
from prefopt.losses import get_loss, list_losses
from prefopt.migration import (
    DROP_IN_FIELDS,
    OLD_FIELDS,
    OLD_OPTIONS,
    OLD_TRAINER_ARGUMENTS,
    OLD_TRANSFORMERS_FIELDS,
    OLD_TRL_FIELDS,
    REFUSED,
    TRL_FIELDS,
    Gone,
)
from prefopt.trl import WITHOUT_EFFECT

DATA = {
    "paired": "pairs",
    "unpaired": "unpaired",
    "ranked": "rankings",
    "preferred": "any",
}


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


def markdown(text: str) -> str:
    """Return docstring text as Markdown: reST's double backticks and roles become code."""
    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text.replace("``", "`"))
    text = re.sub(r"\barXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    return text.replace("<", "&lt;") if "`" not in text else text


def config_table() -> str:
    """Return the table of the fields that ``PreferenceConfig`` adds or gives another default."""
    inherited = {item.name: item for item in fields(PreferenceConfig.__mro__[1])}
    rows = []
    for item in fields(PreferenceConfig):
        if item.name in inherited and _default(inherited[item.name]) == _default(item):
            continue
        text = markdown(str(item.metadata.get("help", "")))
        rows.append((f"`{item.name}`", f"`{_default(item)!r}`", text))
    return table(("field", "default", "meaning"), rows)


def trl_table() -> str:
    """Return the table of TRL's fields and what becomes of them."""
    return table(
        ("field of DPOConfig or KTOConfig", "here"),
        [(f"`{name}`", markdown(text)) for name, text in TRL_FIELDS.items()],
    )


def own_fields_of_trl() -> dict[str, set[str]]:
    """Return the fields that TRL's configurations add to those of transformers, by trainer."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl import DPOConfig, KTOConfig
    from trl.experimental.cpo import CPOConfig
    from trl.experimental.orpo import ORPOConfig

    found = {}
    for config in (DPOConfig, KTOConfig, CPOConfig, ORPOConfig):
        own = config.__mro__[: config.__mro__.index(TrainingArguments)]
        names = {name for part in own for name in get_annotations(part)}
        found[config.__name__.removesuffix("Config")] = {it for it in names if it[0] != "_"}
    return found


def drop_in_table() -> str:
    """Return the table of the fields of TRL's four configurations under ``prefopt.trl``."""
    rows, own = [], own_fields_of_trl()
    for name in sorted({name for names in own.values() for name in names}):
        of = ", ".join(trainer for trainer, names in own.items() if name in names)
        if name in WITHOUT_EFFECT:
            text = f"accepted, without effect: {WITHOUT_EFFECT[name]}"
        else:
            text = {**TRL_FIELDS, **DROP_IN_FIELDS}[name]
        rows.append((f"`{name}`", of, markdown(text)))
    return table(("field", "of", "here"), rows)


def gone_table() -> str:
    """Return the table of what TRL, its recipes and transformers had once, and what to use."""
    gone = {**OLD_TRL_FIELDS, **OLD_TRAINER_ARGUMENTS, **OLD_OPTIONS, **OLD_TRANSFORMERS_FIELDS}
    return table(("argument", "here"), [(f"`{name}`", gone_text(gone[name])) for name in gone])


def gone_text(gone: Gone) -> str:
    """Return what to use instead of an argument, and at which values it is taken all the same."""
    text = markdown(gone.advice.format(value="..."))
    if gone.harmless is None:
        return f"accepted: {text}"
    others = ", ".join(f"`{value!r}`" for value in gone.harmless if value is not None)
    return f"{text}; accepted at {others}" if others else text


def foreign_table(keys: Mapping[str, Key]) -> str:
    """Return the table of another program's keys that are mapped or refused."""
    rows = []
    for name, key in keys.items():
        if key.outcome == "nothing" or (name in OLD_FIELDS | REFUSED and key.outcome == "cannot"):
            continue
        to = ", ".join(f"`{part}`" for part in key.to.split(", ") if part) or "left out"
        default = "" if key.default is None else f"`{key.default}`"
        here = "no counterpart" if key.outcome == "cannot" else to
        rows.append((f"`{name}`", here, markdown(key.note), default))
    return table(("key", "here", "note", "their default, if written out"), rows)


def situations_table() -> str:
    """Return the decision guide: what the data are and what is wanted, and which loss to try."""
    rows = [
        (item.data, item.wish, ", ".join(map(expression_link, item.losses)), markdown(item.why))
        for item in SITUATIONS
    ]
    return table(("your data", "the aim, or what went wrong", "try", "because"), rows)


def expression_link(expression: str) -> str:
    """Return a loss or a sum of losses as code, with a link to the page of the first name."""
    name = next(part for part in re.findall(r"[a-z]\w*", expression))
    return f"[`{expression}`](losses/{get_loss(name).name}.md)"


def advice_tables() -> str:
    """Return one table per family: each loss, when to use it, and when not."""
    parts = []
    for family, losses in losses_by_family(list_losses()):
        rows = [
            (
                f"[`{loss.name}`](losses/{loss.name}.md)",
                DATA[loss.data_kind],
                "yes" if loss.needs_reference else "no",
                markdown(loss.use_when),
                markdown(loss.not_when),
            )
            for loss in losses
        ]
        headings = ("loss", "data", "reference", "use it when", "not when")
        parts += [f"### {family.title}", markdown(family.text), table(headings, rows)]
    return "\n\n".join(parts)


def gallery() -> str:
    """Return the small pictures of all losses, by family; each is a link to its page."""
    parts = []
    for family, losses in losses_by_family(list_losses()):
        pictures = [
            f"[![Loss and slope of {one.name}](_pictures/small_{one.name}.svg)]"
            f"(losses/{one.name}.md)"
            for one in losses
        ]
        grid = "\n\n".join(["::::{container} gallery", *pictures, "::::"])
        parts += [f"## {family.title}", markdown(family.text), grid]
    return "\n\n".join(parts)


def speed_table() -> str:
    """Return the table of speed beside TRL, and how it was measured."""
    headings, *rows = measured.speed_rows()
    return f"{table(headings, rows)}\n\n{measured.speed_caption()}"


def api_modules() -> str:
    """Return the table of the pages of the API, each with what its module says of itself."""
    rows = []
    for page in sorted((Path(__file__).parent / "api").glob("*.md")):
        if page.stem == "index":
            continue
        name = "prefopt" if page.stem == "trainer" else f"prefopt.{page.stem}"
        said = (import_module(name).__doc__ or "").split("\n\n")[0].replace("\n", " ")
        rows.append((f"[`{name}`]({page.name})", markdown(said)))
    return table(("module", "what is in it"), rows)


def golden_counts() -> str:
    """Return how many golden cases of each loss are matched, and how many are no target."""
    rows = []
    for loss in list_losses():
        matched, others = golden.MATCHED.get(loss.name, 0), golden.NOT_TARGET.get(loss.name, 0)
        if matched or others:
            link = f"[`{loss.name}`](losses/{loss.name}.md)"
            rows.append((link, str(matched), str(others), "0"))
    total = sum(golden.MATCHED.values()), sum(golden.NOT_TARGET.values())
    rows.append(("all", str(total[0]), str(total[1]), "0"))
    return table(("loss", "matched", "not targets", "failed"), rows)


def golden_reasons() -> str:
    """Return why cases are no targets, and how many each reason covers."""
    rows = [
        (markdown(reason), str(count))
        for reason, count in Counter(
            {item.reason: item.cases for item in golden.NOT_TARGETS}
        ).items()
    ]
    return table(("reason", "cases"), rows)


def losses_api() -> str:
    """Return the directive that documents ``prefopt.losses``, but for the loss functions."""
    functions = {loss.function.__name__ for loss in list_losses()}
    names = [name for name in PUBLIC_OF_LOSSES if name not in functions]
    return f".. automodule:: prefopt.losses\n   :members: {', '.join(names)}"


def loss_functions() -> str:
    """Return the table of the loss functions that ``prefopt.losses`` exports."""
    rows = [
        (f"`prefopt.losses.{loss.function.__name__}`", f"[`{loss.name}`](../losses/{loss.name}.md)")
        for loss in list_losses()
        if loss.built_in
    ]
    return table(("function", "loss"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "config_fields": config_table,
    "trl_fields": trl_table,
    "drop_in_fields": drop_in_table,
    "gone": gone_table,
    "llama_factory_keys": lambda: foreign_table(llama_factory.KEYS),
    "axolotl_keys": lambda: foreign_table(axolotl.KEYS),
    "handbook_keys": lambda: foreign_table(alignment_handbook.KEYS),
    "situations": situations_table,
    "advice": advice_tables,
    "gallery": gallery,
    "losses_api": losses_api,
    "speed": speed_table,
    "api_modules": api_modules,
    "count_of_losses": lambda: str(measured.counts()["losses"]),
    "loss_functions": loss_functions,
    "golden_counts": golden_counts,
    "golden_reasons": golden_reasons,
}


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


def _default(item: Any) -> Any:
    if item.default is not MISSING:
        return item.default
    return item.default_factory() if item.default_factory is not MISSING else None
