"""The commands of the baselines: ``python -m prefopt.compare.baselines COMMAND --config FILE``."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

# Where each command is; a training also goes on from a checkpoint.
_COMMANDS = {
    "reward_model": "reward_model:train_reward_model",
    "measure_reward_model": "reward_model:measure_reward_model",
    "rl": "on_policy:train_on_policy",
    "best_of_n": "best_of_n:best_of_n",
}
_RESUMABLE = ("reward_model", "rl")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m prefopt.compare.baselines")
    parser.add_argument("command", choices=list(_COMMANDS))
    parser.add_argument("--config", required=True, help="YAML file of options")
    parser.add_argument(
        "--resume_from_checkpoint", choices=["true"], help="go on from the newest checkpoint"
    )
    given = parser.parse_args(argv)
    resume = given.resume_from_checkpoint is not None
    if resume and given.command not in _RESUMABLE:
        parser.error(f"{given.command} has no checkpoints")
    try:
        return _run(given.command, Path(given.config), resume)
    except KeyboardInterrupt as stopped:
        sys.stderr.write(f"prefopt: {str(stopped) or 'interrupted'}\n")
        return int(getattr(stopped, "exit_code", 130))
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"prefopt: error: {' '.join(str(error).split())}\n")
        return 2


def _run(command: str, config: Path, resume: bool) -> int:
    import yaml

    options: Mapping[str, Any] = yaml.safe_load(config.read_text(encoding="utf-8"))
    module, _, name = _COMMANDS[command].partition(":")
    function: Callable[..., None] = getattr(
        import_module(f"prefopt.compare.baselines.{module}"), name
    )
    if command in _RESUMABLE:
        function(options, resume=resume)
    else:
        function(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
