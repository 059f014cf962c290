from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hcpdiff.train import checkpoint
from tests.train import processes, runs

TOLERANCE = {"rtol": 0, "atol": 1e-5}  # fp32 and AdamW: means of means round otherwise, tiny gradients step fully


def test_two_processes_train_like_one_and_stop_together(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    together = subprocess.run(
        [*command, "-m", "tests.train.processes", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert together.returncode == 0, together.stderr[-3000:]
    alone = processes.trainer(tmp_path / "alone")
    start = {name: p.detach().clone() for name, p in alone.parameters.items()}
    alone.fit()
    whole = checkpoint.load(tmp_path / "whole" / "checkpoints" / "step-000004")["weights"]
    assert any(not torch.equal(whole[name], start[name]) for name in start)
    for name, p in alone.parameters.items():
        torch.testing.assert_close(whole[name], p.detach(), **TOLERANCE)
    losses = [[line["loss"] for line in runs.metrics(tmp_path / name)] for name in ("whole", "alone")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    stopped = checkpoint.checkpoints(tmp_path / "stopped" / "checkpoints")
    assert [path.name for path in stopped] == ["step-000002"]
