from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from hcpdiff.diffusion.process import Process
from hcpdiff.plugins import PluginSpec, WrapPluginBlock
from hcpdiff.train import checkpoint
from hcpdiff.train.callbacks import Callback
from hcpdiff.train.schedules import linear
from hcpdiff.train.settings import EmaSettings, LayerGroup
from hcpdiff.train.trainer import NonFiniteLossError, Trainer
from tests.train import runs

SGD = partial(torch.optim.SGD, lr=1.0)
EXACT = {"rtol": 0, "atol": 1e-6}  # fp32, of weights of size 0.1: other batch sizes sum in another order


def middle(count: int, generator: Generator) -> Tensor:
    return torch.full((count,), 500.0, dtype=torch.float64)


def mirrored(latents: Tensor, generator: Generator) -> Tensor:
    """Noise that depends on the picture alone, so that any batch draws the same."""
    return latents.flip(-1)


class Weights(Callback):
    """The weights after every step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_step(self, trainer: Trainer, losses: Mapping[str, Tensor], images: int, seconds: float) -> None:
        self.seen.append(runs.tensors(dict(trainer.parameters)))


def after(trainer: Trainer) -> dict[str, Tensor]:
    trainer.fit()
    return runs.tensors(dict(trainer.parameters))


def test_two_runs_of_one_config_are_bit_equal_and_another_seed_is_not(tmp_path: Path) -> None:
    first, second, other = (after(runs.make(tmp_path / name, seed=name == "c")) for name in "abc")
    assert runs.same(first, second)
    assert not runs.same(first, other)


def test_accumulated_batches_train_like_the_big_batch(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 2, "optimizer": SGD, "timesteps": middle, "noise": mirrored}
    big, small = (
        after(runs.make(tmp_path / str(n), data={"main": data}, accumulate=4 // n, **settings))
        for n in (4, 2)
        for data in [runs.pictures(4, batch_size=n, cache_latents="memory")]
    )
    start = runs.tensors(dict(runs.make(tmp_path).parameters))
    assert not runs.same(big, start)
    for name in big:
        torch.testing.assert_close(big[name], small[name], **EXACT)


def test_everything_counts_optimizer_steps(tmp_path: Path) -> None:
    trainer = runs.make(
        tmp_path,
        accumulate=3,
        save_every=2,
        keep_last=9,
        schedule=partial(linear, steps=4),
        ema=EmaSettings(decay=0.5, warmup=False),
        callbacks=[weights := Weights()],
    )
    shadow = runs.tensors(dict(trainer.ema.shadow))  # pyright: ignore[reportOptionalMemberAccess]
    trainer.fit()
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "checkpoints")] == ["step-000002", "step-000004"]
    assert [line["step"] for line in runs.metrics(tmp_path)] == [1, 2, 3, 4]
    assert [line["lr/style"] for line in runs.metrics(tmp_path)] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])
    for seen in weights.seen:
        shadow = {name: 0.5 * shadow[name] + 0.5 * seen[name] for name in shadow}
    assert trainer.ema is not None
    for name, value in runs.tensors(trainer.ema.shadow).items():
        torch.testing.assert_close(value, shadow[name], rtol=0, atol=1e-7)


def test_the_average_starts_short_and_is_the_plain_formula(tmp_path: Path) -> None:
    trainer = runs.make(tmp_path, steps=5, ema=EmaSettings(decay=0.3), callbacks=[weights := Weights()])
    expected = {name: p.detach().double() for name, p in trainer.parameters.items()}
    trainer.fit()
    for step, seen in enumerate(weights.seen, start=1):
        decay = min(0.3, (1 + step) / (10 + step))
        expected = {name: decay * old + (1 - decay) * seen[f"/{name}"].double() for name, old in expected.items()}
    assert trainer.ema is not None
    for name, value in trainer.ema.shadow.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=0, atol=1e-7)  # fp32 against fp64


def test_the_average_is_what_is_exported_and_the_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    from hcpdiff.plugins import weights

    trainer = runs.make(tmp_path, ema=EmaSettings(decay=0.9))
    own = after(trainer)
    with trainer.averaged():
        averages = {name: p.clone() for name, p in trainer.plugins.plugin_state_dict("style").items()}
    assert runs.same(weights.load(tmp_path / "style.safetensors").tensors, averages)
    assert runs.same(own, runs.tensors(dict(trainer.parameters)))
    assert not runs.same(averages, dict(trainer.plugins.plugin_state_dict("style")))


class Spoiled:
    """A loss that is infinite for one picture in one call."""

    def __init__(self, call: int) -> None:
        self.call = call
        self.calls = 0

    def __call__(self, model_pred: Tensor, target: Tensor, timesteps: Tensor, process: Process) -> Tensor:
        self.calls += 1
        error = (model_pred - target) ** 2
        return error * torch.tensor([1.0, float("inf")]).view(2, 1, 1, 1) if self.calls == self.call else error


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_no_number_stops_before_the_step_and_names_the_samples(tmp_path: Path, accumulate: int) -> None:
    class States(Callback):
        def on_step(self, trainer: Trainer, losses: Mapping[str, Tensor], images: int, seconds: float) -> None:
            self.last = runs.tensors(trainer.state())

    data = {"main": runs.pictures(4)}
    trainer = runs.make(
        tmp_path,
        data=data,
        loss=Spoiled(2 * accumulate + 1),
        accumulate=accumulate,
        callbacks=[states := States()],
        ema=EmaSettings(),
    )
    with pytest.raises(NonFiniteLossError, match=r"step 3: the loss of data\.main is not finite for picture-\d;"):
        trainer.fit()
    assert trainer.step == 2
    assert runs.same(states.last, runs.tensors(trainer.state()))
    assert checkpoint.checkpoints(tmp_path / "checkpoints") == []
    assert [line["step"] for line in runs.metrics(tmp_path)] == [1, 2]


def test_weights_that_are_no_numbers_are_never_saved(tmp_path: Path) -> None:
    class Spoil(Callback):
        def on_save(self, trainer: Trainer) -> None:
            with torch.no_grad():
                next(iter(trainer.parameters.values())).fill_(float("nan"))

    with pytest.raises(NonFiniteLossError, match="step 1: 1 of 18 trained weights are not finite"):
        runs.make(tmp_path, steps=1, callbacks=[Spoil()]).fit()
    assert checkpoint.checkpoints(tmp_path / "checkpoints") == []


def test_a_lora_trains_and_the_base_stays_bit_frozen(tmp_path: Path) -> None:
    trainer = runs.make(tmp_path, plugins={"style": runs.lora(), "text": runs.lora(on="text_encoders.clip_l")})
    base, start = runs.tensors(trainer.family.state_dict()), runs.tensors(dict(trainer.parameters))
    trained = after(trainer)
    assert runs.same(base, runs.tensors(trainer.family.state_dict()))
    changed = [name for name in trained if not torch.equal(trained[name], start[name])]
    assert {name for name in trained if "lora_B" in name} <= set(changed)
    assert any("text" in name for name in changed)


@pytest.mark.parametrize("on", ["denoiser", "text_encoders", "vae"])
def test_only_the_layers_that_finetune_names_train(tmp_path: Path, on: str) -> None:
    layers = {"denoiser": r"transformer_blocks.0.attn.to_q", "text_encoders": r"re:clip_l.*fc1", "vae": r"re:.*conv_in"}
    settings: dict[str, Any] = {} if on != "vae" else {"timesteps": middle}
    trainer = runs.make(tmp_path, finetune=[LayerGroup(on=on, layers=[layers[on]])], steps=2, **settings)
    before = runs.tensors(trainer.family.state_dict())
    trainer.fit()
    now = runs.tensors(trainer.family.state_dict())
    changed = {name for name in now if not torch.equal(now[name], before[name])}
    named = {f"/{name.removeprefix('family.')}" for name in trainer.parameters}
    assert changed
    assert changed <= named
    assert (tmp_path / "model" / "model_index.json").is_file()


def test_every_learning_rate_and_every_optimizer_setting_arrives(tmp_path: Path) -> None:
    finetune = [
        LayerGroup(layers=["re:transformer_blocks.*"], lr=1e-3),
        LayerGroup(layers=[r"re:transformer_blocks\.1\..*"]),
        LayerGroup(layers=["re:.*to_q"], lr=3e-3),
    ]
    plugins = {"style": runs.lora(lr=5e-3), "more": runs.lora(lr=None), "frozen": runs.lora(lr=None, train=False)}
    optimizer = partial(runs.adamw, lr=7e-3, betas=(0.8, 0.95), weight_decay=0.2, eps=1e-5)
    trainer = runs.make(tmp_path, finetune=finetune, plugins=plugins, optimizer=optimizer)
    groups = trainer.optimizer.param_groups
    rates = {"finetune[0]": 1e-3, "finetune[1]": 7e-3, "finetune[2]": 3e-3, "style": 5e-3, "more": 7e-3}
    assert {group["name"]: group["lr"] for group in groups} == rates
    for group in groups:
        assert (group["betas"], group["weight_decay"], group["eps"]) == ((0.8, 0.95), 0.2, 1e-5)
    denoiser = trainer.family.get_submodule("denoiser")
    of = {id(p): group["name"] for group in groups for p in group["params"]}
    assert of[id(denoiser.get_parameter("transformer_blocks.0.attn.to_k.weight"))] == "finetune[0]"
    assert of[id(denoiser.get_parameter("transformer_blocks.1.attn.to_k.weight"))] == "finetune[1]"
    assert of[id(denoiser.get_parameter("transformer_blocks.1.attn.to_q.weight"))] == "finetune[2]"
    assert len(of) == sum(len(group["params"]) for group in groups) == len(trainer.parameters)


def test_a_schedule_scales_every_group(tmp_path: Path) -> None:
    plugins = {"style": runs.lora(lr=4e-3), "more": runs.lora(lr=None)}
    runs.make(tmp_path, plugins=plugins, schedule=partial(linear, steps=4), steps=3).fit()
    lines = runs.metrics(tmp_path)
    assert [line["lr/style"] for line in lines] == pytest.approx([4e-3, 3e-3, 2e-3])
    assert [line["lr/more"] for line in lines] == pytest.approx([1e-3, 7.5e-4, 5e-4])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": partial(torch.optim.LBFGS, lr=0.1)}, r"train\.optimizer: LBFGS"),
        ({"schedule": torch.optim.lr_scheduler.ReduceLROnPlateau}, r"train\.schedule: ReduceLROnPlateau"),
    ],
)
def test_what_wants_another_loop_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        runs.make(tmp_path, **settings)


class Scaled(WrapPluginBlock):
    """The layer's output times a learned number."""

    def __init__(self, host: nn.Module) -> None:
        super().__init__(host)
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.host(x) * self.factor


