"""Other names of the roles, in any capitalisation."""

import pytest

from prefopt.data.roles import known_role, role_names


@pytest.mark.parametrize(
    ("role", "names"),
    [
        ("user", "user User USER human Human prompter"),
        ("assistant", "assistant Assistant gpt GPT chatgpt bot Model ai function_call"),
        ("system", "system SYSTEM"),
        ("developer", "developer"),
        ("tool", "tool observation function_response ipython function Tool"),
    ],
)
def test_roles_have_other_names(role, names):
    assert {known_role(name) for name in names.split()} == {role}
    assert known_role(f" {names.split()[0]}\n") == role


def test_an_unknown_role_is_none_and_the_known_ones_are_listed():
    assert known_role("wizard") is None
    assert known_role("") is None
    assert role_names().startswith("system, developer, user, assistant, tool; and")
    assert "human" in role_names()
