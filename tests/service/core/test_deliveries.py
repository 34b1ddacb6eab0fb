"""Who sends a delivery, when it is sent again, and when it is given up."""

from datetime import datetime

import pytest
import sqlalchemy as sa

from core.db import clock, webhooks
from core.db.models import WebhookDelivery, WebhookEndpoint
from core.db.webhooks import MAX_ENDPOINTS, RETRY_PAUSES_SECONDS
from core.db.webhooks.deliveries import RETENTION_SECONDS
from core.errors import BadInput, Conflict, NotFound
from core.states import DeliveryStatus, WebhookEventType
from tests.service.core.hooks import SECRET, Hooks
from tests.service.core.world import World, at_once, make_world

D = DeliveryStatus
EXPIRED = -1.0


@pytest.fixture
def hooks(world: World) -> Hooks:
    return Hooks(world.database, world.tenant_id)


def test_of_many_that_claim_at_once_one_gets_each_delivery(hooks: Hooks) -> None:
    for _ in range(4):
        hooks.endpoint()
    for _ in range(6):
        assert hooks.announce() == 4
    claims = at_once(
        lambda _: [claim for _ in range(6) for claim in hooks.claim(limit=5)], list(range(6))
    )
    taken = [claim.delivery_id for found in claims for claim in found]
    assert len(taken) == len(set(taken))
    rest = [claim.delivery_id for claim in hooks.claim()]
    assert len(set(taken) | set(rest)) == len(taken) + len(rest) == 24


def test_a_claim_carries_what_is_to_be_sent(hooks: Hooks) -> None:
    endpoint_id = hooks.endpoint(may_be_private=True)
    hooks.announce(WebhookEventType.BATCH_EXPIRED)
    (claim,) = hooks.claim()
    assert (claim.endpoint_id, claim.attempt) == (endpoint_id, 1)
    assert (claim.event_type, claim.object_id) == ("batch.expired", "batch_1")
    assert (claim.url, claim.secrets) == ("https://example.com/hook", (SECRET,))
    assert claim.may_be_private
    assert SECRET not in repr(claim)


def test_what_is_claimed_is_not_due(hooks: Hooks) -> None:
    def is_due() -> bool:
        with hooks.database.read() as session:
            return webhooks.is_due(session)

    hooks.endpoint()
    assert not is_due()
    hooks.announce()
    assert is_due()
    (claim,) = hooks.claim()
    assert not is_due()
    assert hooks.claim() == []
    hooks.fail(claim)
    assert not is_due()


def test_a_lost_attempt_is_made_again_and_cannot_write(hooks: Hooks) -> None:
    endpoint_id = hooks.endpoint()
    hooks.announce()
    (lost,) = hooks.claim(lease_seconds=EXPIRED)
    (again,) = hooks.claim()
    assert (again.delivery_id, again.attempt) == (lost.delivery_id, 2)
    assert not hooks.fail(lost, is_gone=True)
    assert not hooks.deliver(lost)
    assert hooks.get(endpoint_id).disabled_reason is None
    assert hooks.deliver(again)
    assert not hooks.deliver(again)
    ((row, _),) = hooks.deliveries(endpoint_id)
    assert (row.status, row.status_code, row.due_at, row.attempts) == (D.DELIVERED, 204, None, 2)
    assert hooks.get(endpoint_id).delivered == 1
    hooks.make_due()
    assert hooks.claim() == []


def test_pauses_grow_until_it_is_given_up(hooks: Hooks) -> None:
    endpoint_id = hooks.endpoint()
    hooks.announce()
    pauses = []
    for attempt in range(1, len(RETRY_PAUSES_SECONDS) + 2):
        (claim,) = hooks.claim()
        assert claim.attempt == attempt
        assert hooks.fail(claim, status_code=500)
        ((row, event),) = hooks.deliveries(endpoint_id)
        if row.due_at is not None:
            assert row.attempted_at is not None
            pauses.append((row.due_at - row.attempted_at).total_seconds())
            assert row.status is D.PENDING
            assert hooks.claim() == []
            hooks.make_due()
    assert (row.status, row.error, row.status_code) == (D.FAILED, "answered 500", 500)
    assert event.type == "batch.completed"
    # the pause begins when the attempt has ended
    late = [had - wanted for had, wanted in zip(pauses, RETRY_PAUSES_SECONDS, strict=True)]
    assert all(0 <= each < 30 for each in late), late
    assert hooks.get(endpoint_id).failed == 1
    assert hooks.claim() == []


