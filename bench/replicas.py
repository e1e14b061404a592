"""What replicas on one Redis server do when parts of the whole fail, with real processes; and what they cost.

Runs the sandbox in this process (one-time refresh tokens, a second use revokes the login), Redis servers and
`cfproxy serve` as processes of its own, each on a free port of loopback, and prints a line of figures for
each scenario. `python bench/replicas.py SCENARIO…`; all of them take about a quarter of an hour.

What must hold, else the exit code is 1: the server sees no refresh token twice, and no login is lost, but in
the one window that one-time tokens leave open: the server has rotated, the answer is not saved yet. A loss
counts as inside the window only if the store did not have the newest refresh token when the fault began.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import redis.asyncio

from cfproxy.sandbox import Fault
from tests.e2e.kit import World, open_world
from tests.e2e.processes import Proxy
from tests.support.redis_server import RedisServer, running_installation, running_server

DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--repl-diskless-sync-delay", "0")
NEAR, FAR = "10.77.0.1", "10.77.0.2"  # inside of the namespaces that `partition` makes
CHANCE = random.Random(1)


class RequestStats:
    """Callers that go on until they are stopped; what they got, by status and slug."""

    def __init__(self, pause_s: float = 0.05) -> None:
        self.got: Counter[str] = Counter()
        self._pause_s = pause_s
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def call(self, proxy: Proxy) -> None:
        self._tasks[id(proxy)] = asyncio.create_task(self._run(proxy))

    async def leave(self, proxy: Proxy) -> None:
        task = self._tasks.pop(id(proxy))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _run(self, proxy: Proxy) -> None:
        while True:
            with contextlib.suppress(OSError):
                try:
                    async with (
                        asyncio.timeout(60),
                        proxy.client.get(proxy.url + "/v1/jobs?pageSize=1") as answer,
                    ):
                        document = await answer.json(content_type=None)
                        kind = document.get("type", "") if answer.status != 200 else ""
                        self.got[f"{answer.status} {kind.rpartition(':')[2]}".strip()] += 1
                except Exception as error:  # noqa: BLE001 - a replica that was killed
                    self.got[type(error).__name__] += 1
            await asyncio.sleep(self._pause_s)


class Case:
    """A sandbox, a store's address, and replicas."""

    def __init__(self, world: World, url: str, raw: redis.asyncio.Redis) -> None:
        self.world, self.url, self.raw = world, url, raw
        self.traffic = RequestStats()
        self.lost_in_window = self.lost_outside = self.reuses_in_window = self.reuses_outside = 0
        self._reuses = 0

    def issued(self) -> int:
        return sum(
            r.grant == "refresh_token" and r.outcome == "issued" for r in self.world.sandbox.token_requests
        )

    async def saved(self) -> bool:
        """Whether the store has the newest refresh token that the server gave."""
        document = json.loads(await self.raw.hget("cfproxy:{default}:login", "document") or b"{}")
        return document.get("refresh_token") == next(reversed(self.world.sandbox.grants.refresh_tokens))

    async def holder(self, proxies: list[Proxy]) -> Proxy:
        """Wait until one of them refreshes, and return it."""
        by_pid = {proxy.process.pid: proxy for proxy in proxies}
        while True:
            lock = await self.raw.get("cfproxy:{default}:lock")
            if lock is not None and (found := by_pid.get(int(lock.split(b":")[1]))) is not None:
                return found
            await asyncio.sleep(0.001)

    async def refreshed_or_reused(self, issued: int) -> None:
        """Return when a refresh was carried out beyond that many, or refused; a minute at most."""
        deadline = time.monotonic() + 60
        while self.issued() == issued and self.world.sandbox.reuse_seen == self._reuses:
            assert time.monotonic() < deadline, "nobody refreshes"
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)

    def judge(self, *, in_window: bool) -> bool:
        """Count what the server saw since the last time; return whether the login is lost."""
        reuses, self._reuses = self.world.sandbox.reuse_seen - self._reuses, self.world.sandbox.reuse_seen
        if in_window:
            self.reuses_in_window += reuses
            self.lost_in_window += reuses > 0
        else:
            self.reuses_outside += reuses
            self.lost_outside += reuses > 0
        return reuses > 0

    def figures(self) -> dict[str, object]:
        return {
            "answers": dict(self.traffic.got.most_common()),
            "refreshes": self.issued(),
            "reuses": {"in the window": self.reuses_in_window, "outside": self.reuses_outside},
            "logins lost": {"in the window": self.lost_in_window, "outside": self.lost_outside},
        }


@asynccontextmanager
async def open_case(
    replicas: int,
    *,
    lifetime_s: float = 3.0,
    options: tuple[str, ...] = DURABLE,
    url: str = "",
    **settings: object,
) -> AsyncIterator[tuple[Case, RedisServer, list[Proxy], AsyncExitStack]]:
    """Give a logged-in installation with that many replicas and callers at each."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(running_server(folder / "redis", *options))
        await server.ready()
        behaviour = settings.pop("behaviour", {})
        world = await stack.enter_async_context(open_world(folder, access_lifetime_s=lifetime_s, **behaviour))
        world.write_config(store=url or server.url, log={"level": "info", "format": "json"}, **settings)
        await world.log_in()
        proxies = list(
            await asyncio.gather(*(stack.enter_async_context(world.serve()) for _ in range(replicas)))
        )
        raw = redis.asyncio.Redis(port=server.port)
        stack.push_async_callback(raw.aclose)
        case = Case(world, server.url, raw)
        stack.push_async_callback(case.traffic.stop)
        for proxy in proxies:
            case.traffic.call(proxy)
        yield case, server, proxies, stack


# --- scenarios ------------------------------------------------------------------------------------


async def shared(rounds: int) -> dict[str, object]:
    """5,000 requests at 8 replicas over many lifetimes of 3 s."""
    async with open_case(8, lifetime_s=3.0) as (case, _, _, _):
        began_at, before = time.monotonic(), case.issued()
        while case.traffic.got.total() < 5000:
            await asyncio.sleep(0.1)
        await case.traffic.stop()
        case.judge(in_window=False)
        passed_s = time.monotonic() - began_at
        return case.figures() | {
            "refreshes": case.issued() - before,
            "lifetimes passed": round(passed_s / 3.0, 1),
        }


async def killed(rounds: int) -> dict[str, object]:
    """Kill -9 of the replica that refreshes, at a random moment of the refresh; then another takes its place."""
    per_world = max(1, rounds // 10)
    return _sum(await asyncio.gather(*(_killed(per_world) for _ in range(min(10, rounds)))))


async def _killed(rounds: int) -> dict[str, object]:
    async with open_case(3, lifetime_s=12.0) as (case, _, proxies, stack):
        for _ in range(rounds):
            # Every second answer of the token endpoint takes 20 ms: then there is a window to be hit.
            if CHANCE.random() < 0.5:
                case.world.sandbox.inject("token", Fault("slow", delay_s=0.02))
            victim = await case.holder(proxies)
            await asyncio.sleep(CHANCE.uniform(0, 0.03))
            await case.traffic.leave(victim)
            victim.process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(victim.process.wait)
            await asyncio.sleep(0.05)
            in_window, issued = not await case.saved(), case.issued()
            proxies.remove(victim)
            proxies.append(await stack.enter_async_context(case.world.serve()))
            case.traffic.call(proxies[-1])
            await case.refreshed_or_reused(issued)
            if case.judge(in_window=in_window):
                await case.world.log_in()
        return case.figures() | {"rounds": rounds}


async def stopped(rounds: int) -> dict[str, object]:
    """SIGSTOP of the replica that refreshes, for 12 s: longer than the lock lives (10 s); then it goes on."""
    per_world = max(1, rounds // 5)
    return _sum(await asyncio.gather(*(_stopped(per_world) for _ in range(min(5, rounds)))))


async def _stopped(rounds: int) -> dict[str, object]:
    async with open_case(3, lifetime_s=100.0) as (case, _, proxies, _):
        for _ in range(rounds):
            case.world.sandbox.inject("token", Fault("slow", delay_s=0.02))
            victim = await case.holder(proxies)
            await asyncio.sleep(CHANCE.uniform(0, 0.03))
            victim.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(12)
            victim.process.send_signal(signal.SIGCONT)
            await asyncio.sleep(8)
            case.judge(in_window=False)
        return case.figures() | {"rounds": rounds, "newest token saved": await case.saved()}


async def restarted(rounds: int) -> dict[str, object]:
    """Redis (appendonly, appendfsync always) killed and started again at once, in the middle of traffic."""
    async with open_case(4, lifetime_s=4.0) as (case, server, _, _):
        for _ in range(rounds):
            await asyncio.sleep(CHANCE.uniform(0.5, 4.0))
            server.kill()
            server.start()
            await server.ready()
        await asyncio.sleep(4)
        case.judge(in_window=False)
        return case.figures() | {"rounds": rounds, "newest token saved": await case.saved()}


async def away(rounds: int) -> dict[str, object]:
    """Redis killed for 20 s: tokens of 10 s, so that they end meanwhile."""
    async with open_case(4, lifetime_s=10.0) as (case, server, _, _):
        await asyncio.sleep(5)
        server.kill()
        killed_at = time.monotonic()
        await asyncio.sleep(20)
        before = dict(case.traffic.got)
        server.start()
        await server.ready()
        back_at = time.monotonic()
        while case.traffic.got["200"] == before["200"]:
            await asyncio.sleep(0.02)
        first_s = time.monotonic() - back_at
        await asyncio.sleep(12)
        case.judge(in_window=False)
        return case.figures() | {
            "away for s": round(back_at - killed_at, 1),
            "first 200 after s": round(first_s, 1),
        }


async def failover(rounds: int) -> dict[str, object]:
    """The primary killed under three Sentinels, two replicas, `?replicas=1`, tokens of 10 s; it comes back later."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        options = (*DURABLE, "--repl-ping-replica-period", "1")
        redises = await stack.enter_async_context(running_installation(folder, *options))
        url = f"{redises.url}?replicas=1"
        async with open_case(4, lifetime_s=10.0, url=url, options=("--save", "")) as (case, _, _, _):
            took = []
            for _ in range(rounds):
                await asyncio.sleep(CHANCE.uniform(1, 10))
                before = await redises.primary()
                before.kill()
                began_at = time.monotonic()
                while await redises.primary() is before:
                    await asyncio.sleep(0.05)
                took.append(round(time.monotonic() - began_at, 1))
                await asyncio.sleep(15)
                before.start()
                await before.ready()
                await asyncio.sleep(10)
                case.judge(in_window=False)
            return case.figures() | {"rounds": rounds, "failovers took s": took}


async def partition(rounds: int) -> dict[str, object]:
    """Two of four replicas cut off from Redis (packets go nowhere), not from the API, for 15 s; tokens of 10 s."""
    if os.environ.get("CFPROXY_BENCH_INSIDE") != "1":
        return await asyncio.to_thread(_in_namespaces, rounds)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(
            running_server(
                folder / "redis", *DURABLE, "--bind", f"127.0.0.1 {NEAR}", "--protected-mode", "no"
            )
        )
        await server.ready()
        world = await stack.enter_async_context(open_world(folder, access_lifetime_s=10.0))
        world.write_config(store=f"redis://{NEAR}:{server.port}/0", log={"level": "info", "format": "json"})
        await world.log_in()
        api_port = int(world.sandbox.url.rpartition(":")[2])
        # What the far side asks on its loopback goes through to the sandbox on this one's; another pair of
        # interfaces than Redis' packets.
        stack.enter_context(
            _relay(["ip", "netns", "exec", "cfproxy-far"], "127.0.0.1", api_port, "10.77.1.1", api_port)
        )
        stack.enter_context(_relay([], "10.77.1.1", api_port, "127.0.0.1", api_port))
        near = [await stack.enter_async_context(world.serve()) for _ in range(2)]
        plain = world.command
        world.command = lambda *args: ["ip", "netns", "exec", "cfproxy-far", *plain(*args)]
        world.environment |= {"CFPROXY_LISTEN": "10.77.1.2:0", "CFPROXY_ACCESS__ALLOW_REMOTE": "true"}
        far = [await stack.enter_async_context(world.serve()) for _ in range(2)]
        raw = redis.asyncio.Redis(port=server.port)
        stack.push_async_callback(raw.aclose)
        case, cut_off = Case(world, server.url, raw), RequestStats()
        stack.push_async_callback(case.traffic.stop)
        stack.push_async_callback(cut_off.stop)
        for proxy in near:
            case.traffic.call(proxy)
        for proxy in far:
            cut_off.call(proxy)
        for _ in range(rounds):
            await asyncio.sleep(CHANCE.uniform(5, 12))
            _cut("replace", "lladdr", "02:00:00:00:00:99", "nud", "permanent")
            await asyncio.sleep(15)
            _cut("del")
            await asyncio.sleep(12)
            case.judge(in_window=False)
        return case.figures() | {
            "rounds": rounds,
            "answers of those cut off": dict(cut_off.got.most_common()),
        }


