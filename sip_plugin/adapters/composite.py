"""What stands in for the members of an attack that is made of other attacks. Knows no attack library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class MemberProxy:
    """Stands in for a member during a call: what it is asked to attack goes to ``run``, everything else to the member.

    Args:
        attack: The member.
        run: Called as ``run(attack, images, *args, **kwargs)``.
        method: The name under which the composite calls its members, besides calling them directly.
    """

    def __init__(self, attack: Any, run: Callable[..., Any], method: str = "forward") -> None:
        self.__dict__.update(attack=attack, run=run, method=method)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the member would be called with goes to ``run``."""
        return self.__dict__["run"](self.__dict__["attack"], *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if "attack" not in self.__dict__ or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)  # copy and pickle ask before there is anything to ask
        if name == self.__dict__["method"]:
            return self
        return getattr(self.__dict__["attack"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["attack"], name, value)

    def release(self) -> Any:
        """The member itself; the stand-in forgets the batch, whoever still holds it."""
        self.__dict__["run"] = None
        return self.__dict__["attack"]
