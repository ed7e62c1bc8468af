"""Jobs on a Ray cluster of two nodes on this machine, nodes and workers killed on purpose."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from sat_ssvae.cli import main
from sat_ssvae.data.check import CheckConfig, check_data
from sat_ssvae.data.pack import PackConfig, merge, pack
from sat_ssvae.errors import UserError
from sat_ssvae.jobs import ray_engine
from sat_ssvae.jobs.engines import run_locally
from sat_ssvae.jobs.isolation import Crashed, IsolatedCalls
from sat_ssvae.jobs.job import Item
from sat_ssvae.jobs.ray_engine import run_on_ray
from sat_ssvae.latents.shards import EncodeConfig, encode_shards
from sat_ssvae.latents.statistics import StatsConfig, measure_stats

from .processes import unmeasured
from .shard_files import small
from .small_models import tiny_vae

grpc, ray = pytest.importorskip("grpc"), pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning:ray"),
]

NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 100 << 20, "include_dashboard": False}


FAIL_ONCE = """
import os, pathlib
failing = pathlib.Path(__file__).with_name("failing")
if failing.exists() and b"specific-server" in pathlib.Path("/proc/self/cmdline").read_bytes():
    failing.unlink()
    os._exit(1)
"""
"""Of every Python of the cluster: the next server for a client ends at once, as now and then on a busy machine."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    from ray.cluster_utils import Cluster

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import tests
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name not in unmeasured()]:
            patch.delenv(name)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # else workers starve where other tests run
        site = tmp_path_factory.mktemp("site")
        (site / "sitecustomize.py").write_text(FAIL_ONCE)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), str(site)]))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "ray_client_server_port": port})
        cluster.client_address, cluster.failing = f"ray://127.0.0.1:{port}", site / "failing"
        yield cluster
        cluster.shutdown()


@pytest.fixture
def second_node(cluster):
    node = cluster.add_node(**NODE)
    yield node
    with contextlib.suppress(Exception):  # the test has killed it
        cluster.remove_node(node)


def contents(folder):
    return {
        path.name: path.read_bytes() for path in folder.glob("*") if path.name[0] != "." and path.name != "pack.json"
    }


def wait_for(condition, process=None):
    while not condition():
        assert process is None or process.poll() is None
        time.sleep(0.01)


