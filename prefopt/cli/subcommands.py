"""The parser of a command that has commands of its own, such as ``prefopt cache``."""

import argparse
import re
import sys
from typing import Any, NoReturn

from prefopt.cli.errors import UserError


class CommandParser(argparse.ArgumentParser):
    """Shows its commands where none is given, and the nearest where there is none of that name."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **more})

    def error(self, message: str) -> NoReturn:
        """End the program with what is wrong.

        Raises:
            UserError: If there is no command of that name.
        """
        if message.endswith("required: COMMAND"):
            self.print_help(sys.stderr)
            self.exit(2)
        wrong = re.match(r"argument COMMAND: invalid choice: '(.*?)' \(", message)
        if wrong is not None:
            raise UserError.unknown(f"command of {self.prog}", wrong[1], self._commands())
        super().error(message)

    def _commands(self) -> list[str]:
        return [
            name
            for action in self._actions
            if isinstance(action, argparse._SubParsersAction)
            for name in action.choices
        ]
