"""diffusers' decorators with types; without them, type checkers of users would not see our signatures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    _Function = TypeVar("_Function", bound=Callable[..., Any])

    def apply_forward_hook(method: _Function) -> _Function:
        """Runs the hooks of accelerate's offloading before a method other than `forward`."""

    def register_to_config(init: _Function) -> _Function:
        """Stores the arguments of a constructor in `self.config`."""

else:
    from diffusers.configuration_utils import register_to_config
    from diffusers.utils.accelerate_utils import apply_forward_hook

__all__ = ["apply_forward_hook", "register_to_config"]
