from __future__ import annotations

import re

import pytest

from hcpdiff.formats import dit_names, names
from tests.formats import full_size

CONV = r"\.(?:conv1|conv2|conv_shortcut|time_emb_proj)$|samplers\.0\.conv$"
UNET = r"^denoiser\..*\.attentions\."
CLIP = r"^text_encoders\.clip.*\.(?:[qkv]_proj|out_proj|fc[12])$"
T5 = r"^text_encoders\.t5\.encoder\..*\.(?:SelfAttention\.[qkvo]|wi_[01]|wo)$"
DIT = r"^denoiser\.(?:single_)?transformer_blocks\."


@pytest.mark.parametrize(
    ("model", "patterns", "count"),
    [
        ("sd", [UNET, CLIP], 264),
        ("sd", [UNET, CLIP, CONV], 350),
        ("sdxl", [UNET, CLIP], 986),
        ("sdxl", [UNET, CLIP, CONV], 1052),
        ("sd3", [DIT], 237),
        ("sd3.5", [DIT], 263),
        ("flux", [DIT], 304),
        ("sd3", [DIT, CLIP, T5], 669),
        ("flux", [DIT, CLIP, T5], 544),
        ("zimage", [r"^denoiser\.layers\.\d+\.(?:attention|feed_forward)\."], 30 * 7),
        ("qwen_image", [r"^denoiser\.transformer_blocks\.\d+\.(?:attn|img_mlp|txt_mlp)\."], 60 * 12),
    ],
)
def test_kohyas_files_have_as_many_modules_as_the_real_ones(model: str, patterns: list[str], count: int) -> None:
    arch = names.architecture(model.split(".")[0])
    chosen = [layer for layer in full_size.layers(model) if any(re.search(p, layer) for p in patterns)]
    modules = {known[0] for layer in chosen if (known := names.to_kohya(arch, layer))}
    assert len(modules) == count


@pytest.mark.parametrize("model", ["sd", "sdxl", "sd3", "sd3.5", "flux", "zimage", "qwen_image"])
def test_every_layer_of_a_model_comes_back_from_both_namings(model: str) -> None:
    arch = names.architecture(model.split(".")[0])
    layers = full_size.layers(model)
    for layer in layers:
        kohya, diffusers = names.to_kohya(arch, layer), names.to_diffusers(arch, layer)
        assert kohya is not None, layer
        assert diffusers is not None, layer
        found = names.find(arch, kohya[0])
        assert found is not None, kohya[0]
        assert found.layers == kohya[1].layers
        assert names.canonical(layer) in found.layers
        again = names.find(arch, diffusers)
        assert again is not None, diffusers
        assert again.layers == (names.canonical(layer),)
        assert names.live(again.layers[0], layers.__contains__) == layer


@pytest.mark.parametrize(("model", "fused"), [("pixart", 28 * 5), ("zimage", 34 * 3)])
def test_every_layer_comes_back_from_the_names_of_the_original_code(model: str, fused: int) -> None:
    arch = names.architecture(model)
    layers, parts = full_size.layers(model), 0
    for layer in layers:
        diffusers = names.to_diffusers(arch, layer)
        assert diffusers is not None, layer
        again = names.find(arch, diffusers)
        assert again is not None, diffusers
        assert again.layers == (layer,)
        original = dit_names.to_original(arch.table or {}, layer.removeprefix("denoiser."))
        name = original.name if original else layer.removeprefix("denoiser.")
        for module in (f"diffusion_model.{name}", f"lora_unet_{name.replace('.', '_')}"):
            found = names.find(arch, module)
            assert found is not None, module
            assert layer in found.layers
        parts += bool(original and original.fused)
    assert parts == fused


