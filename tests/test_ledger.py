"""Parts, what is left of a killed job, and who may work in a folder."""

import subprocess
import sys
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sat_ssvae.config import parse_config
from sat_ssvae.errors import UserError
from sat_ssvae.jobs.job import Item
from sat_ssvae.jobs.ledger import Ledger, claimed, collect, merge
from sat_ssvae.jobs.settings import JobConfig, Part
from sat_ssvae.jobs.store_lock import Claim

from .processes import unmeasured

ITEMS = [Item(f"item {number}", 1, number) for number in range(20)]


class Halves:
    """Halves numbers, and remembers which; stops at one of them."""

    uses_gpu = False
    overlap = 1

    def __init__(self, last=None):
        self.last, self.done = last, []

    @contextmanager
    def open(self, cpus):
        def halve(number, advance):
            if number == self.last:
                raise KeyboardInterrupt
            self.done.append(number)
            advance(1)
            return number / 2

        yield halve


def run(job, tmp_path, identity="a", **settings):
    ledger = Ledger(tmp_path / "halves", identity)
    return collect(job, ITEMS, JobConfig(**settings), ledger, Claim(), "halving", "number")


@given(st.text(), st.integers(1, 100))
def test_an_item_is_in_one_part(name, count):
    assert sum(Part(index, count).takes(name) for index in range(1, count + 1)) == 1


def test_parts_do_not_change_from_one_version_to_the_next():
    names = [f"clips-{number:06d}" for number in range(8)]
    assert [next(i for i in range(1, 5) if Part(i, 4).takes(name)) for name in names] == [4, 1, 2, 3, 2, 2, 2, 4]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"part": "5/4"}, "part 5/4: parts are counted from 1 to 4"),
        ({"part": "0/4"}, "part"),
        ({"part": "all"}, "part"),
        ({"engine": "spark"}, "engine"),
        ({"ray_address": "auto"}, "ray_address is for engine=ray"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message):
        parse_config(JobConfig, settings)


def test_a_killed_job_continues(tmp_path):
    first, second = Halves(last=7), Halves()
    with pytest.raises(KeyboardInterrupt):
        run(first, tmp_path)
    with (tmp_path / "halves.jsonl").open("a") as file:
        file.write('["item 7", 3')  # what a kill inside a write leaves
    assert run(second, tmp_path) == [number / 2 for number in range(20)]
    assert first.done + second.done == list(range(20))  # nothing twice, nothing lost
    other = Halves()
    run(other, tmp_path, identity="other settings")
    assert other.done == list(range(20))


def test_parts_are_merged(tmp_path):
    jobs = [Halves() for _ in range(3)]
    ledger = Ledger(tmp_path / "halves", "a")
    with pytest.raises(UserError, match="20 pieces are not done: run the same command without --merge"):
        merge(ITEMS, ledger)
    for index in (3, 1):
        assert run(jobs[index - 1], tmp_path, part=f"{index}/3") is None
    with pytest.raises(UserError, match=r"part 2 of 3 not finished, \d+ pieces .* with part=2/3, then --merge again"):
        merge(ITEMS, ledger)
    run(jobs[1], tmp_path, part="2/3")
    assert merge(ITEMS, ledger) == [number / 2 for number in range(20)]
    assert sorted(number for job in jobs for number in job.done) == list(range(20))
    run(Halves(), tmp_path, "other", part="2/3")
    with pytest.raises(UserError, match="of other data or settings"):
        merge(ITEMS, ledger)
    run(Halves(), tmp_path, part="1/2")
    with pytest.raises(UserError, match="parts of several jobs"):
        merge(ITEMS, ledger)
    ledger.remove()
    assert not list(tmp_path.iterdir())


CLAIM = """
import sys
from pathlib import Path
from sat_ssvae.errors import UserError
from sat_ssvae.jobs.ledger import claimed
from sat_ssvae.jobs.settings import Part
try:
    with claimed(Path(sys.argv[1]), "pack", Part(int(sys.argv[2]), int(sys.argv[3]))):
        print("free")
except UserError as error:
    print(error)
"""


def test_two_jobs_do_not_share_a_folder(tmp_path):
    def claim(index, count):
        command = [sys.executable, "-c", CLAIM, str(tmp_path), str(index), str(count)]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=unmeasured()).stdout

    with claimed(tmp_path, "pack", Part(1, 1)):
        assert f"{tmp_path}: another pack works there; wait for it, or choose another folder" in claim(1, 1)
        assert "another pack of part 2/4 works there" in claim(2, 4)
    with claimed(tmp_path, "pack", Part(2, 4)):
        assert claim(3, 4) == "free\n"
        assert "another pack of part 2/4 works there" in claim(2, 4)
        assert "another pack works there" in claim(1, 1)
    assert claim(1, 1) == "free\n"
