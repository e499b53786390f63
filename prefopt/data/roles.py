"""Who speaks in a conversation: the roles that chat templates know, and their other names."""

__all__ = ["CALLS", "ROLES", "known_role", "role_names"]

# The roles that chat templates know, and what they are called elsewhere, in any capitalisation.
ROLES = {
    "system": (),
    "developer": (),
    "user": ("human", "prompter"),
    "assistant": ("gpt", "chatgpt", "bot", "chatbot", "model", "ai"),
    "tool": ("observation", "function_response", "tool_response", "function", "ipython"),
}
# Turns of ShareGPT in which the assistant calls a tool: their text is JSON.
CALLS = ("function_call", "tool_call")
_ROLE_OF = {name: role for role, others in ROLES.items() for name in (role, *others)}
_ROLE_OF |= dict.fromkeys(CALLS, "assistant")


def known_role(name: str) -> str | None:
    """Return the role that chat templates know by another name, None if there is none.

    >>> known_role("Human"), known_role("GPT"), known_role("wizard")
    ('user', 'assistant', None)
    """
    return _ROLE_OF.get(name.strip().lower())


def role_names() -> str:
    """Return the roles and their other names, for errors."""
    others = ", ".join(name for name in _ROLE_OF if name not in ROLES)
    return f"{', '.join(ROLES)}; and, read as one of these, {others}"