def test_a_wrap_trains_beside_a_finetuned_host(tmp_path: Path) -> None:
    spec = PluginSpec(Scaled, layers=["transformer_blocks.0.attn.to_q"], lr=1e-2)
    trainer = runs.make(tmp_path, plugins={"wrap": spec}, finetune=[LayerGroup(layers=[""], lr=1e-3)], steps=1)
    names = {group["name"]: len(group["params"]) for group in trainer.optimizer.param_groups}
    assert names["wrap"] == 1
    before = runs.tensors(dict(trainer.parameters))
    now = after(trainer)
    assert sum(name.endswith(".factor") and not torch.equal(now[name], before[name]) for name in now) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"plugins": {}}, "nothing to train: give the config a `plugins`, a `words` or a `finetune` section"),
        ({"plugins": {"style": runs.lora(lr=None, train=False)}}, "nothing to train"),
        ({"finetune": [LayerGroup(layers=["norm_out"])] * 2}, r"finetune\[0\]: trains nothing; later entries name all"),
        ({"finetune": [LayerGroup(layers=[""], on="unet")]}, r"finetune\[0\]\.on: 'unet' is no part of SD3; its parts"),
        ({"finetune": [LayerGroup(layers=["pre_hook:norm_out"])]}, r"finetune\[0\]\.layers\[0\].*does not fit here"),
        ({"precision": "fp16"}, "train.precision: fp16 needs a GPU; use bf16 or fp32"),
        ({"guidance": 1.0}, "guidance: at 1 the negative prompt counts for nothing"),
    ],
)
def test_a_run_that_cannot_do_what_it_says_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        runs.make(tmp_path, **settings)