def test_a_thousand_videos_on_two_nodes_one_of_which_dies(
    cluster, second_node, thousand_videos, thousand_packed, tmp_path
):
    output = tmp_path / "shards"

    def kill():
        wait_for(lambda: len(list(output.glob("*.meta.jsonl"))) >= 4)
        cluster.remove_node(second_node, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    config = PackConfig(samples_per_shard=50, engine="ray", ray_address=cluster.address)
    report = pack(thousand_videos, output, config)
    killer.join()
    assert report.samples == 999 and report.skipped == {"not a video": 1}
    assert contents(output) == contents(thousand_packed)


def test_a_thousand_videos_in_four_parts(thousand_videos, thousand_packed, tmp_path):
    for part in (4, 2, 1, 3):
        pack(thousand_videos, tmp_path / "shards", PackConfig(samples_per_shard=50, part=f"{part}/4"))
    assert merge(tmp_path / "shards").samples == 999
    assert contents(tmp_path / "shards") == contents(thousand_packed)


def test_a_killed_driver_continues(cluster, thousand_videos, thousand_packed, tmp_path):
    output = tmp_path / "shards"
    settings = ["samples_per_shard=50", "engine=ray", f"ray_address={cluster.address}"]
    command = ["pack", str(thousand_videos), "--output", str(output), *settings]
    with subprocess.Popen([sys.executable, "-m", "sat_ssvae.cli", *command], env=unmeasured()) as driver:
        wait_for(lambda: len(list(output.glob("*.meta.jsonl"))) >= 3, driver)
        driver.kill()
    finished = {path: path.stat().st_mtime_ns for path in output.glob("*.meta.jsonl")}
    assert 3 <= len(finished) < 20
    assert main(command) == 0
    assert contents(output) == contents(thousand_packed)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # nothing twice


@pytest.mark.parametrize("where", ["outside", "inside", "none"])
def test_every_way_to_a_cluster(cluster, tiny_videos, tiny_shards, tmp_path, where):
    """As a client of one, on a machine of one, and on a machine of none, where Ray is started."""
    if where == "outside":
        cluster.failing.touch()
    address = {"outside": [f"ray_address={cluster.client_address}"], "inside": ["ray_address=auto"], "none": []}[where]
    environment = {**unmeasured(), "RAY_ADDRESS": cluster.address} if where == "inside" else unmeasured()
    command = [sys.executable, "-m", "sat_ssvae.cli", "pack", str(tiny_videos), "--output", str(tmp_path / "shards")]
    subprocess.run([*command, "samples_per_shard=2", "engine=ray", *address], check=True, env=environment)
    assert contents(tmp_path / "shards") == contents(tiny_shards)
    assert not cluster.failing.exists()


@dataclass(frozen=True)
class Squares:
    """Squares numbers, and dies of some."""

    folder: Path
    deadly: tuple[int, ...] = ()
    refused: int = -1
    uses_gpu = False
    overlap = 1

    @contextlib.contextmanager
    def open(self, cpus):
        def square(number, advance):
            advance(1)
            (self.folder / f"{number}-{time.monotonic_ns()}").touch()
            if number in self.deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            if number == self.refused:
                raise UserError(f"{number} is refused")
            advance(1)
            return number**2

        yield square


def numbers(count):
    return [Item(f"number {number}", 2, number) for number in range(count)]


def test_a_node_that_goes_after_it_was_listed_gets_no_work(cluster, second_node, tmp_path, monkeypatch):
    cluster.remove_node(second_node, allow_graceful=False)
    listed, asked = ray.nodes, []

    def list_as_before():
        nodes = listed()
        while not asked and sum(node["Alive"] for node in nodes) > 1:
            time.sleep(0.1)
            nodes = listed()
        asked.append(len(nodes))
        return [{**node, "Alive": True, "Resources": {"CPU": 1}} for node in nodes] if len(asked) == 1 else nodes

    monkeypatch.setattr(ray, "nodes", list_as_before)
    results = dict(run_on_ray(cluster.address, Squares(tmp_path), numbers(4), [].append))
    assert {item.load: result for item, result in results.items()} == {number: number**2 for number in range(4)}
    assert asked[0] > 1


def test_what_ends_every_worker_is_left_for_the_end(cluster, tmp_path):
    steps, results = [], {}
    run = run_on_ray(cluster.address, Squares(tmp_path, deadly=(2,)), numbers(6), steps.append)
    with pytest.raises(UserError, match=r"1 of 6 pieces ended 2 workers each \(number 2\).*all others are finished"):
        results.update((item.load, result) for item, result in run)
    assert results == {number: number**2 for number in range(6) if number != 2}
    assert sum(steps) == 10 and len(list(tmp_path.glob("2-*"))) == 2
    assert all(len(list(tmp_path.glob(f"{number}-*"))) == 1 for number in results)  # nothing twice


def test_errors_of_a_worker_are_one_line(cluster, tmp_path):
    with pytest.raises(UserError, match=r"^3 is refused$"):
        list(run_on_ray(cluster.address, Squares(tmp_path, refused=3), numbers(5), lambda _: None))


@dataclass(frozen=True)
class Isolating:
    """Does its work in processes of the worker's, as `pack` does."""

    uses_gpu = False
    overlap = 2

    @contextlib.contextmanager
    def open(self, cpus):
        with IsolatedCalls(deadly_seven, 1) as calls:
            yield lambda numbers, _advance: list(calls.map(numbers, 2))


def deadly_seven(number):
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return -number


def test_a_poisonous_clip_costs_itself(cluster):
    items = [Item(str(start), 4, list(range(start, start + 4))) for start in (0, 4, 8)]
    for run in (partial(run_on_ray, cluster.address), run_locally):
        results = {item.name: result for item, result in run(Isolating(), items, lambda _: None)}
        assert results["0"] == [0, -1, -2, -3] and results["8"] == [-8, -9, -10, -11]
        assert results["4"] == [-4, -5, -6, Crashed("the process was ended by SIGKILL, 2 times")]


def test_reading_measuring_and_encoding(cluster, tiny_shards, tmp_path, monkeypatch):
    """The same report, the same bits, the same bytes as on one machine."""
    monkeypatch.chdir(tiny_shards.parent)  # relative paths
    data = small(tiny_shards.name)
    on_ray = {"engine": "ray", "ray_address": cluster.address}
    vae, cpu = tiny_vae(), torch.device("cpu")
    torch.set_num_threads(1)
    found = [check_data(CheckConfig(data=data, **where), tmp_path / f"check{len(where)}") for where in ({}, on_ray)]
    assert found[0] == found[1] and found[0].clips > 5
    stats = [
        measure_stats(vae, StatsConfig(data=data, stride=0.1, **where), cpu, tmp_path / f"stats{len(where)}")
        for where in ({}, on_ray)
    ]
    assert torch.equal(stats[0].mean, stats[1].mean) and torch.equal(stats[0].std, stats[1].std)
    vae.latent_stats = stats[0]
    for where in ({}, on_ray):
        config = EncodeConfig(data=data, clips_per_shard=4, **where)
        encode_shards(vae, config, tmp_path / f"latents{len(where)}", cpu)
    assert contents(tmp_path / "latents0") == contents(tmp_path / "latents2")


def test_versions_that_differ(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "versions", partial(dict, ray_engine.versions(), av="1.0"))
    with pytest.raises(UserError, match=r"node \w+ of the cluster has av .* instead of 1\.0: install the same"):
        list(run_on_ray(cluster.address, Squares(tmp_path), numbers(2), lambda _: None))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://127.0.0.1:1", "nobody answers there"),
        ("127.0.0.1:1", "nobody answers there"),
        ("ray://head", "expected auto, or ray://HOST:PORT"),
    ],
)
def test_unreachable(address, message, tmp_path):
    with pytest.raises(UserError, match=message):
        list(run_on_ray(address, Squares(tmp_path), numbers(2), lambda _: None))


