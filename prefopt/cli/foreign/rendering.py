"""A conversion as text: our YAML with comments, and the few lines that training prints of it."""

from typing import Any

from prefopt.cli.foreign.conversion import Conversion, Line

_LONGEST = 100  # characters of a line with its comment


def summary(conversion: Conversion, path: str) -> str:
    """Return what is trained, and what differs: a line each.

    Examples:
        >>> made = Conversion.of("Axolotl", {"rl": "ipo"})
        >>> made.put("loss_type", "ipo", "rl")
        >>> print(summary(made, "x.yaml"))
        x.yaml is a file of Axolotl: loss_type ipo
    """
    told = ("loss_type", "loss_weights", "beta", "loss_kwargs", "learning_rate")
    options = conversion.options
    said = ", ".join(f"{name} {options[name]}" for name in told if name in options)
    lines = [f"{path} is a file of {conversion.program}: {said}"]
    for line in conversion.lines:
        if line.outcome == "differs":
            what = conversion.shown(line) or line.option
            lines.append(f"  differs: {what}: {line.note}")
    return "\n".join(lines)


def render(conversion: Conversion, path: str) -> str:
    """Return our YAML, with a comment of what each option was, and what was left out."""
    lines = [f"# {path}, a file of {conversion.program}, by prefopt convert-config."]
    by_option: dict[str, list[Line]] = {}
    for line in conversion.lines:
        by_option.setdefault(line.option, []).append(line)
    for option, value in conversion.options.items():
        lines += _option(option, value, [_comment(line) for line in by_option[option]])
    rest = by_option.get("", [])
    lines += [f"# {_comment(line)}" for line in rest if line.outcome == "differs"]
    left_out = [line for line in rest if line.outcome == "nothing"]
    if left_out:
        lines.append("# Left out, for it changes nothing that is trained:")
    lines += [f"#   {conversion.shown(line)}: {line.note}" for line in left_out]
    if conversion.lost:
        lines.append("# Cannot be had here. Decide on each, then remove this list:")
        lines.append("not_converted:")
    for line in conversion.lost:
        key = line.keys[0]
        lines += _option(key, conversion.given.get(key), [line.note], indent="  ")
    return "\n".join(lines) + "\n"


def _comment(line: Line) -> str:
    keys = ", ".join(line.keys)
    how = f"differs: {line.note}" if line.outcome == "differs" else line.note
    return ": ".join(part for part in (keys, how) if part)


def _option(name: str, value: Any, comments: list[str], indent: str = "") -> list[str]:
    """Return the lines of an option; its comment goes above where it does not fit behind."""
    import yaml

    text = yaml.safe_dump({name: value}, sort_keys=False, allow_unicode=True, width=_LONGEST)
    lines = [indent + line for line in text.rstrip("\n").split("\n")]
    comment = "; ".join(dict.fromkeys(part for part in comments if part))
    comment = "" if comment == name else comment.replace("\n", " ")
    if not comment:
        return lines
    if len(lines) == 1 and len(lines[0]) + len(comment) + 4 <= _LONGEST:
        return [f"{lines[0]}  # {comment}"]
    return [f"{indent}# {comment}", *lines]