def test_weights_too_coarse_for_small_steps_are_not_trained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"finetune\[0\]: its weights are bfloat16, in which small steps are lost"):
        runs.make(tmp_path, model=runs.family().bfloat16(), finetune=[LayerGroup(layers=[""])])


@pytest.mark.parametrize(
    ("settings", "cache", "message"),
    [
        ({"finetune": [LayerGroup(on="vae", layers=[""])]}, "cache_latents", "this run trains the VAE"),
        ({"finetune": [LayerGroup(on="text_encoders", layers=[""])]}, "cache_text", "this run trains a text encoder"),
        ({"plugins": {"a": runs.lora(on="text_encoders.clip_l")}}, "cache_text", "this run trains a text encoder"),
        (
            {"plugins": {"a": runs.lora(), "b": runs.lora(on="text_encoders.clip_l", lr=None, train=False)}},
            "cache_text",
            "a plugin works on a text encoder",
        ),
    ],
)
def test_a_cache_of_what_changes_is_refused(tmp_path: Path, settings: dict[str, Any], cache: str, message: str) -> None:
    trainer = runs.make(tmp_path, data={"main": runs.pictures(**{cache: "memory"})}, **settings)
    with pytest.raises(ValueError, match=rf"data\.main\.{cache}: {message}.*set it to false"):
        trainer.fit()


