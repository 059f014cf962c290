from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from hcpdiff.config import load as load_config
from hcpdiff.infer.generation import generate
from hcpdiff.infer.request import Request
from hcpdiff.models.sd3.family import SD3
from hcpdiff.plugins import PluginInputs, attach
from hcpdiff.train import cache_commands, idle
from hcpdiff.train.callbacks import Callback
from hcpdiff.train.fingerprints import fingerprint, in_words
from hcpdiff.train.idle import Idle, on_device
from hcpdiff.train.run import make_trainer, train
from hcpdiff.train.settings import LayerGroup, PreviewSettings, TrainSettings
from hcpdiff.train.trainer import Trainer
from tests.train import runs

CONFIG = """
name: test
exp_dir: {folder}/run
model: {{_target_: hcpdiff.models.SD3.from_pretrained, path: hcpdiff/tiny-sd3, t5: false}}
data:
  main:
    source: {{_target_: hcpdiff.data.FolderSource, path: {folder}/images}}
    bucket: {{_target_: hcpdiff.data.FixedBucket, size: 48}}
    batch_size: 2
    cache_latents: disk
    cache_text: disk
    cache_dir: {folder}/cache
plugins:
  style: {{_target_: hcpdiff.plugins.LoRA, layers: ['re:transformer_blocks\\.0\\.attn\\.to_[qk]'], rank: 2, lr: 1e-3}}
train:
  steps: 1
  optimizer: {{_target_: torch.optim.AdamW, lr: 1e-3}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(5):
        picture = Image.new("RGB", (48, 48), (40 * number, 0, 0))
        picture.save(tmp_path / "images" / f"{number}.png")
        (tmp_path / "images" / f"{number}.txt").write_text(f"picture {number}")
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.format(folder=tmp_path), encoding="utf-8")
    return path


def cached(**options: Any) -> dict[str, Any]:
    return {"main": runs.pictures(5, cache_latents="memory", cache_text="memory", **options)}


def make(
    folder: Path,
    data: dict[str, Any] | None = None,
    *,
    finetune: Sequence[LayerGroup] = (),
    discard_unused: bool = True,
    **settings: Any,
) -> Trainer:
    model = runs.family()
    return Trainer(
        model,
        cached() if data is None else data,
        TrainSettings(**({"steps": 2, "optimizer": runs.adamw, "log_every": 1} | settings)),
        plugins=attach(model, {} if finetune else {"style": runs.lora()}, seed=0),
        folder=folder,
        finetune=finetune,
        discard_unused=discard_unused,
    )


def is_meta(trainer: Trainer) -> list[bool]:
    """Of the VAE, the text encoders and the denoiser."""
    parts = ("vae", "text_encoders", "denoiser")
    return [all(p.is_meta for p in trainer.family.get_submodule(part).parameters()) for part in parts]


def test_encoders_leave_memory_once_all_is_cached_and_the_run_is_the_same(tmp_path: Path) -> None:
    lean, plain = (make(tmp_path / str(lean), discard_unused=lean) for lean in (True, False))
    lean.fit()
    plain.fit()
    assert is_meta(lean) == [True, True, False]
    assert is_meta(plain) == [False, False, False]
    assert runs.metrics(lean.folder) == runs.metrics(plain.folder)
    assert (lean.folder / "style.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"cache_text": False}, [True, False, False]),
        ({"cache_latents": False}, [False, True, False]),
    ],
)
def test_only_encoders_that_no_dataset_needs_leave_memory(
    tmp_path: Path, options: dict[str, Any], expected: list[bool]
) -> None:
    half = {"cache_latents": "memory", "cache_text": "memory"} | options
    trainer = make(tmp_path, {"main": runs.pictures(5, **half), "other": cached()["main"]})
    trainer.fit()
    assert is_meta(trainer) == expected


NEEDED: dict[str, dict[str, Any]] = {
    "pictures": {"preview": PreviewSettings(every=2, requests=[Request(prompts=["a"], size=(24, 24), steps=1)])},
    "a callback": {"callbacks": [Callback()]},
    "the model's folder": {"finetune": [LayerGroup(layers=["re:.*to_q"], lr=1e-3)]},
}


@pytest.mark.parametrize("needed", NEEDED)
def test_encoders_that_are_needed_now_and_then_stay(tmp_path: Path, needed: str) -> None:
    trainer = make(tmp_path, **NEEDED[needed])
    trainer.fit()
    assert is_meta(trainer) == [False, False, False]
    assert (tmp_path / "previews" / "step-000002.png").exists() == (needed == "pictures")
    assert (tmp_path / "model" / "vae").exists() == (needed == "the model's folder")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_encoders_wait_on_the_cpu_and_come_to_the_gpu_for_each_call(tmp_path: Path) -> None:
    trainer = make(tmp_path, **NEEDED["pictures"])
    assert next(trainer.family.vae.parameters()).is_cuda
    trainer.fit()
    for part in ("vae", "text_encoders"):
        assert {p.device.type for p in trainer.family.get_submodule(part).parameters()} == {"cpu"}
    assert (tmp_path / "previews" / "step-000002.png").exists()
    assert len(generate(trainer.family, Request(prompts=["a"], size=(24, 24), steps=1))) == 1
    assert next(trainer.family.vae.parameters()).device.type == "cpu"


def test_encoders_come_to_the_device_for_each_call_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    family, visits = runs.family(), []

    @contextmanager
    def visit(module: nn.Module, device: torch.device) -> Iterator[None]:
        visits.append((module, device.type))
        yield

    monkeypatch.setattr(idle, "on_device", visit)
    expected = generate(family, Request(prompts=["a"], size=(24, 24), steps=1))[0].image.tobytes()
    Idle(family, torch.device("cuda"), keep=True).release(["vae", "text_encoders"])
    assert generate(family, Request(prompts=["a"], size=(24, 24), steps=1))[0].image.tobytes() == expected
    assert visits == [(family.text_encoders, "cuda"), (family.vae, "cuda")]


def test_what_comes_to_the_device_goes_back_as_it_was() -> None:
    module = torch.nn.BatchNorm1d(3)
    before = [tensor.data_ptr() for tensor in module.state_dict().values()]
    with pytest.raises(RuntimeError, match="stop"), on_device(module, torch.device("cpu")):
        raise RuntimeError("stop")
    assert [tensor.data_ptr() for tensor in module.state_dict().values()] == before


def test_releasing_twice_is_releasing_once() -> None:
    family = runs.family()
    parts = Idle(family, torch.device("cpu"), keep=False)
    parts.release(["vae"])
    parts.release(["vae", "text_encoders"])
    assert parts.parts == ["vae", "text_encoders"]


def test_a_fingerprint_tells_weights_dtypes_and_settings_apart() -> None:
    first, second = runs.family().vae, runs.family().vae
    assert fingerprint(first) == fingerprint(second)
    with torch.no_grad():
        next(second.parameters()).view(-1)[0] += 1e-3
    coarse = runs.family().vae.to(torch.bfloat16)
    scaled = runs.family().vae
    scaled.register_to_config(scaling_factor=0.5)
    assert len({fingerprint(vae) for vae in (first, second, coarse, scaled)}) == 4
    assert in_words(coarse).startswith("AutoencoderKL, ")
    assert in_words(coarse).endswith(" million parameters, bfloat16")


def test_a_cache_is_filled_before_the_run_and_the_run_computes_nothing(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = list(cache_commands.fill(config))
    assert "2 tables, " in lines[0]
    assert lines[1].startswith("  latents/")
    assert "latents by AutoencoderKL, " in lines[1]
    assert "; 5 entries, " in lines[1]
    assert list(cache_commands.stat(config)) == lines

    def fail(*args: object) -> None:
        raise AssertionError("something was encoded")

    monkeypatch.setattr(SD3, "latent_distribution", fail)
    monkeypatch.setattr(SD3, "encode_prompt", fail)
    train(config)


def test_verify_says_what_is_damaged_and_repairs_it(config: Path) -> None:
    list(cache_commands.fill(config))
    lines, sound = cache_commands.verify(config)
    assert sound
    assert lines[-1].endswith("cache: all sound")
    shard = next((config.parent / "cache" / "latents").rglob("[0-9a-f]*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    lines, sound = cache_commands.verify(config)
    assert not sound
    assert lines[0] == f"{shard}: damaged"
    assert cache_commands.verify(config, repair=True)[1]
    assert cache_commands.verify(config)[1]


def test_clean_deletes_what_the_configs_do_not_use(config: Path) -> None:
    list(cache_commands.fill(config))
    list(cache_commands.fill(config, ["data.main.bucket.size=32"]))
    assert "; 10 entries, " in next(line for line in cache_commands.stat(config) if "latents/" in line)
    list(cache_commands.clean([config], dry_run=True))
    assert "; 10 entries, " in next(line for line in cache_commands.stat(config) if "latents/" in line)
    lines = list(cache_commands.clean([config]))
    assert any("entries that none of the configs uses, 5 entries" in line for line in lines)
    assert "; 5 entries, " in next(line for line in cache_commands.stat(config) if "latents/" in line)
    assert list(cache_commands.clean([config], days=30))[-1].endswith("0 bytes freed")


def test_a_config_without_a_cache_on_disk_is_told_so(config: Path) -> None:
    tree = yaml.safe_load(config.read_text())
    tree["data"]["main"] |= {"cache_latents": "memory", "cache_text": False}
    config.write_text(yaml.safe_dump(tree))
    with pytest.raises(ValueError, match=r"no dataset keeps a cache on disk; set data\.NAME\.cache_latents"):
        list(cache_commands.fill(config))


@pytest.mark.parametrize("encoded", [(), ("control_image",)], ids=["images", "latents"])
def test_a_controlnet_trains_from_the_cache_and_keeps_the_vae_only_if_it_encodes(
    config: Path, tmp_path: Path, encoded: tuple[str, ...]
) -> None:
    changes = [
        f"+data.main.source.control_images={tmp_path / 'images'}",
        f"+data.main.encoded_inputs=[{','.join(encoded)}]",
        "~plugins.style",
        "+plugins.control={_target_: hcpdiff.plugins.ControlNet, num_layers: 1, lr: 1e-3}",
    ]
    family_before = SD3.from_pretrained("hcpdiff/tiny-sd3")
    trainer = make_trainer(load_config(config, changes), tmp_path / "run")
    trainer.fit()
    assert is_meta(trainer) == [bool(encoded), True, False]
    batch = trainer.datasets["main"].batch(0)
    plugin = trainer.plugins.attachments[0].plugin
    given = plugin.prepare(PluginInputs(batch.inputs), family_before).tensors["control_image"]
    picture = torch.stack([trainer.datasets["main"].samples.sample(0, n).image for n in range(5)])
    rows = [int(key[0]) for key in batch.keys]
    wanted = plugin._encode((picture[rows] + 1) / 2, family_before)
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)  # 8-bit images, encoded in other batches


def test_an_entry_is_the_same_whatever_it_was_encoded_with(config: Path, tmp_path: Path) -> None:
    list(cache_commands.fill(config, [f"data.main.cache_dir={tmp_path / 'whole'}"]))
    images = [tmp_path / "images" / f"{number}{suffix}" for number in (2, 3, 4) for suffix in (".png", ".txt")]
    contents = {path: path.read_bytes() for path in images}
    for path in images:
        path.unlink()
    list(cache_commands.fill(config))
    for path, content in contents.items():
        path.write_bytes(content)
    list(cache_commands.fill(config))
    assert rows(tmp_path / "cache") == rows(tmp_path / "whole")
    assert len(rows(tmp_path / "cache")) == 10


def rows(folder: Path) -> dict[bytes, list[bytes]]:
    """Every row of a cache by its key, all its bytes."""
    found = {}
    for path in folder.rglob("[0-9a-f]*.safetensors"):
        content = load_file(path)
        for number, key in enumerate(content.pop("__keys__")):
            found[key.numpy().tobytes()] = [content[name][number].numpy().tobytes() for name in sorted(content)]
    return found
