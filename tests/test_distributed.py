"""Two processes that torchrun starts, on one machine with gloo, beside one process alone."""

from __future__ import annotations

import functools
import operator
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import distributed_job
import pytest
import torch

import onebyone as obo
from onebyone.distributed import World
from onebyone.moments import Moments, RangeMoments

HERE = Path(__file__).parent


def torchrun(job: str, out: Path, processes: int = 2) -> int:
    """Run a job of distributed_job.py; the exit code of torchrun."""
    paths = [str(Path(obo.__file__).parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes),
        "--standalone", str(HERE / "distributed_job.py"), job, str(out),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=240, check=False)
    return done.returncode


def together(job: str, out: Path) -> list[Any]:
    """What each of two processes wrote."""
    assert torchrun(job, out) == 0
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def alone(job: str, out: Path) -> Any:
    """What one process writes."""
    distributed_job.JOBS[job](out)
    return torch.load(out / "0.pt", weights_only=False)


def test_statistics_and_the_plan_are_those_of_one_process(tmp_path: Path) -> None:
    first, second = together("statistics", tmp_path)
    (layers, plan) = alone("statistics", tmp_path)
    assert first[1] == second[1]
    for mine, other in zip(first[1]["layers"], plan["layers"], strict=True):
        for key in ("layer", "form", "ranks", "channels", "macs_after", "params_after"):
            assert mine.get(key) == other.get(key), key
    for key in ("macs_before", "macs_after", "params_before", "params_after"):
        assert first[1]["cost"][key] == plan["cost"][key]
    for name, values in layers.items():
        for part, value in values.items():
            got = first[0][name][part]
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(got, value, rtol=1e-5, atol=1e-6)
            elif value is None or isinstance(value, int):
                assert got == value, part
            else:
                assert got.samples == value.samples
                for mine, one in zip(moments(got), moments(value), strict=True):
                    torch.testing.assert_close(
                        mine.covariance, one.covariance, rtol=1e-5, atol=1e-6
                    )


def moments(found: Moments | RangeMoments) -> list[Moments]:
    return [*found.by_length.values()] if isinstance(found, RangeMoments) else [found]


def test_training_is_that_of_one_process(tmp_path: Path) -> None:
    """The gradients are the mean over the same batch, so the weights are the same within rounding."""
    first, second = together("tuning", tmp_path)
    weights, scores = alone("tuning", tmp_path)
    for name, value in weights.items():
        torch.testing.assert_close(first[0][name], value, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(second[0][name], first[0][name], rtol=0, atol=0)
    for mine, one in zip(first[1], scores, strict=True):
        assert mine.images == one.images == 33
        assert abs(mine.accuracy - one.accuracy) <= 1 / 33 + 1e-9
    assert first[1] == second[1]


def test_slimming_in_steps(tmp_path: Path) -> None:
    (plan, weights, after), second = together("slimming", tmp_path)
    one, _, single = alone("slimming", tmp_path)
    assert second[0] == plan
    assert [(v["form"], v.get("ranks")) for v in plan["layers"]][:2] == [
        (v["form"], v.get("ranks")) for v in one["layers"]
    ][:2]
    assert plan["cost"]["macs_after"] <= 0.4 * plan["cost"]["macs_before"]
    for name, value in weights.items():
        torch.testing.assert_close(second[1][name], value, rtol=0, atol=0)
    assert abs(after.accuracy - single.accuracy) < 0.25


def test_a_lost_process_ends_all_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    assert torchrun("losing", tmp_path) != 0
    told = tmp_path / "error-0.txt"
    if told.exists():  # torchrun may have ended the other process before it noticed by itself
        assert "another process was lost" in told.read_text()
        assert "--resume" in told.read_text()
    from test_recovery import QUICK, labeled, net

    again = obo.fine_tune(
        net(), labeled(96), held_out=labeled(33, 2), recipe=QUICK, epochs=9,
        checkpoint=tmp_path / "c.safetensors", resume=True,
    )  # fmt: skip
    assert again.images == 9 * 96


def test_a_batch_that_cannot_be_shared(tmp_path: Path) -> None:
    assert torchrun("undivided", tmp_path) != 0
    said = next(tmp_path.glob("error-*.txt")).read_text()
    assert "a batch of 15 images cannot be shared by 2 processes" in said
    assert "such as 14" in said


class TestWorld:
    def test_alone(self) -> None:
        world = World.current()
        assert (world.rank, world.size, world.leads) == (0, 1, True)
        tensor = torch.arange(3.0)
        world.add(tensor)
        world.copy(tensor)
        assert tensor.tolist() == [0, 1, 2]
        assert list(world.share("abc")) == [(0, "a"), (1, "b"), (2, "c")]

    def test_shares_are_disjoint_and_whole(self) -> None:
        parts = [dict(World(rank, 3).share("abcdefgh")) for rank in range(3)]
        assert sorted(functools.reduce(operator.iadd, map(list, parts), [])) == list(range(8))

    @pytest.mark.parametrize(
        "text", ["[enforce fail at gloo/x.cc] Connection closed", "NCCL error"]
    )
    def test_lost_processes_are_told(self, text: str) -> None:
        from onebyone.distributed import losses_told
        from onebyone.errors import LostError

        with pytest.raises(LostError, match="another process was lost"), losses_told():
            raise RuntimeError(text)
        with pytest.raises(RuntimeError, match="shape"), losses_told():
            raise RuntimeError("a shape does not fit")
