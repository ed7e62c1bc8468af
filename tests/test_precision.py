"""What auto stands for, and the warning about a precision that the device only imitates."""

import logging

import pytest
import torch

from sat_ssvae.comparison.settings import CompareConfig
from sat_ssvae.config import load_config, packaged
from sat_ssvae.engine.precision import autocast, computes_bfloat16, resolved, tell_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def processor(monkeypatch):
    """Pretend to be a processor with the instructions that are named."""

    def pretend(*names):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True))

    return pretend


@pytest.mark.parametrize(
    ("names", "precision"),
    [
        (["avx2"], "float32"),
        (["avx2", "avx512_f", "avx512_bw"], "float32"),
        (["avx512_f", "avx512_bf16"], "bfloat16"),
        (["amx_bf16"], "bfloat16"),
        (["neon"], "float32"),
        (["neon", "bf16"], "bfloat16"),
    ],
)
def test_auto_follows_the_processors_instructions(processor, names, precision):
    processor(*names)
    assert resolved("auto", CPU) == precision
    with autocast(CPU, "auto"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == getattr(torch, precision)


@pytest.mark.parametrize("native", [True, False])
def test_auto_on_a_gpu_does_not_count_imitated_bfloat16(monkeypatch, native):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert resolved("auto", CUDA) == ("bfloat16" if native else "float32")


def test_a_precision_that_was_chosen_stays(processor):
    processor("avx2")
    assert [resolved(name, CPU) for name in ("float32", "bfloat16", "float16")] == ["float32", "bfloat16", "float16"]


def test_imitated_bfloat16_is_warned_of(processor, caplog):
    caplog.set_level(logging.INFO)
    processor("avx2")
    tell_precision("bfloat16", CPU)
    tell_precision("auto", CPU)
    tell_precision("float32", CPU)
    processor("avx512_bf16")
    tell_precision("bfloat16", CPU)
    assert [(record.levelname, record.message.partition(" ")[0]) for record in caplog.records] == [
        ("WARNING", "this"),
        ("INFO", "computing"),
    ]
    assert "10 times" in caplog.messages[0] and caplog.messages[1] == "computing in float32"


def test_a_comparison_settles_on_one_precision_for_all_arms():
    settings = {"precision": "auto"}
    arms = {
        "a": {"settings": settings, "stages": [settings, {"max_steps": 2}]},
        "b": {"settings": {"precision": "float32"}},
    }
    config = load_config(CompareConfig, packaged("compare_default.yaml"), [], replace={"arms": arms})
    here = "bfloat16" if computes_bfloat16(CPU) else "float32"
    settled = config.settled(CPU)
    assert settled.vae["precision"] == settled.transformer.precision == here
    assert settled.arms["a"].settings == {"precision": here} and settled.arms["b"].settings == {"precision": "float32"}
    assert settled.arms["a"].stages == ({"precision": here}, {"max_steps": 2})
    assert settled.settled(CPU) == settled and settled.stages == config.stages and settled.data == config.data