def _cut(what: str, *how: str) -> None:
    """Send the packets between Redis and the far side to nobody, without a word to either, or no longer."""
    for inside, other, device in (("cfproxy-near", FAR, "cfpr0"), ("cfproxy-far", NEAR, "cfpr1")):
        subprocess.run(
            ["ip", "-n", inside, "neigh", what, other, *how[:2], "dev", device, *how[2:]], check=True
        )


def _in_namespaces(rounds: int) -> dict[str, object]:
    """Make two namespaces with two pairs of interfaces, run the scenario inside, and take them down."""
    near, far = "cfproxy-near", "cfproxy-far"
    steps = [f"netns add {near}", f"netns add {far}"]
    for name, net in (("cfpr", "10.77.0"), ("cfpa", "10.77.1")):
        steps.append(f"link add {name}0 netns {near} type veth peer name {name}1 netns {far}")
        for end, side, inside in ((0, 1, near), (1, 2, far)):
            steps.append(f"-n {inside} addr add {net}.{side}/24 dev {name}{end}")
            steps.append(f"-n {inside} link set {name}{end} up")
    steps += [f"-n {near} link set lo up", f"-n {far} link set lo up"]
    try:
        for step in steps:
            subprocess.run(["ip", *step.split()], check=True)
        ran = subprocess.run(
            [
                "ip",
                "netns",
                "exec",
                near,
                sys.executable,
                __file__,
                "partition",
                "--rounds",
                str(rounds),
                "--json",
            ],
            env={**os.environ, "CFPROXY_BENCH_INSIDE": "1"},
            stdout=subprocess.PIPE,
            check=False,
        )
        return json.loads(ran.stdout)["partition"]
    finally:
        for name in (near, far):
            subprocess.run(["ip", "netns", "del", name], check=False)


_RELAY = """
import asyncio, sys
async def main(host, port, to_host, to_port):
    async def pump(reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()
    async def serve(reader, writer):
        try:
            far_reader, far_writer = await asyncio.open_connection(to_host, int(to_port))
        except OSError:
            return writer.close()
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
    async with await asyncio.start_server(serve, host, int(port)) as server:
        await server.serve_forever()
asyncio.run(main(*sys.argv[1:]))
"""


