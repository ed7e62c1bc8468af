"""Jobs on a Ray cluster: actors on every node, each of which takes one item after another.

The driver keeps the list of items. The items of a node or worker that dies go back to the list, and a new worker
replaces it, on the same node or, if that is gone, on one of the others. An item that ends several workers while their
nodes live is given up, and named at the end.
"""

import contextlib
import hashlib
import logging
import os
import platform
import socket
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UserError, one_line
from .job import Advance, Item, Job

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

_CPUS = 8  # cores of a worker at most: a machine of many has several, which fit beside other users' work
_STORE = 256 << 20  # bytes of the object store of a Ray that is started here; only the job itself goes through it
_POLL = 1.0  # seconds between questions to the workers about their progress
_GROW = 5.0  # seconds between checks for nodes that joined
_DEATHS = 2  # workers that an item may crash while their nodes live
_PATIENCE = 30.0  # seconds without any worker before a warning
_TRIES = 3  # of connecting as a client
_ENDED_AT_ONCE = ("Starting Ray client server failed", "Proxy failed to Connect to backend")
_CONNECT = 10.0  # seconds for an address to answer


def run_on_ray(
    address: str | None, job: Job[T, R], items: Sequence[Item[T]], advance: Advance
) -> Iterator[tuple[Item[T], R]]:
    """Items with their results, in the order in which they finish.

    `address` is a Ray cluster's; None starts one on this machine.

    Raises:
        UserError: no Ray, no cluster at the address, another version on the workers, items that crashed their workers,
            or a lost connection.
    """
    with _connected(address) as ray:
        try:
            yield from _Driver(ray, job, deque(items), advance).results()
        except Exception as error:
            # A client of a cluster (ray://) gets gRPC's own exceptions.
            if not isinstance(error, (ConnectionError, ray.exceptions.RaySystemError, *_grpc_errors())):
                raise
            reason = error.details() if hasattr(error, "details") else str(error)
            raise UserError(
                f"the connection to the Ray cluster was lost ({one_line(reason)}); "
                "what is finished is kept, the same command continues"
            ) from None


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """The module `ray`, connected; an existing connection is used and kept."""
    # Read when Ray is imported: no usage reports; workers without a GPU do not see one by accident; after a lost
    # connection, no Ray is started on this machine instead.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UserError("engine=ray needs Ray: pip install 'sat-ssvae[ray]'") from None
    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": _STORE}
    else:
        _check_reachable(address)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # errors are reported below, in one line
            _initialize(ray, address or "local", options)
    except Exception as error:  # a busy machine's time-out has no class of its own
        raise UserError(_why_not(address, error)) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _initialize(ray: Any, address: str, options: dict[str, Any]) -> None:
    """Connect. On a busy head node the server that Ray starts for each client sometimes ends at once."""
    for _ in range(_TRIES - 1):
        try:
            ray.init(address=address, **options)
        except ConnectionError as error:
            if not any(reason in str(error) for reason in _ENDED_AT_ONCE):
                raise
        else:
            return
    ray.init(address=address, **options)


def _grpc_errors() -> tuple[type[Exception], ...]:
    with contextlib.suppress(ModuleNotFoundError):  # Ray without its client
        import grpc

        return (grpc.RpcError,)
    return ()


def _check_reachable(address: str) -> None:
    """Connect before Ray does, which tries for minutes, and for some addresses ends the process."""
    place = address.removeprefix("ray://")
    if place == "auto":
        return
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"ray_address={address}: expected auto, or ray://HOST:PORT (Ray's client port is 10001)")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"ray_address={address}: nobody answers there ({error}); is the cluster up, and is the port right?"
        ) from None


def _why_not(address: str | None, error: Exception) -> str:
    reason = one_line(error)
    if "ersion mismatch" in reason:
        return f"ray_address={address}: the cluster runs other versions than this machine, install the same: {reason}"
    if address == "auto":
        return "ray_address=auto: this machine belongs to no Ray cluster; `ray start --address=HEAD:6379` joins one"
    if "timeout" in reason:
        reason += "; where the cluster asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN here as well"
    return f"Ray could not be {'started here' if address is None else f'reached at {address}'}: {reason}"