def test_a_lost_connection_is_one_line(cluster, tmp_path, monkeypatch):
    """What a client of a cluster gets when the cluster's head goes away."""

    class Unavailable(grpc.RpcError):
        def details(self):
            return "Stream removed\n (104)"

    def nodes():
        raise Unavailable

    monkeypatch.setattr(ray, "nodes", nodes)
    with pytest.raises(UserError, match=r"connection to the Ray cluster was lost \(Stream removed \(104\)\); what is"):
        list(run_on_ray(cluster.address, Squares(tmp_path), numbers(2), lambda _: None))


def test_no_cluster_and_other_versions_of_ray(tmp_path, monkeypatch):
    """What Ray raises then; a real `auto` would find the cluster of these tests."""
    for error, message in (
        (ConnectionError("Could not find any running Ray instance."), "this machine belongs to no Ray cluster"),
        (RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.1"), "install the same: Version"),
    ):

        def init(error=error, **_options):
            raise error

        monkeypatch.setattr(ray, "init", init)
        with pytest.raises(UserError, match=message) as caught:
            list(run_on_ray("auto", Squares(tmp_path), numbers(2), lambda _: None))
        assert "\n" not in str(caught.value)


def test_no_ray(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'sat-ssvae\[ray\]'"):
        list(run_on_ray(None, Squares(tmp_path), numbers(2), lambda _: None))


def test_places_follow_cores_and_gpus():
    nodes = [
        {"NodeID": "a", "Resources": {"CPU": 20.0}},
        {"NodeID": "b", "Resources": {"CPU": 16.0, "GPU": 4.0}},
        {"NodeID": "c", "Resources": {}},
    ]
    cores = {
        node: [place["num_cpus"] for place in places] for node, places in ray_engine.places_on(nodes, False).items()
    }
    assert cores == {"a": [7, 7, 6], "b": [8, 8]}
    gpus = ray_engine.places_on(nodes, True)
    assert gpus == {"b": [{"num_cpus": 4, "num_gpus": 1}] * 4}
    assert ray_engine.places_on(nodes[::2], True) == {"a": [{"num_cpus": 1, "num_gpus": 0}] * 20}