@contextlib.contextmanager
def _relay(prefix: list[str], host: str, port: int, to_host: str, to_port: int):
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", _RELAY, host, str(port), to_host, str(to_port)]
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def pace(rounds: int) -> dict[str, object]:
    """8 replicas, one rate of 20/s, 2,000 requests; the sandbox refuses the 21st within a sliding second."""
    behaviour = {"limiter": "sliding", "limit_rate": 20, "limit_per_s": 1.0}
    pacing = {"rate": 20, "per": "1s", "queue": 1000, "max_wait": "300s", "shared": True}
    async with open_case(8, lifetime_s=3600.0, behaviour=behaviour, pacing=pacing) as (case, _, proxies, _):
        await case.traffic.stop()
        await asyncio.sleep(1.5)
        await case.raw.config_resetstat()
        before, count = len(case.world.sandbox.journal.api_arrivals), 2000
        got: Counter[int] = Counter()

        async def work(proxy: Proxy) -> None:
            for _ in range(count // 8 // 10):
                got[await proxy.status()] += 1

        began_at = time.monotonic()
        async with asyncio.timeout(600):
            await asyncio.gather(*(work(proxy) for proxy in proxies for _ in range(10)))
        took_s = time.monotonic() - began_at
        arrivals = sorted(list(case.world.sandbox.journal.api_arrivals)[before:])
        worst = max(
            sum(at <= other < at + 1.0 for other in arrivals[i : i + 40]) for i, at in enumerate(arrivals)
        )
        stats = await case.raw.info("commandstats")
        trips = stats["cmdstat_evalsha"]["calls"]
        return {
            "statuses": dict(got),
            "took s": round(took_s, 1),
            "arrivals": len(arrivals),
            "most arrivals in 1.0 s": worst,
            "of the rate": round(len(arrivals) / (20 * (arrivals[-1] - arrivals[0])), 3),
            "evalsha": trips,
            "round trips per request": round(trips / count, 3),
        }


async def warm(rounds: int) -> dict[str, object]:
    """Commands on the server while 2,000 requests pass with a warm token, and while none do, as long."""
    async with open_case(1, lifetime_s=3600.0) as (case, _, (proxy,), _):
        await case.traffic.stop()
        await asyncio.sleep(1)

        async def commands(work: Callable[[], object]) -> tuple[int, float]:
            before = (await case.raw.info("stats"))["total_commands_processed"]
            began_at = time.monotonic()
            await work()
            after = (await case.raw.info("stats"))["total_commands_processed"]
            return after - before - 1, time.monotonic() - began_at

        async def requests() -> None:
            for _ in range(2000):
                assert await proxy.status() == 200

        busy, took_s = await commands(requests)
        idle, _ = await commands(lambda: asyncio.sleep(took_s))
        clients = [each for each in await case.raw.client_list() if each["name"] == "cfproxy"]
        return {
            "requests": 2000,
            "commands": busy,
            "commands without requests": idle,
            "took s": round(took_s, 1),
            "connections of the replica": len(clients),
        }


def _sum(parts: list[dict[str, object]]) -> dict[str, object]:
    def add(one: object, other: object) -> object:
        if isinstance(one, dict):
            return {
                key: add(one.get(key, 0), other.get(key, 0))
                if key in one and key in other
                else one.get(key, other.get(key))
                for key in {**one, **other}
            }
        return (one and other) if isinstance(one, bool) else one + other

    whole = parts[0]
    for part in parts[1:]:
        whole = add(whole, part)
    return whole


SCENARIOS = {
    "shared": (shared, 1),
    "killed": (killed, 100),
    "stopped": (stopped, 10),
    "restarted": (restarted, 10),
    "away": (away, 1),
    "failover": (failover, 3),
    "partition": (partition, 3),
    "pace": (pace, 1),
    "warm": (warm, 1),
}


async def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--rounds", type=int, help="instead of each scenario's own number")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    results = {}
    for name in asked.scenarios or SCENARIOS:
        run, rounds = SCENARIOS[name]
        results[name] = await run(asked.rounds or rounds)
        if not asked.json:
            print(f"{name}: {json.dumps(results[name])}", flush=True)
    if asked.json:
        print(json.dumps(results))
    bad = [
        name
        for name, figures in results.items()
        if figures.get("reuses", {}).get("outside") or figures.get("most arrivals in 1.0 s", 0) > 20
    ]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
