"""Whole models in one file: written from tiny models of every family, read back, and by diffusers too."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hcpdiff.formats import single_file
from hcpdiff.formats.single_file.inverse import table_of
from hcpdiff.formats.single_file.layouts import recognise
from hcpdiff.formats.tensor_files import TensorFile
from hcpdiff.models.flux.family import Flux
from hcpdiff.models.sd import StableDiffusion
from hcpdiff.models.sd3.family import SD3
from hcpdiff.models.sdxl import SDXL
from tests.models.tiny import randomise, tiny_pipeline
from tests.models.tiny_flux import tiny_flux_pipeline
from tests.models.tiny_unet import tiny_sd, tiny_sdxl


def tiny_sd2() -> Any:
    """With the text encoder of SD 2, which is told by its activation."""
    from transformers import CLIPTextConfig, CLIPTextModel

    pipeline = tiny_sd("v_prediction")
    config = CLIPTextConfig(**pipeline.text_encoder.config.to_dict() | {"hidden_act": "gelu"})
    pipeline.text_encoder = CLIPTextModel(config).eval()
    randomise(pipeline.text_encoder)
    return pipeline


MODELS: dict[str, tuple[Any, Callable[[], Any]]] = {
    "sd1": (StableDiffusion, tiny_sd),
    "sd2": (StableDiffusion, tiny_sd2),
    "sdxl": (SDXL, tiny_sdxl),
    "sd3-medium": (SD3, lambda: tiny_pipeline(t5=True)),
    "sd3.5-medium": (SD3, lambda: tiny_pipeline(shape="sd3.5-medium")),
    "sd3.5-large": (SD3, lambda: tiny_pipeline(shape="sd3.5-large")),
    "flux-dev": (Flux, lambda: tiny_flux_pipeline("dev")),
    "flux-schnell": (Flux, lambda: tiny_flux_pipeline("schnell")),
}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """{name}: a folder with `folder/`, `model.safetensors` and `model/`, the folder without weights."""
    known: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in known:
            root = known[name] = tmp_path_factory.mktemp("single")
            kind, pipeline = MODELS[name]
            pipeline().save_pretrained(root / "saved")
            family = kind.from_pretrained(root / "saved")
            family.save_pretrained(root / "folder")
            single_file.save(family, root / "model.safetensors")
            shutil.copytree(root / "folder", root / "model", ignore=shutil.ignore_patterns("*.safetensors"))
        return known[name]

    return make


def state(family: Any) -> dict[str, Tensor]:
    return family.state_dict()


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key]) or one[key].dtype != other[key].dtype] == []


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_from_its_single_file_bit_by_bit(name: str, made: Callable[[str], Path]) -> None:
    root, kind = made(name), MODELS[name][0]
    original, loaded = kind.from_pretrained(root / "folder"), kind.from_pretrained(root / "model.safetensors")
    assert single_file.Model(root / "model.safetensors").layout.name == name
    assert_same(state(loaded), state(original))
    assert loaded.scheduler == original.scheduler
    assert not any(module.training for module in loaded.modules())
    with torch.no_grad():
        ours, theirs = loaded.encode_prompt(["ab c"]), original.encode_prompt(["ab c"])
    assert torch.equal(ours.tokens, theirs.tokens)


@pytest.mark.parametrize("name", MODELS)
def test_its_tensors_are_found_without_a_model(name: str, made: Callable[[str], Path]) -> None:
    root = made(name)
    stored = TensorFile(root / "model.safetensors")
    shapes = {key: entry.shape for key, entry in stored.entries.items()}
    for folder, part in recognise(shapes, "").parts.items():
        keys = part.keys(shapes)
        table = table_of(part, {key: shapes[full] for key, full in keys.items()})
        assert {source.key for source in table.values()} == keys.keys()
        files = (root / "folder" / folder).glob("*.safetensors") if keys else ()
        for key, tensor in ((key, tensor) for file in files for key, tensor in load_file(file).items()):
            source = table[key] if key in table else table[f"text_model.{key}"]
            assert torch.equal(source.take(stored.get(keys[source.key])), tensor)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_loaded_is_written_as_the_same_file_again(
    name: str, made: Callable[[str], Path], tmp_path: Path
) -> None:
    root, kind = made(name), MODELS[name][0]
    single_file.save(kind.from_pretrained(root / "model.safetensors"), tmp_path / "again.safetensors")
    assert_same(load_file(tmp_path / "again.safetensors"), load_file(root / "model.safetensors"))


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3-medium", "flux-dev"])
def test_dtypes_are_those_asked_for(name: str, made: Callable[[str], Path]) -> None:
    root, kind = made(name), MODELS[name][0]
    arguments = {"dtype": "bfloat16", "text_dtype": "float16"}
    loaded = kind.from_pretrained(root / "model.safetensors", **arguments)
    assert_same(state(loaded), state(kind.from_pretrained(root / "folder", **arguments)))


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3.5-medium", "flux-schnell"])
def test_skeleton_and_latents_need_no_weights(name: str, made: Callable[[str], Path]) -> None:
    root, kind = made(name), MODELS[name][0]
    file = root / "model.safetensors"
    for part in ("denoiser", "vae", "text_encoders"):
        ours, theirs = kind.skeleton(part, file).state_dict(), kind.skeleton(part, root / "folder").state_dict()
        assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert kind.latent_spec(file) == kind.latent_spec(root / "folder")


def test_weights_are_copied_out_of_the_file(made: Callable[[str], Path], tmp_path: Path) -> None:
    root = made("sd1")
    shutil.copytree(root / "model", tmp_path / "model")
    shutil.copy(root / "model.safetensors", tmp_path / "model.safetensors")
    loaded = StableDiffusion.from_pretrained(tmp_path / "model.safetensors")
    before = {key: tensor.clone() for key, tensor in state(loaded).items()}
    single_file.save(loaded, tmp_path / "model.safetensors", dtype=torch.float16)
    assert_same(state(loaded), before)
    written = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float16}


@pytest.mark.parametrize("legacy", [False, True])
def test_a_ckpt_is_read_as_plain_tensors(made: Callable[[str], Path], tmp_path: Path, legacy: bool) -> None:
    root = made("sd1")
    shutil.copytree(root / "model", tmp_path / "model")
    content = {"state_dict": load_file(root / "model.safetensors"), "global_step": 7}
    torch.save(content, tmp_path / "model.ckpt", _use_new_zipfile_serialization=not legacy)
    loaded = StableDiffusion.from_pretrained(tmp_path / "model.ckpt")
    assert_same(state(loaded), state(StableDiffusion.from_pretrained(root / "folder")))


@pytest.mark.parametrize("length", [0, 30, 9000])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_ckpt_that_is_cut_off_is_named(tmp_path: Path, legacy: bool, length: int) -> None:
    file = tmp_path / "model.ckpt"
    torch.save({"a": torch.zeros(5000)}, file, _use_new_zipfile_serialization=not legacy)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ValueError, match=rf"model\.ckpt: no plain tensors \({length} bytes"):
        single_file.Model(file)


def test_a_ckpt_with_objects_is_never_unpickled(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "callback": Boom()}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"model\.ckpt: no plain tensors .*use the model's safetensors file"):
        StableDiffusion.from_pretrained(tmp_path / "model.ckpt")
    assert not Boom.ran


class Boom:
    """Says so if it is unpickled."""

    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (_boom, ())


def _boom() -> Boom:
    Boom.ran = True
    return Boom()


def test_parts_that_the_file_lacks_are_read_from_the_folder_of_configs(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    root = made("flux-dev")
    whole = load_file(root / "model.safetensors")
    prefix = "model.diffusion_model."
    bare = {key.removeprefix(prefix): tensor for key, tensor in whole.items() if key.startswith(prefix)}
    save_file(bare, tmp_path / "flux.safetensors")
    files = Flux._files(tmp_path / "flux.safetensors", revision=None)
    with pytest.raises(FileNotFoundError, match=r"no vae in this file, whose keys would start with vae\.; set configs"):
        files.read("vae", torch.float32)
    shutil.copytree(root / "folder", tmp_path / "flux")
    assert_same(
        state(Flux.from_pretrained(tmp_path / "flux.safetensors")), state(Flux.from_pretrained(root / "folder"))
    )


def test_sd3_without_a_t5_does_without_one(made: Callable[[str], Path], tmp_path: Path) -> None:
    root = made("sd3-medium")
    tensors = {k: v for k, v in load_file(root / "model.safetensors").items() if ".t5xxl." not in k}
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copytree(root / "model", tmp_path / "model")
    assert list(SD3.from_pretrained(tmp_path / "model.safetensors").text_encoders) == ["clip_l", "clip_g"]


def test_without_a_projection_in_the_file_the_first_clip_of_sd3_does_not_project(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    root = made("sd3-medium")
    tensors = load_file(root / "model.safetensors")
    del tensors["text_encoders.clip_l.transformer.text_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copytree(root / "model", tmp_path / "model")
    loaded: Any = SD3.from_pretrained(tmp_path / "model.safetensors")
    assert torch.equal(loaded.text_encoders["clip_l"].text_projection.weight, torch.eye(8))


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3.5-large", "flux-dev"])
def test_configs_may_lie_elsewhere_and_are_of_single_files_only(
    name: str, made: Callable[[str], Path], tmp_path: Path
) -> None:
    root, kind = made(name), MODELS[name][0]
    file = tmp_path / "other.safetensors"
    shutil.copy(root / "model.safetensors", file)
    assert_same(state(kind.from_pretrained(file, configs=root / "model")), state(kind.from_pretrained(root / "folder")))
    assert kind.latent_spec(file, configs=root / "model") == kind.latent_spec(root / "folder")
    with pytest.raises(ValueError, match="configs: only a single file takes them"):
        kind.from_pretrained(root / "folder", configs=root / "model")


def test_a_revision_needs_a_repository(made: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match=r"revision: .* is a file and has none"):
        StableDiffusion.from_pretrained(made("sd1") / "model.safetensors", revision="main")


def test_parts_may_start_from_scratch(made: Callable[[str], Path]) -> None:
    root, arguments = made("sd1"), {"from_scratch": ["denoiser"], "seed": 3}
    loaded = StableDiffusion.from_pretrained(root / "model.safetensors", **arguments)
    assert_same(state(loaded), state(StableDiffusion.from_pretrained(root / "folder", **arguments)))


@pytest.mark.parametrize(("width", "kind"), [(768, "sd1"), (1024, "sd2"), (2048, "sdxl")])
def test_a_unet_alone_is_recognised_by_the_width_of_its_text(tmp_path: Path, width: int, kind: str) -> None:
    names = {"input_blocks.0.0.weight": (4,), "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (2, width)}
    save_file({f"model.diffusion_model.{k}": torch.zeros(v) for k, v in names.items()}, tmp_path / "a.safetensors")
    assert single_file.Model(tmp_path / "a.safetensors").layout.name == kind


def test_a_unet_of_another_width_and_the_refiner_are_named(tmp_path: Path) -> None:
    tensors = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4),
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(2, 640),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"text of width \[640\], without text encoders; expected 768, 1024, 2048"):
        single_file.Model(tmp_path / "a.safetensors")
    save_file({**tensors, "conditioner.embedders.0.model.ln_final.bias": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="this is the refiner of Stable Diffusion XL"):
        single_file.Model(tmp_path / "a.safetensors")


def test_published_extras_beside_the_weights_are_passed_over(made: Callable[[str], Path], tmp_path: Path) -> None:
    tensors = load_file(made("sd2") / "model.safetensors")
    for key in (
        *("cond_stage_model.model.logit_scale", "cond_stage_model.model.text_projection", "model_ema.decay", "betas"),
        *("cond_stage_model.model.transformer.resblocks.23.ln_1.weight", "first_stage_model.loss.logvar"),
    ):
        tensors[key] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copytree(made("sd2") / "model", tmp_path / "model")
    loaded = StableDiffusion.from_pretrained(tmp_path / "model.safetensors")
    assert_same(state(loaded), state(StableDiffusion.from_pretrained(made("sd2") / "folder")))


def test_missing_tokenizers_are_an_error_that_says_where_to_put_them(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copy(made("sd1") / "model.safetensors", tmp_path / "alone.safetensors")
    files = StableDiffusion._files(tmp_path / "alone.safetensors", revision=None)
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizers.*set configs to a folder .* has tokenizer/"):
        files.tokenizer("text_encoders.clip")


def test_sizes_of_another_model_are_named(made: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copy(made("sd1") / "model.safetensors", tmp_path / "alone.safetensors")
    files = StableDiffusion._files(tmp_path / "alone.safetensors", revision=None)
    with pytest.raises(ValueError, match=r"text_encoder is not that of Stable Diffusion 1\.x.* missing "):
        files.read("text_encoders.clip", torch.float32)
    tensors = load_file(tmp_path / "alone.safetensors")
    tensors["model.diffusion_model.out.2.bias"] = torch.zeros(3)
    save_file(tensors, tmp_path / "alone.safetensors")
    shutil.copytree(made("sd1") / "model", tmp_path / "alone")
    with pytest.raises(ValueError, match=r"model\.diffusion_model\.out\.2\.bias has shape \(3,\); expected \(4,\)"):
        StableDiffusion.from_pretrained(tmp_path / "alone.safetensors")


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_missing_and_unknown_tensors_are_named(made: Callable[[str], Path], tmp_path: Path, change: str) -> None:
    tensors = load_file(made("flux-dev") / "model.safetensors")
    if change == "missing":
        del tensors["model.diffusion_model.txt_in.weight"]
    else:  # as files in float8 with scales have them
        tensors["model.diffusion_model.txt_in.scale_weight"] = torch.ones(1)
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copytree(made("flux-dev") / "model", tmp_path / "model")
    with pytest.raises(ValueError, match=rf"transformer is not that of FLUX\.1 dev.* 1 {change} \(.*txt_in\."):
        Flux.from_pretrained(tmp_path / "model.safetensors")


def test_marks_of_v_prediction_are_heeded_and_written(made: Callable[[str], Path], tmp_path: Path) -> None:
    from_folder = SDXL.from_pretrained(made("sdxl") / "folder", prediction="v_prediction", zero_terminal_snr=True)
    single_file.save(from_folder, tmp_path / "xl.safetensors")
    settings = SDXL._files(tmp_path / "xl.safetensors", revision=None).scheduler({"prediction_type": "epsilon"})
    assert settings == {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


def test_stable_diffusion_2_is_taken_for_v_prediction_and_the_log_says_so_unless_it_is_told(
    made: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "model.safetensors"
    shutil.copy(made("sd2") / "model.safetensors", path)
    shutil.copytree(made("sd2") / "model", tmp_path / "model", ignore=shutil.ignore_patterns("scheduler"))
    assert StableDiffusion.from_pretrained(path).process.prediction == "v_prediction"
    assert (
        f"{path}: files of Stable Diffusion 2 do not say what the model predicts; taken as v_prediction" in caplog.text
    )
    assert "set model.prediction: epsilon" in caplog.text
    caplog.clear()
    for told in ("epsilon", "v_prediction"):
        assert StableDiffusion.from_pretrained(path, prediction=told).process.prediction == told
    StableDiffusion.from_pretrained(made("sd2") / "folder")
    assert "do not say" not in caplog.text


def test_wrong_files_are_named(made: Callable[[str], Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((made("sd1") / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"broken\.safetensors: no whole safetensors file .*download it again"):
        StableDiffusion.from_pretrained(broken)
    with pytest.raises(FileNotFoundError, match=r"no file at .*nowhere\.safetensors"):
        StableDiffusion.from_pretrained(tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match=r"this is Stable Diffusion 1\.x; here a StableDiffusionXLPipeline is needed"):
        SDXL.from_pretrained(made("sd1") / "model.safetensors")
    save_file({"lora_unet_a.lora_down.weight": torch.zeros(1)}, broken)
    with pytest.raises(ValueError, match="this is an adapter such as a LoRA"):
        SDXL.from_pretrained(broken)
    save_file({"down_blocks.0.resnets.0.conv1.weight": torch.zeros(1)}, broken)
    with pytest.raises(ValueError, match="weights of one part in diffusers' layout"):
        SDXL.from_pretrained(broken)
    save_file({"a": torch.zeros(1)}, broken)
    with pytest.raises(ValueError, match=r"no known model in 1 tensors \(a, \.\.\.\)"):
        SDXL.from_pretrained(broken)


def test_other_endings_are_not_written(made: Callable[[str], Path], tmp_path: Path) -> None:
    family = StableDiffusion.from_pretrained(made("sd1") / "folder")
    with pytest.raises(ValueError, match=r"a single file is written as \.safetensors"):
        single_file.save(family, tmp_path / "model.ckpt")


class Wrap(torch.nn.Module):
    """As plugins are that stand in the place of a layer."""

    wraps = True

    def __init__(self, host: torch.nn.Module) -> None:
        super().__init__()
        self.host = host


def test_plugins_in_the_place_of_layers_are_not_written_as_if_they_were_layers(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    family: Any = StableDiffusion.from_pretrained(made("sd1") / "folder")
    family.text_encoders["clip"].final_layer_norm = Wrap(family.text_encoders["clip"].final_layer_norm)
    with pytest.raises(ValueError, match=r"text_encoders\.clip: plugins stand in the place of its layers; detach"):
        single_file.save(family, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []
