"""The queue of signature verification: a bounded number per turn, first come first served (attack D04)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from gatekeeper.errors import TokenRejected, TooManySignatures
from gatekeeper.tokens.keys import StaticKeys, VerificationKey
from gatekeeper.tokens.verify_queue import VerifyQueue
from tests.tokens import forge


class Signatures(StaticKeys):
    """Keys that record the turn of the loop in which each signature was verified."""

    def __init__(self, pem: str, algorithm: str) -> None:
        self.turn = 0
        self.verified: list[int] = []
        super().__init__([], [pem], [algorithm])
        self._keys = {algorithm: tuple(RecordingKey(key, self) for key in self._keys[algorithm])}

    async def watch(self) -> None:
        """Count the turns of the loop."""
        while True:
            await asyncio.sleep(0)
            self.turn += 1

    @property
    def most_in_a_turn(self) -> int:
        return max(self.verified.count(turn) for turn in set(self.verified))


class RecordingKey(VerificationKey):
    __slots__ = ("_by",)

    def __init__(self, key: VerificationKey, by: Signatures) -> None:
        super().__init__(key.algorithm, key._key, key.kid)
        self._by = by

    def verifies(self, signing_input: bytes, signature: bytes) -> bool:
        self._by.verified.append(self._by.turn)
        return super().verifies(signing_input, signature)


def bad(key: Any, algorithm: str, number: int) -> list[str]:
    """Make tokens whose only fault is the signature: each has that of another token."""
    signed = forge.signed_by(key, {"alg": algorithm})
    head, _, signature = signed.split(".")
    return [
        f"{head}.{forge.b64(forge.as_bytes(forge.USUAL | {'jti': str(each)}))}.{signature}" for each in range(number)
    ]


async def refused(verifying: Coroutine[Any, Any, object]) -> bool:
    try:
        await verifying
    except TokenRejected:
        return True
    return False


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_a_flood_of_bad_signatures_gets_so_many_in_a_turn_and_no_more(
    run: Callable[[Coroutine[Any, Any, None]], None],
    algorithm: str,
    rsa_key: rsa.RSAPrivateKey,
    ec_key: ec.EllipticCurvePrivateKey,
) -> None:
    # D04
    key = rsa_key if algorithm == "RS256" else ec_key
    good = forge.signed_by(key, {"alg": algorithm})
    tokens = bad(key, algorithm, 300)

    async def flood() -> None:
        keys = Signatures(forge.pem(key), algorithm)
        verify_queue = VerifyQueue(per_turn=8)
        by = forge.verifier(keys, algorithms=[algorithm], verify_queue=verify_queue)
        watching = asyncio.create_task(keys.watch())
        judged = [asyncio.create_task(refused(by.verify(token))) for token in tokens]
        await asyncio.sleep(0)
        late = asyncio.create_task(by.verify(good))
        await asyncio.sleep(0)
        assert 250 < verify_queue.waiting <= 300
        # Whoever has come last waits for all of them, and not for those who come later.
        later = [asyncio.create_task(refused(by.verify(token))) for token in tokens]
        claims = await late
        assert len(keys.verified) <= 300 + 2 * 8
        # A token that is known needs no turn, and no await.
        assert verify_queue.waiting > 0
        assert by.cached(good) is claims
        assert all(await asyncio.gather(*judged, *later))
        assert len(keys.verified) == 601
        assert keys.most_in_a_turn <= 8
        assert verify_queue.waiting == 0
        watching.cancel()

    run(flood())


async def test_what_needs_no_key_is_looked_at_first_and_takes_no_turn(rsa_key: rsa.RSAPrivateKey) -> None:
    # D04
    keys = Signatures(forge.pem(rsa_key), "RS256")
    by = forge.verifier(keys, algorithms=["RS256"], verify_queue=VerifyQueue(per_turn=0, max_waiting=0))
    head, payload, signature = forge.signed_by(rsa_key, {"alg": "RS256"}).split(".")
    for token in (
        "x",
        f"{head}.{payload}",
        f"{head}.{payload}.{signature}=",
        f"{head}.{payload}.{'A' * 65_536}",
        forge.token(),
        forge.signed_by(rsa_key, {"alg": "RS256", "typ": "logout+jwt"}),
        forge.signed_by(rsa_key, {"alg": "RS256", "crit": ["exp"]}),
    ):
        with pytest.raises(TokenRejected):
            await by.verify(token)
    assert keys.verified == []
    with pytest.raises(TooManySignatures):
        await by.verify(f"{head}.{payload}.{signature}")


async def test_the_first_to_come_is_the_first_to_go() -> None:
    verify_queue, order = VerifyQueue(per_turn=2), []

    async def come(number: int) -> None:
        await verify_queue.wait_turn()
        order.append(number)

    await asyncio.gather(*map(come, range(50)))
    assert order == list(range(50))


async def test_over_the_bound_nobody_waits() -> None:
    verify_queue = VerifyQueue(per_turn=1, max_waiting=3)
    come = await asyncio.gather(*(verify_queue.wait_turn() for _ in range(10)), return_exceptions=True)
    assert [type(each) for each in come] == [type(None)] * 4 + [TooManySignatures] * 6
    await verify_queue.wait_turn()


async def test_whose_client_has_left_is_forgotten_at_once() -> None:
    verify_queue = VerifyQueue(per_turn=1)
    tasks = [asyncio.create_task(verify_queue.wait_turn()) for _ in range(5)]
    await asyncio.sleep(0)
    assert verify_queue.waiting == 4
    verify_queue.cancel(tasks[3])
    assert verify_queue.waiting == 3
    # One that never waited, and one that has been forgotten already.
    verify_queue.cancel(tasks[0])
    verify_queue.cancel(tasks[3])
    tasks[4].cancel()
    told = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in told] == [type(None)] * 3 + [TooManySignatures, asyncio.CancelledError]
    assert verify_queue.waiting == 0


async def test_whoever_is_cancelled_takes_no_turn_from_others() -> None:
    verify_queue, order = VerifyQueue(per_turn=1), []

    async def come(number: int) -> None:
        await verify_queue.wait_turn()
        order.append(number)

    tasks = [asyncio.create_task(come(number)) for number in range(30)]
    await asyncio.sleep(0)
    for task in tasks[1::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == list(range(0, 30, 2))
    assert verify_queue.waiting == 0


def test_a_loop_that_has_ended_leaves_nobody_in_the_queue() -> None:
    verify_queue = VerifyQueue(per_turn=1)

    async def leave_some() -> None:
        waiting = [asyncio.ensure_future(verify_queue.wait_turn()) for _ in range(3)]
        await asyncio.sleep(0)
        assert verify_queue.waiting == 2
        for task in waiting:
            task.cancel()

    async def take_all() -> None:
        await asyncio.gather(*(verify_queue.wait_turn() for _ in range(3)))

    for _ in range(2):
        asyncio.run(leave_some())
        asyncio.run(take_all())
    assert verify_queue.waiting == 0