def test_each_endpoint_has_its_turn(hooks: Hooks) -> None:
    crowded = hooks.endpoint(WebhookEventType.BATCH_COMPLETED)
    for _ in range(10):
        hooks.announce()
    quiet = hooks.endpoint(WebhookEventType.BATCH_FAILED)
    hooks.announce(WebhookEventType.BATCH_FAILED)
    first = hooks.claim(limit=3, per_endpoint=4)
    assert sorted(claim.endpoint_id for claim in first) == sorted([crowded, crowded, quiet])
    assert len(hooks.claim(per_endpoint=4)) == 4
    assert hooks.claim(busy={crowded}) == []
    assert len(hooks.claim()) == 4


def test_who_wants_nothing_any_more_is_disabled(hooks: Hooks) -> None:
    endpoint_id = hooks.endpoint()
    for _ in range(3):
        hooks.announce()
    first, second, _ = hooks.claim(limit=3)
    assert hooks.fail(first, error="answered 410", status_code=410, is_gone=True)
    assert hooks.statuses() == [D.FAILED] * 3
    row = hooks.get(endpoint_id)
    assert (row.disabled_reason, row.failed) == ("answered 410", 3)
    assert not hooks.deliver(second)  # it was under way
    assert hooks.announce() == 0
    with hooks.database.write() as session:
        webhooks.update(session, hooks.tenant_id, endpoint_id, is_enabled=True)
    assert hooks.claim() == []
    assert hooks.announce() == 1
    assert len(hooks.claim()) == 1


def test_two_that_are_gone_at_once_do_not_wait_for_each_other(hooks: Hooks) -> None:
    endpoint_id = hooks.endpoint()
    for _ in range(8):
        hooks.announce()
    claims = hooks.claim()
    assert sum(at_once(lambda claim: hooks.fail(claim, is_gone=True), claims)) == 1
    assert hooks.get(endpoint_id).failed == 8


def test_both_secrets_sign_while_the_old_one_is_good(hooks: Hooks) -> None:
    endpoint_id = hooks.endpoint()
    new = SECRET.replace("A", "B")
    for keeps_old, secrets in ((True, (new, SECRET)), (False, (new,))):
        with hooks.database.write() as session:
            webhooks.rotate_secret(
                session, hooks.tenant_id, endpoint_id, secret=new, keeps_old=keeps_old
            )
        hooks.announce()
        (claim,) = hooks.claim()
        assert claim.secrets == secrets
    with hooks.database.write() as session:
        row = webhooks.rotate_secret(
            session, hooks.tenant_id, endpoint_id, secret=SECRET, keeps_old=True
        )
        row.previous_secret_until = clock.later(EXPIRED)
    hooks.announce()
    (claim,) = hooks.claim()
    assert claim.secrets == (SECRET,)


def test_any_delivery_can_be_sent_again(hooks: Hooks) -> None:
    def resend(delivery_id: str) -> None:
        with hooks.database.write() as session:
            webhooks.resend(session, hooks.tenant_id, endpoint_id, delivery_id)

    endpoint_id = hooks.endpoint()
    hooks.announce()
    (claim,) = hooks.claim()
    assert hooks.fail(claim)
    resend(claim.delivery_id)  # it waits for its pause
    (claim,) = hooks.claim()
    assert hooks.deliver(claim)
    resend(claim.delivery_id)
    (claim,) = hooks.claim()
    assert claim.attempt == 3
    assert hooks.deliver(claim)
    assert hooks.get(endpoint_id).delivered == 2
    with pytest.raises(NotFound) as told:
        resend("whd_unknown")
    assert told.value.code == "webhook_delivery_not_found"
    with hooks.database.write() as session:
        webhooks.update(session, hooks.tenant_id, endpoint_id, is_enabled=False)
    with pytest.raises(Conflict) as refused:
        resend(claim.delivery_id)
    assert refused.value.code == "webhook_disabled"


def test_old_deliveries_are_forgotten_and_still_counted(hooks: Hooks) -> None:
    def forget() -> None:
        with hooks.database.write() as session:
            webhooks.forget_old(session)

    endpoint_id = hooks.endpoint()
    hooks.announce()
    (claim,) = hooks.claim()
    hooks.deliver(claim)
    forget()
    assert len(hooks.deliveries(endpoint_id)) == 1
    with hooks.database.write() as session:
        for table in ("webhook_deliveries", "webhook_events"):
            long_ago = sa.table(table, sa.column("created_at"))
            session.execute(
                sa.update(long_ago).values(created_at=clock.later(-RETENTION_SECONDS - 1))
            )
    hooks.announce()
    forget()
    assert len(hooks.deliveries(endpoint_id)) == len(hooks.told()) == 1
    with hooks.database.read() as session:
        assert webhooks.count_totals(session) == {D.DELIVERED: 1, D.FAILED: 0}
        assert webhooks.count_pending(session) == 1


