"""`hcpdiff convert`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hcpdiff import cli


def test_a_lora_is_written_in_another_form_and_wrong_ones_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {
        f"{name}.lora_down.weight": torch.randn(4, 768),
        f"{name}.lora_up.weight": torch.randn(320, 4),
        f"{name}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, tmp_path / "cat.safetensors")
    assert cli.main(["convert", str(tmp_path / "cat.safetensors"), "--to", "diffusers"]) == 0
    written = tmp_path / "cat-diffusers.safetensors"
    assert capsys.readouterr().out == f"wrote {written}\n"
    prefix = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    result = load_file(written)
    ours = result[f"{prefix}.lora_B.weight"] @ result[f"{prefix}.lora_A.weight"]
    theirs = tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"] * 2 / 4
    torch.testing.assert_close(ours, theirs)
    assert cli.main(["convert", str(tmp_path / "cat.safetensors"), "--to", "paint"]) == 2
    assert "'paint' is no form; use one of kohya" in capsys.readouterr().err
    assert cli.main(["convert", str(tmp_path / "dog.safetensors"), "--to", "kohya"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
