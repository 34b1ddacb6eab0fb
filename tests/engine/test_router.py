"""The router's promises: nothing leaks, nobody interferes."""

import threading
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from peft_engine.bases.base import Base
from peft_engine.errors import PlanError
from peft_engine.plan import Actor, Plan
from peft_engine.router import Router
from tests.engine.conftest import make_delta, random_ids


def test_a_failed_batch_leaves_no_trace(bert: Base) -> None:
    router, actor = Router(bert.trunk), Actor.of(make_delta(bert, seed=1))
    ids = random_ids(2, 5)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with torch.no_grad():
        plain = bert.trunk(input_ids=ids).last_hidden_state
        # between two sites, so that a part of the batch has gone through the delta
        handle = bert.trunk.get_submodule("encoder.layer.1").register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="memory"), router.use(Plan.build([actor, actor])):
            bert.trunk(input_ids=ids)
        handle.remove()
        assert torch.equal(bert.trunk(input_ids=ids).last_hidden_state, plain)
        with router.use(Plan.build([None, None])):
            assert torch.equal(bert.trunk(input_ids=ids).last_hidden_state, plain)


def test_rows_that_the_plan_does_not_know_are_refused(bert: Base) -> None:
    router, actor = Router(bert.trunk), Actor.of(make_delta(bert, seed=1))
    with (
        torch.no_grad(),
        pytest.raises(PlanError, match="3 rows and the batch 2"),
        router.use(Plan.build([actor] * 3)),
    ):
        bert.trunk(input_ids=random_ids(2, 5))


def test_two_plans_at_once_are_refused(bert: Base) -> None:
    router = Router(bert.trunk)
    plan = Plan.build([None])
    with router.use(plan), pytest.raises(PlanError, match="another batch"), router.use(plan):
        pytest.fail("the second plan was accepted")
    with router.use(plan):
        pass


def test_another_thread_cannot_slip_into_a_plan(bert: Base) -> None:
    router, actor = Router(bert.trunk), Actor.of(make_delta(bert, seed=1))
    ids = random_ids(1, 5)
    errors: list[str] = []

    def intrude() -> None:
        for attempt in (
            lambda: bert.trunk(input_ids=ids),
            lambda: router.use(Plan.build([None])).__enter__(),
        ):
            with torch.no_grad(), pytest.raises(PlanError) as caught:
                attempt()
            errors.append(caught.value.code)

    with torch.no_grad(), router.use(Plan.build([actor])):
        bert.trunk(input_ids=ids)
        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
    assert errors == ["router_busy", "router_busy"]


def test_hooks_are_put_once(bert: Base) -> None:
    router = Router(bert.trunk)
    module = bert.trunk.get_submodule("encoder.layer.0.output.dense")
    before = len(module._forward_hooks)
    for seed in (1, 2, 3):
        with router.use(Plan.build([Actor.of(make_delta(bert, seed=seed))])):
            pass
    assert len(module._forward_hooks) == before + 1
    assert len(module._forward_pre_hooks) >= 1


def test_gradients_under_checkpointing_are_the_same(llama: Base) -> None:
    """A checkpointed layer is computed again in backward: the plan must still be in force."""
    ids = random_ids(2, 6)

    def gradients(*, checkpointed: bool) -> dict[str, torch.Tensor]:
        delta = make_delta(llama, seed=4)
        for tensor in delta.tensors.values():
            tensor.requires_grad_()
        router = Router(llama.trunk)
        embedded = llama.trunk.get_input_embeddings()(ids).requires_grad_()
        forward = partial(_last_hidden, llama)
        with router.use(Plan.build([Actor.of(delta)] * 2)):
            if checkpointed:
                out = checkpoint(forward, embedded, use_reentrant=False)
            else:
                out = forward(embedded)
            out.square().sum().backward()
        return {n: t.grad for n, t in delta.tensors.items() if t.grad is not None}

    plain, again = gradients(checkpointed=False), gradients(checkpointed=True)
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def _last_hidden(base: Base, embedded: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = base.trunk(inputs_embeds=embedded, use_cache=False).last_hidden_state
    return found
