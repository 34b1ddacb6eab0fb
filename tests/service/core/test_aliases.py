"""Aliases against both databases: moves, history, rollback, one space of names, races."""

from typing import Any

import pytest
import sqlalchemy as sa

from core.db import adapters, aliases, jobs
from core.db.models import Adapter
from core.errors import BadInput, Conflict, NotFound, ServiceError
from core.states import AliasAction, JobStatus
from tests.service.core.world import World, at_once, make_world


def publish(world: World, name: str = "intents") -> Adapter:
    with world.database.write() as session:
        return adapters.publish(
            session,
            tenant_id=world.tenant_id,
            name=name,
            base_model="minilm",
            base_fingerprint="sha256:b",
            task="text-classification",
            methods=[{"type": "lora"}],
            parameters=1,
            bytes=10,
            digest="sha256:d",
            key="deltas/d.safetensors",
        )


def move(world: World, name: str, adapter_id: str, **values: Any) -> int:
    with world.database.write() as session:
        return aliases.move(session, world.tenant_id, name, adapter_id, **values).revision


def roll_back(world: World, name: str, revision: int | None = None) -> str | None:
    with world.database.write() as session:
        aliases.hold(session, world.tenant_id, name)
        found = aliases.find_rollback(session, world.tenant_id, name, revision=revision)
        assert found.adapter_id is not None
        aliases.move(session, world.tenant_id, name, found.adapter_id, restores=found.revision)
        return found.adapter_id


def remove(world: World, name: str) -> None:
    with world.database.write() as session:
        aliases.remove(session, world.tenant_id, name)


def meaning(world: World, reference: str) -> tuple[str, str | None, int | None]:
    with world.database.read() as session:
        found = adapters.resolve_traced(session, world.tenant_id, reference)
    return found.adapter.id, found.alias, found.revision


def story(world: World, name: str) -> list[tuple[int, str, str | None, str | None]]:
    with world.database.read() as session:
        page = aliases.history(session, world.tenant_id, name, limit=100)
    return [
        (move.row.revision, move.row.action, move.row.previous_adapter_id, move.row.adapter_id)
        for move in page.items
    ][::-1]


def code_of(work: Any, *arguments: Any, **values: Any) -> str:
    with pytest.raises(ServiceError) as caught:
        work(*arguments, **values)
    return caught.value.code


def test_every_move_is_in_the_history(world: World) -> None:
    first, second = publish(world).id, publish(world).id
    assert [move(world, "prod", target) for target in (first, second, second, first)] == [
        1,
        2,
        2,
        3,
    ]
    assert story(world, "prod") == [
        (1, "set", None, first),
        (2, "set", first, second),
        (3, "set", second, first),
    ]
    assert meaning(world, "prod") == (first, "prod", 3)
    assert meaning(world, "intents") == (second, None, None)
    with world.database.read() as session:
        page = aliases.history(session, world.tenant_id, "prod", limit=1)
        older = aliases.history(session, world.tenant_id, "prod", limit=1, before=2)
        assert [page.items[0].row.revision, older.items[0].row.revision] == [3, 1]
        assert (page.has_more, older.has_more) == (True, False)
        assert page.items[0].adapter is not None
        assert page.items[0].adapter.version == 1


def test_rollbacks_walk_back_and_can_be_aimed(world: World) -> None:
    made = [publish(world).id for _ in range(3)]
    for target in made:
        move(world, "prod", target)
    assert roll_back(world, "prod") == made[1]
    assert roll_back(world, "prod") == made[0]
    assert code_of(roll_back, world, "prod") == "nothing_to_roll_back"
    assert roll_back(world, "prod", revision=3) == made[2]
    # from there, the one before revision 3
    assert roll_back(world, "prod") == made[1]
    assert code_of(roll_back, world, "prod", revision=99) == "nothing_to_roll_back"
    with world.database.read() as session:
        newest = aliases.history(session, world.tenant_id, "prod").items[0].row
    assert (newest.action, newest.restored_revision) == (AliasAction.ROLLBACK, 2)


def test_a_rollback_never_skips_a_deleted_adapter_in_silence(world: World) -> None:
    made = [publish(world).id for _ in range(3)]
    for target in made:
        move(world, "prod", target)
    with world.database.write() as session:
        adapters.mark_deleted(session, world.tenant_id, made[1])
    with pytest.raises(Conflict, match=r"revision 2.*deleted") as caught:
        roll_back(world, "prod")
    assert caught.value.code == "nothing_to_roll_back"
    assert roll_back(world, "prod", revision=1) == made[0]


def test_an_adapter_stays_while_an_alias_points_to_it(world: World) -> None:
    first, second = publish(world).id, publish(world).id
    move(world, "prod", first)
    move(world, "canary", first)

    def delete(adapter_id: str) -> None:
        with world.database.write() as session:
            adapters.mark_deleted(session, world.tenant_id, adapter_id)

    with pytest.raises(Conflict, match="canary, prod") as caught:
        delete(first)
    assert caught.value.code == "adapter_in_use"
    move(world, "prod", second)
    remove(world, "canary")
    delete(first)
    assert code_of(move, world, "prod", first) == "adapter_not_found"
    assert meaning(world, "prod") == (second, "prod", 2)


def test_a_deleted_alias_keeps_its_history(world: World) -> None:
    first, second = publish(world).id, publish(world).id
    move(world, "prod", first)
    remove(world, "prod")
    assert code_of(meaning, world, "prod") == "adapter_not_found"
    assert code_of(remove, world, "prod") == "alias_not_found"
    assert move(world, "prod", second) == 3
    assert story(world, "prod") == [
        (1, "set", None, first),
        (2, "delete", first, None),
        (3, "set", None, second),
    ]
    assert roll_back(world, "prod") == first


