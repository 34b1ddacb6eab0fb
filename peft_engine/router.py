"""The router: one pre-hook and one forward-hook at each site of a frozen base, put there once.

At an attention it is a function around the base's own instead. What they do is decided by the plan
in force: ``with router.use(plan): model(...)``. Without a plan the base computes as if nothing were
there.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from peft_engine.errors import PlanError
from peft_engine.parts.attention import AttentionCall, Change, route_attention
from peft_engine.parts.sites import ATTENTION, RESIDUAL, split_path
from peft_engine.plan import Plan


class Router:
    """Sends each row of a batch through its own delta.

    One model has one router and one forward at a time. The thread that enters ``use`` owns the
    model until it leaves; another thread gets an error, never another tenant's answer.

    Args:
        trunk: The part of the base that gives hidden states.
    """

    def __init__(self, trunk: nn.Module) -> None:
        self._trunk = trunk
        self._hooked: set[str] = set()
        self._plan: Plan | None = None
        self._owner: int | None = None
        self._lock = threading.Lock()

    @contextmanager
    def use(self, plan: Plan) -> Iterator[None]:
        """Put a plan in force.

        Keep it in force until ``backward`` has returned: with gradient checkpointing the forward
        is computed again there.

        Args:
            plan: The plan of the next batch.

        Yields:
            Nothing; the plan is withdrawn whatever happens inside.

        Raises:
            PlanError: Another plan is in force, in this thread or another (``router_busy``).
        """
        if not self._lock.acquire(blocking=False):
            raise PlanError("another batch is going through this model", code="router_busy")
        try:
            self._attach(plan)
            self._plan, self._owner = plan, threading.get_ident()
            yield
        finally:
            self._plan = self._owner = None
            self._lock.release()

    def _attach(self, plan: Plan) -> None:
        """Hook the sites that no plan has named before."""
        for path in plan.stages.keys() - self._hooked:
            module_path, place = split_path(path)
            module = self._trunk.get_submodule(module_path)
            if place == ATTENTION:
                route_attention(module, self._attend_hook(path))
            elif place == RESIDUAL:
                module.register_forward_pre_hook(self._pre_hook(path, 1))
            else:
                module.register_forward_pre_hook(self._pre_hook(path, 0))
                module.register_forward_hook(self._post_hook(path))
            self._hooked.add(path)

    def _pre_hook(self, path: str, argument: int) -> Any:
        def pre(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            changed = args[argument]
            for stage in self._stages_at(path, args[argument]):
                if stage.method.has_pre:
                    changed = stage.method.pre(module, stage.segments, changed)
            if changed is args[argument]:
                return None
            return (*args[:argument], changed, *args[argument + 1 :])

        return pre

    def _post_hook(self, path: str) -> Any:
        def post(module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
            stages = self._stages_at(path, args[0])
            x = args[0]
            if stages and self._plan is not None and x.shape[0] != self._plan.rows:
                # Positions are looked up once for all rows; from here on rows differ.
                x, y = (t.repeat(self._plan.rows, *[1] * (t.dim() - 1)) for t in (x, y))
            for stage in stages:
                y = stage.method.post(module, stage.segments, x, y)
            return y

        return post

    def _attend_hook(self, path: str) -> Change:
        def attend(call: AttentionCall, y: Tensor) -> Tensor:
            for stage in self._stages_at(path, call.query):
                y = stage.method.attend(stage.segments, call, y)
            return y

        return attend

    def _stages_at(self, path: str, x: Tensor) -> Any:
        plan = self._plan
        if plan is None:
            return ()
        # Autograd may compute a checkpointed forward again in a thread of its own.
        in_backward = torch._C._current_graph_task_id() != -1
        if threading.get_ident() != self._owner and not in_backward:
            raise PlanError("a batch of another thread is going through", code="router_busy")
        shared = x.shape[0] == 1 and not x.is_floating_point()
        if x.shape[0] != plan.rows and not shared:
            raise PlanError(
                f"the plan has {plan.rows} rows and the batch {x.shape[0]}", code="wrong_rows"
            )
        return plan.stages.get(path, ())