@pytest.mark.parametrize(
    ("family", "layer", "name"),
    [
        (
            "sd",
            "denoiser.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
        ),
        (
            "sd",
            "text_encoders.clip.encoder.layers.0.self_attn.q_proj",
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
        ),
        (
            "sdxl",
            "denoiser.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        ),
        ("sdxl", "denoiser.up_blocks.0.attentions.0.proj_in", "lora_unet_output_blocks_0_1_proj_in"),
        ("sdxl", "denoiser.up_blocks.0.upsamplers.0.conv", "lora_unet_output_blocks_2_2_conv"),
        ("sdxl", "denoiser.down_blocks.0.downsamplers.0.conv", "lora_unet_input_blocks_3_0_op"),
        ("sdxl", "denoiser.mid_block.resnets.1.conv2", "lora_unet_middle_block_2_out_layers_3"),
        (
            "sdxl",
            "text_encoders.clip_g.text_model.encoder.layers.3.mlp.fc1",
            "lora_te2_text_model_encoder_layers_3_mlp_fc1",
        ),
        ("sd3", "denoiser.transformer_blocks.7.attn.add_k_proj", "lora_unet_joint_blocks_7_context_block_attn_qkv"),
        ("sd3", "denoiser.transformer_blocks.7.attn2.to_v", "lora_unet_joint_blocks_7_x_block_attn2_qkv"),
        (
            "sd3",
            "denoiser.transformer_blocks.7.norm1_context.linear",
            "lora_unet_joint_blocks_7_context_block_adaLN_modulation_1",
        ),
        (
            "sd3",
            "text_encoders.t5.encoder.block.0.layer.1.DenseReluDense.wi_0",
            "lora_te3_encoder_block_0_layer_1_DenseReluDense_wi_0",
        ),
        ("flux", "denoiser.transformer_blocks.7.ff_context.net.2", "lora_unet_double_blocks_7_txt_mlp_2"),
        ("flux", "denoiser.single_transformer_blocks.7.proj_mlp", "lora_unet_single_blocks_7_linear1"),
    ],
)
def test_names_are_kohyas(family: str, layer: str, name: str) -> None:
    known = names.to_kohya(names.architecture(family), layer)
    assert known is not None
    assert known[0] == name


CLIP0 = "text_model.encoder.layers.0"
T5_LAYER, MLP = "encoder.block.1.layer.0.SelfAttention.q", "layers.3.mlp.up_proj"
ATTN = "attentions.0.transformer_blocks.0.attn2"


@pytest.mark.parametrize(
    ("family", "module", "layer"),
    [
        ("sd", "lora_te1_text_model_encoder_layers_0_mlp_fc1", f"text_encoders.clip.{CLIP0}.mlp.fc1"),
        ("sd", f"unet.mid_block.{ATTN}.processor.to_out", f"denoiser.mid_block.{ATTN}.to_out.0"),
        ("sd", f"text_encoder.{CLIP0}.self_attn.to_out", f"text_encoders.clip.{CLIP0}.self_attn.out_proj"),
        ("sd", f"{CLIP0}.self_attn.q_proj", f"text_encoders.clip.{CLIP0}.self_attn.q_proj"),
        (
            "sdxl",
            "lora_unet_mid_block_attentions_0_transformer_blocks_9_ff_net_0_proj",
            "denoiser.mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj",
        ),
        ("sdxl", f"text_encoders.clip_g.transformer.{CLIP0}.mlp.fc2", f"text_encoders.clip_g.{CLIP0}.mlp.fc2"),
        (
            "sd3",
            "lora_transformer_transformer_blocks_3_attn_add_q_proj",
            "denoiser.transformer_blocks.3.attn.add_q_proj",
        ),
        ("sd3", "base_model.model.transformer_blocks.3.ff.net.0.proj", "denoiser.transformer_blocks.3.ff.net.0.proj"),
        ("flux", "lycoris_single_transformer_blocks_3_attn_to_q", "denoiser.single_transformer_blocks.3.attn.to_q"),
        ("flux", "diffusion_model.double_blocks.3.img_mod.lin", "denoiser.transformer_blocks.3.norm1.linear"),
        (
            "flux",
            "lora_te2_encoder_block_1_layer_0_SelfAttention_q",
            "text_encoders.t5.encoder.block.1.layer.0.SelfAttention.q",
        ),
        ("flux", "transformer_blocks.3.attn.to_q", "denoiser.transformer_blocks.3.attn.to_q"),
        ("pixart", "unet.base_model.model.transformer_blocks.3.attn2.to_q", "denoiser.transformer_blocks.3.attn2.to_q"),
        ("pixart", "text_encoder.encoder.block.1.layer.0.SelfAttention.q", f"text_encoders.t5.{T5_LAYER}"),
        ("zimage", "lycoris_layers_3_adaLN_modulation_0", "denoiser.layers.3.adaLN_modulation.0"),
        ("zimage", "diffusion_model.layers.3.attention.to_q", "denoiser.layers.3.attention.to_q"),
        ("zimage", "text_encoders.qwen3_4b.transformer.model.layers.3.mlp.up_proj", f"text_encoders.qwen.{MLP}"),
        (
            "qwen_image",
            "lora_unet_transformer_blocks_3_img_mlp_net_0_proj",
            "denoiser.transformer_blocks.3.img_mlp.net.0.proj",
        ),
        ("qwen_image", "diffusion_model.norm_out.linear", "denoiser.norm_out.linear"),
        ("qwen_image", f"text_encoder.model.language_model.{MLP}", f"text_encoders.qwen.model.language_model.{MLP}"),
    ],
)
def test_other_programs_names_are_understood(family: str, module: str, layer: str) -> None:
    found = names.find(names.architecture(family), module)
    assert found is not None
    assert found.layers == (layer,)


@pytest.mark.parametrize("module", ["lora_unet_something", "lora_te9_text_model_encoder_layers_0_mlp_fc1", "vae.conv"])
def test_what_means_nothing_is_not_guessed(module: str) -> None:
    assert names.find(names.architecture("sdxl"), module) is None