def versions() -> dict[str, str]:
    """Versions that must be the same on all machines for the same bytes to come out."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    packages = {name: metadata.version(name) for name in ("av", "numpy", "torch")}
    return {"Python": platform.python_version(), "sat-ssvae": f"code {digest.hexdigest()[:8]}", **packages}


class _Worker:
    """The actor that runs on the cluster, with a thread for each concurrent call."""

    def __init__(self, job: "Job[Any, Any]", cpus: int, folder: str) -> None:
        with contextlib.suppress(OSError):
            os.chdir(folder)  # relative paths mean the same as on the driver
        self._job, self._cpus = job, cpus
        self._open = contextlib.ExitStack()
        self._done: Counter[int] = Counter()
        self._work: Callable[[Any, Advance], Any] | None = None

    def get_ready(self) -> dict[str, str]:
        """Open the job; returns the versions here."""
        self._work = self._open.enter_context(self._job.open(self._cpus))
        return versions()

    def do(self, number: int, load: Any) -> Any:
        """The result of item `number`."""
        assert self._work is not None

        def advance(units: int) -> None:
            self._done[number] += units

        return self._work(load, advance)

    def done(self) -> dict[int, int]:
        """Units done so far, by the number of the item."""
        return dict(self._done)

    def close(self) -> None:
        self._open.close()


@dataclass(eq=False)
class _WorkerHandle:
    """A worker as the driver sees it."""

    actor: Any
    node: str
    ready: bool = False
    items: set[int] = field(default_factory=set)
    asked: bool = False
    """Whether it was asked for its progress and has not answered."""


class _Driver:
    """Hands out items, and collects results."""

    def __init__(self, ray: Any, job: "Job[Any, Any]", items: "deque[Item[Any]]", advance: Advance) -> None:
        self._ray, self._job, self._advance = ray, job, advance
        self._items = list(items)
        self._todo = deque(range(len(items)))
        self._shown: Counter[int] = Counter()
        """Units of unfinished items that the bar shows."""
        self._deaths: Counter[int] = Counter()
        self._given_up: list[int] = []
        self._workers: list[_WorkerHandle] = []
        self._waiting: dict[Any, tuple[str, _WorkerHandle, int]] = {}
        """Pending calls by their reference: kind, worker and item."""
        self._job_ref = ray.put(job)
        self._versions = versions()
        self._grown = self._polled = float("-inf")
        self._idle_since = time.monotonic()
        self._said = False

    def results(self) -> Iterator[tuple[Item[Any], Any]]:
        try:
            while self._todo or any(worker.items for worker in self._workers):
                self._grow()
                self._assign()
                self._poll()
                done, _ = self._ray.wait(list(self._waiting), timeout=_POLL) if self._waiting else ([], [])
                if not self._waiting:
                    time.sleep(_POLL)
                for reference in done:
                    yield from self._answered(reference)
                self._warn_of_waiting()
        finally:
            self._end()
        if self._given_up:
            names = ", ".join(self._items[number].name for number in sorted(self._given_up)[:5])
            raise UserError(
                f"{len(self._given_up)} of {len(self._items)} pieces ended {_DEATHS} workers each ({names}), perhaps "
                "for lack of memory; all others are finished, and the same command tries these again"
            )

    def _grow(self) -> None:
        """Start a worker for every `_CPUS` cores, or GPU, of each live node."""
        if time.monotonic() - self._grown < _GROW:
            return
        self._grown = time.monotonic()
        places = places_on([node for node in self._ray.nodes() if node["Alive"]], self._job.uses_gpu)
        there = Counter(worker.node for worker in self._workers)
        missing = [(node, options) for node, all_of in places.items() for options in all_of[there[node] :]]
        left = len(self._todo) + sum(len(worker.items) for worker in self._workers)
        for node, options in missing[: max(0, left - len(self._workers))]:
            self._workers.append(self._start_worker(node, options))

    def _start_worker(self, node: str, options: dict[str, Any]) -> _WorkerHandle:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor = (
            self._ray.remote(_Worker)
            .options(
                **options,
                max_concurrency=self._job.overlap + 1,
                max_restarts=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote(self._job_ref, options["num_cpus"], str(Path.cwd()))
        )
        worker = _WorkerHandle(actor, node)
        self._waiting[actor.get_ready.remote()] = ("ready", worker, -1)
        return worker

    def _assign(self) -> None:
        # One item each in turn, with some left for starting workers, so that the first one does not get all of them.
        starting = sum(not worker.ready for worker in self._workers)
        for count in range(self._job.overlap):
            if count and len(self._todo) <= starting:
                break
            for worker in self._workers:
                if self._todo and worker.ready and len(worker.items) == count:
                    number = self._todo.popleft()
                    worker.items.add(number)
                    self._waiting[worker.actor.do.remote(number, self._items[number].load)] = ("do", worker, number)

    def _poll(self) -> None:
        if time.monotonic() - self._polled < _POLL:
            return
        self._polled = time.monotonic()
        for worker in self._workers:
            if worker.items and not worker.asked:
                worker.asked = True
                self._waiting[worker.actor.done.remote()] = ("done", worker, -1)

    def _answered(self, reference: Any) -> Iterator[tuple[Item[Any], Any]]:
        what, worker, number = self._waiting.pop(reference)
        if worker not in self._workers:  # known to be dead
            return
        exceptions = self._ray.exceptions
        try:
            answer = self._ray.get(reference)
        except exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, UserError) else error) from None
        except exceptions.ActorUnschedulableError:  # its node has just gone, or is full
            self._workers.remove(worker)
            return
        except (exceptions.RayActorError, exceptions.RaySystemError, exceptions.ObjectLostError) as error:
            self._requeue(worker, error)
            return
        if what == "ready":
            self._check_versions(answer, worker)
            worker.ready = True
        elif what == "done":
            worker.asked = False
            for item in worker.items & answer.keys():
                self._show(item, answer[item])
        else:
            worker.items.discard(number)
            self._show(number, self._items[number].units)
            yield self._items[number], answer

    def _show(self, number: int, units: int) -> None:
        """Set the units that the progress bar counts for an item."""
        self._advance(units - self._shown[number])
        self._shown[number] = units

    def _requeue(self, worker: _WorkerHandle, error: Exception) -> None:
        """Give the items of a dead worker to the others."""
        if not worker.ready and "ModuleNotFoundError" in str(error):
            raise UserError(
                "sat-ssvae cannot be imported on the cluster's machines: install the same version there as here"
            ) from None
        self._workers.remove(worker)
        self._grown = time.monotonic() - _GROW + _POLL  # soon
        node_lives = any(node["NodeID"] == worker.node and node["Alive"] for node in self._ray.nodes())
        logger.warning(
            "%s died; %d unfinished pieces go to others",
            f"a worker on node {worker.node[:8]}" if node_lives else f"node {worker.node[:8]}",
            len(worker.items),
        )
        for number in sorted(worker.items, reverse=True):
            self._show(number, 0)
            self._deaths[number] += node_lives
            if self._deaths[number] < _DEATHS:
                self._todo.appendleft(number)
            else:
                self._given_up.append(number)

    def _check_versions(self, there: dict[str, str], worker: _WorkerHandle) -> None:
        differing = [name for name, version in self._versions.items() if there.get(name) != version]
        if differing:
            pairs = ", ".join(f"{name} {there.get(name)} instead of {self._versions[name]}" for name in differing)
            raise UserError(
                f"node {worker.node[:8]} of the cluster has {pairs}: install the same versions there as here, "
                "or the shards would depend on who made them"
            )

    def _warn_of_waiting(self) -> None:
        if any(worker.ready for worker in self._workers):
            self._idle_since = time.monotonic()
        elif not self._said and time.monotonic() - self._idle_since > _PATIENCE:
            self._said = True
            logger.warning("no worker yet: waiting for free cores of the cluster (`ray status` shows who has them)")

    def _end(self) -> None:
        closing = [worker.actor.close.remote() for worker in self._workers if worker.ready]
        with contextlib.suppress(Exception):  # dead, or the cluster is
            self._ray.wait(closing, num_returns=len(closing), timeout=_CONNECT)
        for worker in self._workers:
            with contextlib.suppress(Exception):
                self._ray.kill(worker.actor)


def places_on(nodes: Sequence[dict[str, Any]], uses_gpu: bool) -> dict[str, list[dict[str, Any]]]:
    """The resources of each worker, by the node's id."""
    cpus = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in nodes}
    gpus = {node["NodeID"]: int(node["Resources"].get("GPU", 0)) for node in nodes}
    if uses_gpu and any(gpus.values()):
        return {
            node: [{"num_cpus": max(1, min(_CPUS, cpus[node] // count)), "num_gpus": 1}] * count
            for node, count in gpus.items()
            if count
        }
    size = 1 if uses_gpu else _CPUS
    return {node: _shares(count, size) for node, count in cpus.items() if count}


def _shares(cpus: int, size: int) -> list[dict[str, Any]]:
    """`cpus` in the smallest number of equal shares of at most `size`."""
    count = -(-cpus // size)
    return [{"num_cpus": cpus // count + (number < cpus % count), "num_gpus": 0} for number in range(count)]
