"""benchmarks/gpu.py on a CPU, and its errors without a device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, make_model
from benchmarks.accelerator.probe import Probe

TINY = (
    "--device cpu --shape tiny --streams 1 3 --prompt 24 --output 8 --prefill 48 --rounds 1 "
    "--buffer-mib 1 --matrix 64"
).split()

ROWS = [
    "decode, 1 stream",
    "decode, 3 streams",
    "decode, 3 streams, temperature 1",
    "prefill, 48 tokens",
]


@pytest.mark.gpu_code
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_row_is_measured_and_compared_with_its_limits(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Runs the whole command with a tiny model: probe, model, both contenders, table, file."""
    out = tmp_path / "gpu.json"
    assert gpu.main([*TINY, "--out", str(out)]) == 0, capfd.readouterr()
    report = json.loads(out.read_text())
    assert report["failures"] == {}
    assert report["device"]["bfloat16_flops_per_second"] > 0
    [measured] = report["rounds"]
    rows = {(row["contender"], row["row"]): row for row in report["rows"]}
    assert list(rows) == [(name, row) for name in ("weir bfloat16", "transformers") for row in ROWS]
    for (contender, name), row in rows.items():
        assert row["rate"] == measured[contender][name] > 0
        assert row["roofline"] == min(row["bandwidth_rate"], row["matrix_rate"])
        assert row["share_of_roofline"] == row["rate"] / row["roofline"]
    for name in ROWS:
        ratio = measured["weir bfloat16"][name] / measured["transformers"][name]
        assert rows["weir bfloat16", name]["ratio"] == ratio
    printed = capfd.readouterr().out
    assert "transformers 5." in printed
    for name in ROWS:
        assert printed.count(f"  {name} ") >= 2


def test_a_failed_contender_does_not_affect_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs once; the report has its error and its empty rows; the exit status is 1."""
    called: list[str] = []

    def call(module: str, *_: str, verbose: bool) -> str:
        called.append(module)
        if module == "accelerator.weir":
            raise gpu.Failed("no such dtype")
        return json.dumps({"figures": dict.fromkeys(ROWS, 2.0), "about": "transformers 5"})

    make_model.make(tmp_path, "tiny")
    probe = Probe("device", "1", "2", 0, 1e9, 2e9, 1e12, None)
    monkeypatch.setattr(gpu, "call", call)
    options = gpu.parse([*TINY, "--rounds", "2", "--out", str(tmp_path / "gpu.json")])
    assert gpu.run(options, tmp_path, probe) == 1
    assert called == ["accelerator.weir", *["accelerator.transformers_batching"] * 2]
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["failures"] == {"weir bfloat16": "no such dtype"}
    assert [row["rate"] for row in report["rows"]] == [None] * 4 + [2.0] * 4
    assert "round 1, weir bfloat16: no such dtype" in capsys.readouterr().out


def test_the_error_of_a_failed_process_is_quoted(tmp_path: Path) -> None:
    """The exception has the last line of the process's output."""
    with pytest.raises(gpu.Failed, match=r"accelerator\.probe ended with 1: ValueError"):
        gpu.call("accelerator.probe", "cpu", verbose=False)


def test_a_folder_without_a_model_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The refusal comes before the device is measured."""
    with pytest.raises(SystemExit) as exit_:
        gpu.main([*TINY, "--model", str(tmp_path)])
    assert exit_.value.code == 2
    assert "config.json is missing" in capsys.readouterr().err


def test_a_missing_device_is_reported_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No process starts and no model is written; the exit status is 2."""

    def call(*_: object, **__: object) -> str:
        raise AssertionError("a process was started")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "call", call)
    with pytest.raises(SystemExit) as exit_:
        gpu.main([])
    assert exit_.value.code == 2
    assert "no CUDA device was found" in capsys.readouterr().err