def test_a_tenant_has_so_many_endpoints_and_no_more(hooks: Hooks) -> None:
    for _ in range(MAX_ENDPOINTS - 2):
        hooks.endpoint()

    def make(_: int) -> str:
        try:
            return hooks.endpoint()
        except Conflict as error:
            return error.code

    made = sorted(at_once(make, list(range(5))))
    assert made[:3] == ["too_many_webhook_endpoints"] * 3
    assert len(set(made[3:])) == 2
    with hooks.database.write() as session:
        webhooks.delete(session, hooks.tenant_id, made[-1])
    hooks.endpoint()
    other = make_world(hooks.database)
    Hooks(hooks.database, other.tenant_id).endpoint()


def test_the_same_wish_at_once_makes_one_endpoint(hooks: Hooks) -> None:
    assert len(set(at_once(lambda _: hooks.endpoint_once(), list(range(4))))) == 1
    with hooks.database.write() as session:
        long_ago = datetime(2020, 1, 1).astimezone()
        session.execute(sa.update(WebhookEndpoint).values(created_at=long_ago))
    assert len({hooks.endpoint_once(), hooks.endpoint_once()}) == 1
    with hooks.database.read() as session:
        assert len(webhooks.list_page(session, hooks.tenant_id).items) == 2


def test_deliveries_come_in_pages(hooks: Hooks) -> None:
    endpoint_id, other = hooks.endpoint(), hooks.endpoint()
    for _ in range(5):
        hooks.announce()
    found: list[str] = []
    after = None
    with hooks.database.read() as session:
        for size in (2, 2, 1):
            page = webhooks.list_deliveries(
                session, hooks.tenant_id, endpoint_id, limit=2, after=after
            )
            assert (len(page.items), page.has_more) == (size, size == 2)
            found += [row.id for row, _ in page.items]
            after = found[-1]
        assert found == sorted(found, reverse=True)
        assert not {row.id for row, _ in hooks.deliveries(other)} & set(found)
        with pytest.raises(BadInput, match="is not in this list"):
            webhooks.list_deliveries(session, hooks.tenant_id, endpoint_id, after="whd_1")


def test_what_is_changed_is_called_updated_and_what_is_counted_is_not(hooks: Hooks) -> None:
    endpoint_id = hooks.endpoint()
    made = hooks.get(endpoint_id)
    hooks.announce()
    (claim,) = hooks.claim()
    hooks.deliver(claim)
    with hooks.database.write() as session:
        same = webhooks.update(
            session,
            hooks.tenant_id,
            endpoint_id,
            name=made.name,
            event_types=list(reversed(WebhookEventType)),
            is_enabled=True,
        )
        assert (same.updated_at, same.delivered) == (made.updated_at, 1)
        changed = webhooks.update(session, hooks.tenant_id, endpoint_id, name="other")
        assert changed.updated_at > made.updated_at
        disabled = webhooks.update(session, hooks.tenant_id, endpoint_id, is_enabled=False)
        assert disabled.updated_at > changed.created_at
        assert disabled.disabled_reason is not None


def test_another_tenant_reaches_nothing(hooks: Hooks) -> None:
    endpoint_id = hooks.endpoint()
    hooks.announce()
    ((row, _),) = hooks.deliveries(endpoint_id)
    stranger = make_world(hooks.database).tenant_id
    with hooks.database.write() as session:
        for call in (
            lambda: webhooks.get(session, stranger, endpoint_id),
            lambda: webhooks.update(session, stranger, endpoint_id, name="mine"),
            lambda: webhooks.rotate_secret(
                session, stranger, endpoint_id, secret=SECRET, keeps_old=False
            ),
            lambda: webhooks.delete(session, stranger, endpoint_id),
            lambda: webhooks.resend(session, stranger, endpoint_id, row.id),
        ):
            with pytest.raises(NotFound) as told:
                call()
            assert told.value.code == "webhook_endpoint_not_found"
        assert webhooks.list_page(session, stranger).items == []
        assert webhooks.list_deliveries(session, stranger, endpoint_id).items == []
        query = sa.select(sa.func.count()).select_from(WebhookDelivery)
        assert session.scalar(query) == 1
