"""What an exported file says of the run that made it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import hcpdiff
from hcpdiff.cli import main
from hcpdiff.config.stored import header
from hcpdiff.train import provenance
from tests.train import runs
from tests.train.test_run import CONFIG

ABOUT = """
about: {author: me, license: CC0-1.0, tags: [cats, art], trigger_words: [sks, a cat], usage_hint: strength 0.8}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(folder=tmp_path / "run") + ABOUT, encoding="utf-8")
    return path


def test_a_lora_says_for_whom_from_what_and_how_it_was_made(config: Path, tmp_path: Path) -> None:
    hcpdiff.train(config, ["train.schedule={_target_: hcpdiff.train.schedules.constant, warmup: 1}"])
    said = header(tmp_path / "run" / "style.safetensors")
    expected = {
        "hcpdiff.version": hcpdiff.__version__,
        "hcpdiff.base_model": "hcpdiff/tiny-sd3",
        "hcpdiff.step": "2",
        "modelspec.architecture": "stable-diffusion-3-medium/lora",
        "modelspec.author": "me",
        "modelspec.license": "CC0-1.0",
        "modelspec.resolution": "48x48",
        "modelspec.tags": "cats, art",
        "modelspec.title": "style",
        "modelspec.trigger_phrase": "sks, a cat",
        "modelspec.usage_hint": "strength 0.8",
        "ss_base_model_version": "medium",
        "ss_learning_rate": "0.001",
        "ss_lr_scheduler": "constant",
        "ss_lr_warmup_steps": "1",
        "ss_max_train_steps": "2",
        "ss_mixed_precision": "no",
        "ss_network_dim": "2",
        "ss_num_train_images": "5",
        "ss_optimizer": "torch.optim.adamw.AdamW",
        "ss_sd_model_name": "hcpdiff/tiny-sd3",
        "ss_seed": "0",
        "ss_unet_lr": "0.001",
    }
    assert {key: said.get(key) for key in expected} == expected
    assert "ss_text_encoder_lr" not in said
    assert float(said["ss_training_finished_at"]) >= float(said["ss_training_started_at"])
    assert json.loads(said["ss_bucket_info"])["main"]["buckets"]["0"] == {"resolution": [48, 48], "count": 5}
    assert sum(json.loads(said["ss_tag_frequency"])["main"].values()) >= 5
    assert json.loads(said["hcpdiff.data"])["main"]["images"] == 5
    assert len(said["hcpdiff.base_hash"]) == 32


def test_show_tells_of_the_run_and_its_config(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hcpdiff.train(config)
    path = tmp_path / "run" / "style.safetensors"
    capsys.readouterr()
    assert main(["show", "--cfg", str(path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "# hcpdiff.base_model: hcpdiff/tiny-sd3" in shown
    assert "# modelspec.trigger_phrase: sks, a cat" in shown
    assert not any(line.startswith("# hcpdiff.config") for line in shown)
    [rank] = [line for line in shown if line.startswith("plugins.style.rank: 2 ")]
    assert rank.endswith(f"# {path}")
    assert main(["show", "--cfg", str(config)]) == 0
    assert not capsys.readouterr().out.startswith("#")


def test_the_hash_in_a_file_is_that_of_its_tensors(config: Path, tmp_path: Path) -> None:
    hcpdiff.train(config)
    path = tmp_path / "run" / "style.safetensors"
    save_file(load_file(path), tmp_path / "bare.safetensors")  # the same tensors, another header
    content = (tmp_path / "bare.safetensors").read_bytes()
    tensors = content[8 + int.from_bytes(content[:8], "little") :]
    assert header(path)["sshs_model_hash"] == hashlib.sha256(tensors).hexdigest()
    assert header(path)["modelspec.hash_sha256"] == "0x" + hashlib.sha256(tensors).hexdigest()


def test_a_lora_trains_itself_again(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config.write_text(config.read_text().replace(f"exp_dir: {tmp_path / 'run'}", "exp_dir: exps/${name}"))
    hcpdiff.train(config)
    made = "exps/test/style.safetensors"
    assert main(["train", "--cfg", made]) == 2
    assert "there is a run in it already" in capsys.readouterr().err
    assert main(["train", "--cfg", made, "name=again"]) == 0
    first, again = load_file(made), load_file("exps/again/style.safetensors")
    assert runs.same(first, again)
    said = [header(Path(path)) for path in (made, "exps/again/style.safetensors")]
    for key in ("hcpdiff.base_hash", "hcpdiff.data", "sshs_model_hash"):
        assert said[0][key] == said[1][key]


def test_another_caption_is_other_data_and_another_base_is_another_base(config: Path, tmp_path: Path) -> None:
    hcpdiff.train(config)
    hcpdiff.train(
        config,
        [f"exp_dir={tmp_path}/other", "data.main.source.count=4", "model.from_scratch=[denoiser]", "model.seed=1"],
    )
    said = [header(tmp_path / name / "style.safetensors") for name in ("run", "other")]
    for key in ("hcpdiff.base_hash", "hcpdiff.data"):
        assert said[0][key] != said[1][key]


def test_a_word_says_what_it_is_and_which_run_made_it(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    text = CONFIG.format(folder=tmp_path / "run").replace(
        "    cache_text: memory\n", "    template: ['a sketchy {caption}']\n"
    )
    path.write_text(text + "words: {sketchy: {vectors: 2, lr: 1e-2}}\n", encoding="utf-8")
    hcpdiff.train(path, ["~plugins"])
    said = header(tmp_path / "run" / "sketchy.safetensors")
    assert said["modelspec.architecture"] == "stable-diffusion-3-medium/textual-inversion"
    assert said["modelspec.trigger_phrase"] == "sketchy"
    assert main(["check", "--cfg", str(tmp_path / "run" / "sketchy.safetensors")]) == 0


def test_a_single_file_is_known_by_its_hash(tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    base.write_bytes(b"some weights")
    trainer = runs.make(tmp_path / "run")
    trainer.metadata[provenance.BASE] = str(base)
    trainer.fit()
    said = header(tmp_path / "run" / "style.safetensors")
    assert said["ss_sd_model_name"] == "base.safetensors"
    assert said["ss_new_sd_model_hash"] == hashlib.sha256(b"some weights").hexdigest()
