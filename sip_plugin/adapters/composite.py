"""What stands in for the members of an attack that is made of other attacks. Knows no attack library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from sip_plugin.adapters.base import Batch
from sip_plugin.adapters.projection import RowSelections, UnknownRowsError, plain_tensor, salience_rows


class MemberProxy:
    """Stands in for a member during a call: what it is asked to attack goes to ``run``, everything else to the member.

    Args:
        member: The member.
        run: Attacks a batch with the member.
        salience: The maps of the composite's batch.
        selections: What the composite selects of its batch; None if each image has the same map.
        method: The name under which the composite calls its members, besides calling them directly.
    """

    _own: tuple[Any, Callable[[Any, Batch], Any], Tensor, RowSelections | None, str]

    def __init__(
        self,
        member: Any,
        run: Callable[[Any, Batch], Any],
        salience: Tensor,
        selections: RowSelections | None,
        method: str = "forward",
    ) -> None:
        self.__dict__["_own"] = member, run, salience, selections, method

    def __call__(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Attack some images of the composite's batch with their maps."""
        member, run, salience, selections, _ = self._own
        if selections is None and len(salience) not in (1, len(x)):
            raise UnknownRowsError(f"It attacked {len(x)} rows.")
        maps = salience if selections is None else salience_rows(salience, selections.of(len(x)))
        x = plain_tensor(x) if isinstance(x, Tensor) else np.asarray(x)
        return run(member, Batch(x, y, maps, args, kwargs))

    def __getattr__(self, name: str) -> Any:
        if name == "_own" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)  # copy and pickle ask before there is anything to ask
        return self if name == self._own[-1] else getattr(self._own[0], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._own[0], name, value)