def test_a_name_means_an_adapter_or_an_alias(world: World) -> None:
    target = publish(world, "one").id
    assert code_of(move, world, "one", target) == "name_taken"
    move(world, "prod", target)
    assert code_of(publish, world, "prod") == "name_taken"
    assert code_of(world.job, adapter_name="prod") == "name_taken"
    job = world.job(adapter_name="soon")
    with pytest.raises(Conflict, match=job.id):
        move(world, "soon", target)
    world.cancel(job.id)
    move(world, "soon", target)
    # a name that reads like an id could be taken for one
    assert code_of(move, world, "adp_mine", target) == "bad_input"
    assert code_of(world.job, adapter_name=target) == "bad_input"
    # free again when its owner is gone
    with world.database.write() as session:
        own = adapters.publish(
            session,
            **{"tenant_id": world.tenant_id, "name": "two", "base_model": "minilm"},
            **{"base_fingerprint": "f", "task": "t", "methods": [], "parameters": 1},
            **{"bytes": 1, "digest": "d", "key": "k"},
        )
        adapters.mark_deleted(session, world.tenant_id, own.id)
    move(world, "two", target)
    remove(world, "two")
    assert publish(world, "two").version == 2


def test_a_failed_job_may_find_its_name_taken(world: World) -> None:
    job = world.job(adapter_name="prod")
    attempt = world.claim(job.id)
    assert attempt is not None
    world.finish(job.id, attempt, JobStatus.FAILED)
    move(world, "prod", publish(world).id)

    def retry() -> None:
        with world.database.write() as session:
            jobs.retry(session, world.tenant_id, job.id, attempts=1)

    assert code_of(retry) == "name_taken"
    remove(world, "prod")
    retry()
    assert world.get(job.id).status is JobStatus.QUEUED


def test_tenants_do_not_see_one_another(world: World) -> None:
    other = make_world(world.database)
    mine, theirs = publish(world).id, publish(other).id
    move(world, "prod", mine)
    assert code_of(move, other, "prod", mine) == "adapter_not_found"
    assert code_of(meaning, other, "prod") == "adapter_not_found"
    assert code_of(remove, other, "prod") == "alias_not_found"
    # the same name is free for everybody
    assert move(other, "prod", theirs) == 1
    assert meaning(world, "prod")[0] == mine
    assert publish(other, "one").version == 1
    with world.database.read() as session:
        assert [row.adapter and row.adapter.id for row in _all(session, other)] == [theirs]
        assert aliases.names_of(session, other.tenant_id, [mine, theirs]) == {theirs: ["prod"]}
        with pytest.raises(NotFound):
            aliases.get(session, other.tenant_id, "intents")


def _all(session: Any, world: World) -> list[aliases.Shown]:
    return aliases.list_page(session, world.tenant_id).items


def test_aliases_are_listed_newest_first(world: World) -> None:
    target, another = publish(world).id, publish(world).id
    for name in ("a", "b", "c"):
        move(world, name, another if name == "b" else target)
    with world.database.read() as session:
        page = aliases.list_page(session, world.tenant_id, limit=2)
        assert [row.row.name for row in page.items] == ["c", "b"]
        assert page.has_more
        rest = aliases.list_page(session, world.tenant_id, after=page.items[-1].row.id)
        assert [row.row.name for row in rest.items] == ["a"]
        found = aliases.list_page(session, world.tenant_id, adapter_id=target)
        assert [row.row.name for row in found.items] == ["c", "a"]


def test_movers_at_once_come_one_after_the_other(world: World) -> None:
    made = [publish(world).id for _ in range(6)]
    revisions = at_once(lambda target: move(world, "prod", target), made)
    assert sorted(revisions) == [1, 2, 3, 4, 5, 6]
    told = story(world, "prod")
    # each began where the one before had ended, and the last one won
    assert [line[2] for line in told] == [None, *(line[3] for line in told[:-1])]
    assert meaning(world, "prod") == (told[-1][3], "prod", 6)


def test_an_alias_and_an_adapter_at_once_never_share_a_name(world: World) -> None:
    target = publish(world).id
    works = [lambda name: move(world, name, target), lambda name: publish(world, name)]
    works.append(lambda name: world.job(adapter_name=name))

    def attempt(place: int) -> str:
        try:
            works[place % 3](f"name{place // 6}")
        except Conflict as error:
            return error.code
        return "made"

    outcomes = at_once(attempt, list(range(24)))
    assert set(outcomes) == {"made", "name_taken"}
    for name in range(4):
        own = outcomes[name * 6 : name * 6 + 6]
        aliased = "made" in {own[0], own[3]}
        assert aliased != ("made" in {own[place] for place in (1, 2, 4, 5)}), own


def test_a_deletion_and_a_move_at_once_never_leave_an_alias_dangling(world: World) -> None:
    made = [publish(world).id for _ in range(6)]

    def attempt(place: int) -> str:
        target = made[place // 2]
        try:
            if place % 2:
                move(world, f"alias{place}", target)
            else:
                with world.database.write() as session:
                    adapters.mark_deleted(session, world.tenant_id, target)
        except ServiceError as error:
            return error.code
        return "done"

    outcomes = at_once(attempt, list(range(12)))
    for place in range(0, 12, 2):
        assert (outcomes[place], outcomes[place + 1]) in {
            ("done", "adapter_not_found"),
            ("adapter_in_use", "done"),
        }


def test_a_name_is_checked_like_an_id_only_where_it_is_made(world: World) -> None:
    with pytest.raises(BadInput, match="adp_"):
        publish(world, "adp_x")
    with world.database.read() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Adapter)) == 0