def test_several_datasets_add_their_gradients_by_their_loss_weights(tmp_path: Path) -> None:
    weights = {"a": 2.0, "b": 0.5}
    start = runs.tensors(dict(runs.make(tmp_path).parameters))

    def update(names: str, folder: str) -> dict[str, Tensor]:
        data = {n: runs.pictures(seed=ord(n), loss_weight=weights[n] if len(names) > 1 else 1.0) for n in names}
        plugins, sgd = {"style": runs.lora(lr=None)}, partial(SGD, lr=0.1)
        trainer = runs.make(tmp_path / folder, data=data, plugins=plugins, steps=1, optimizer=sgd, max_grad_norm=None)
        now = after(trainer)
        return {name: now[name] - start[name] for name in now}

    both, a, b = update("ab", "both"), update("a", "a"), update("b", "b")
    assert any(value.abs().max() > 1e-3 for value in both.values())
    for name in both:
        torch.testing.assert_close(both[name], 2.0 * a[name] + 0.5 * b[name], **EXACT)
    line = runs.metrics(tmp_path / "both")[0]
    assert line["loss"] == pytest.approx(2.0 * line["loss/a"] + 0.5 * line["loss/b"])


def test_mixed_datasets_take_turns(tmp_path: Path) -> None:
    data = {"a": runs.pictures(weight=2.0), "b": runs.pictures(seed=1, loss_weight=3.0)}
    runs.make(tmp_path, data=data, datasets="mix", steps=8).fit()
    lines = runs.metrics(tmp_path)
    assert all(("loss/a" in line) != ("loss/b" in line) for line in lines)
    assert {name for line in lines for name in line if name.startswith("loss/")} == {"loss/a", "loss/b"}
    assert all(line["loss"] == pytest.approx(line.get("loss/a", 3 * line.get("loss/b", 0))) for line in lines)


def test_bf16_trains_close_to_fp32_with_fp32_weights_also_in_one_process(tmp_path: Path) -> None:
    half = runs.make(tmp_path / "half", precision="bf16")
    half.fit()
    full = runs.make(tmp_path / "full")
    full.fit()
    assert {p.dtype for p in half.parameters.values()} == {torch.float32}
    losses = [[line["loss"] for line in runs.metrics(tmp_path / name)] for name in ("half", "full")]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)  # bf16 keeps 8 bits


def test_dropout_works_in_training_and_not_in_previews(tmp_path: Path) -> None:
    from hcpdiff.infer.generation import generate
    from hcpdiff.infer.request import Request

    trainer = runs.make(tmp_path, plugins={"style": runs.lora(dropout=0.5)}, steps=3)
    trainer.fit()
    layers = [m for m in trainer.plugins.modules() if isinstance(m, nn.Dropout)]
    assert layers
    assert all(layer.training for layer in layers)
    request = Request(prompts=["a"], size=(24, 24), steps=2, guidance=1)
    pictures = [generate(trainer.family, request, plugins=trainer.plugins)[0].image.tobytes() for _ in range(2)]
    assert pictures[0] == pictures[1]
    assert all(layer.training for layer in layers)
