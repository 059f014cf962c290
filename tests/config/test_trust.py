"""What a config may not do, however it is written."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest

from hcpdiff.config import offers, trust
from hcpdiff.config.building import build
from hcpdiff.config.checking import check
from hcpdiff.config.loading import load
from hcpdiff.config.mistakes import ConfigError

BY_NAME = """
    os.system posix.system subprocess.run subprocess.Popen builtins.eval builtins.exec builtins.open
    builtins.__import__ sys.exit shutil.rmtree pathlib.Path.unlink importlib.import_module runpy.run_path
    pickle.loads pickle.load marshal.loads ctypes.CDLL code.interact webbrowser.open socket.socket
    hydra.utils.instantiate hydra.utils.get_method omegaconf.OmegaConf.load yaml.unsafe_load functools.partial
    operator.attrgetter types.FunctionType multiprocessing.Process unknown_package.run numpy.load pip.main
"""
IN_TORCH = """
    torch.load torch.save torch.serialization.load torch.hub.load torch.hub.load_state_dict_from_url
    torch.hub.download_url_to_file torch.ops.load_library torch.ops.aten.add torch.classes.load_library
    torch.utils.cpp_extension.load torch.utils.cpp_extension.load_inline torch.utils.model_zoo.load_url
    torch.jit.load torch.jit.CompilationUnit torch.package.PackageImporter torch.fx.GraphModule torch.export.load
    torch.utils.benchmark.Timer torch.utils.collect_env.run torch.utils.bottleneck.__main__.main
    torch.multiprocessing.spawn torch.distributed.run.main torch.distributed.launcher.elastic_launch torch.compile
    torch.cuda.jiterator._create_jit_fn torch.library.impl torch.storage._load_from_bytes torch.from_file
    torch.testing._internal.common_utils.run_tests torch._C._import_ir_module
    torch._dynamo.utils.checkpoint_params torch.nn.Module.load_state_dict torch.nn.modules.module.torch.load
    torch.utils.data.datapipes.iter.FileOpener
"""
THROUGH_OTHERS = """
    torch.os.system torch.sys.modules torch.builtins.eval torch.importlib.import_module
    torch.nn.functional.torch.load torch.nn.functional.importlib.import_module
    torch.optim.optimizer.functools.partial torch.nn.modules.module.warnings.sys.exit torch.nn.init.math.sqrt
    torch.nn.Module.forward.__globals__ torch.nn.Module.__init__.__globals__.get torch.nn.Module.__class__
    torch.nn.Module.__subclasses__ torch.optim.AdamW.step.__wrapped__ torch.nn._reduction.warnings.warn
    diffusers.utils.os.system diffusers.utils.logging.os.kill diffusers.models.modeling_utils.os.remove
    diffusers.models.modeling_utils.torch.load diffusers.utils.dynamic_modules_utils.get_class_from_dynamic_module
    transformers.dynamic_module_utils.get_class_from_dynamic_module transformers.testing_utils.run_command
    transformers.utils.import_utils.direct_transformers_import transformers.pipeline
    transformers.utils.hub.cached_file accelerate.commands.launch.launch_command
    accelerate.test_utils.testing.execute_subprocess_async accelerate.notebook_launcher accelerate.utils.load
    accelerate.utils.other.load albumentations.load albumentations.core.serialization.from_dict
    albumentations.core.serialization.load albumentations.Compose.from_dict.x peft.utils.other.os.system
    peft.import_utils.importlib.util.find_spec peft.tuners.lora.model.re.sub hcpdiff.config.trust.resolve
    hcpdiff.config.loading.load hcpdiff.config.building.build hcpdiff.config.trust.importlib.import_module
    hcpdiff.cli.main hcpdiff.lazy.exports hcpdiff.lazy.importlib.import_module hcpdiff.randomness.hashlib.new
    hcpdiff.randomness.random.Random hcpdiff.types.dataclass hcpdiff.types.Sequence.register
    hcpdiff.train.run.train hcpdiff.train.run.make_trainer hcpdiff.train hcpdiff.infer hcpdiff.infer.run.infer
    hcpdiff.load_config hcpdiff.infer.generation.generate hcpdiff.infer.save.write_image hcpdiff.infer.read_settings
    hcpdiff.formats.tensor_files.opening.write_json hcpdiff.models.folder.write hcpdiff.models.hub.local_folder
    hcpdiff.plugins.weights.save hcpdiff.plugins.weights.load hcpdiff.plugins.attach.attach
    hcpdiff.train.checkpoint.save hcpdiff.train.checkpoint.load hcpdiff.train.trainer.Trainer hcpdiff.train.Trainer
    hcpdiff.project.create hcpdiff.data.sources.folder.list_images hcpdiff.data.Streams hcpdiff.randomness.derive
    hcpdiff.randomness.__builtins__.eval hcpdiff.data.sources.folder.Path.unlink hcpdiff.data.sources.folder.os.remove
"""
NO_TARGETS = """
    torch torch.optim hcpdiff.types hcpdiff . os torch..optim torch.optim.AdamW() torch.nn.functional.__dict__
    transformers.models.bert.convert_bert_token_dropping_original_tf2_checkpoint_to_pytorch.convert
    torch/optim torch.optim.AdamW.step torch.optim.adamw.AdamW.__call__
"""
ATTACKS = [
    *BY_NAME.split(),
    *IN_TORCH.split(),
    *THROUGH_OTHERS.split(),
    *NO_TARGETS.split(),
    "",
    "torch.optim.AdamW ",
    "eval('1')",
]
NEEDED = """
    torch.optim.AdamW torch.optim.lr_scheduler.LambdaLR torch.nn.Linear torch.nn.functional.mse_loss
    torch.nn.functional.gelu torch.utils.data.DataLoader diffusers.DDPMScheduler
    diffusers.DDPMScheduler.from_pretrained diffusers.optimization.get_scheduler diffusers.AutoencoderKL
    transformers.CLIPTextModel.from_pretrained transformers.AutoTokenizer.from_pretrained peft.LoraConfig
    albumentations.Compose albumentations.HorizontalFlip
    accelerate.utils.dataclasses.DistributedDataParallelKwargs
    hcpdiff.data.FolderSource hcpdiff.data.RatioBucket hcpdiff.data.TagShuffle hcpdiff.data.Dataset
    hcpdiff.plugins.LoRA hcpdiff.plugins.lora.LoRA hcpdiff.models.SD3.from_pretrained hcpdiff.infer.Request
    hcpdiff.train.TensorBoard hcpdiff.train.loggers.WandB hcpdiff.train.callbacks.Preview
    hcpdiff.train.schedules.cosine hcpdiff.train.optimizers.Muon hcpdiff.diffusion.timesteps.logit_normal
    hcpdiff.diffusion.losses.huber hcpdiff.diffusion.noise.offset hcpdiff.diffusion.weights.min_snr
    hcpdiff.diffusion.guidance.cos hcpdiff.diffusion.samplers.euler hcpdiff.diffusion.samplers.single_step.euler
"""
ROOT = Path(__file__).parents[2]
# Wherever a user may copy a config from.
DOCUMENTED = [
    file
    for place in ("cfgs", "docs", "examples", "hcpdiff")
    for kind in ("yaml", "md", "py", "ipynb")
    for file in sorted((ROOT / place).rglob(f"*.{kind}"))
]


@pytest.mark.parametrize("path", ATTACKS)
def test_an_attack_is_refused(path, monkeypatch):
    monkeypatch.delenv("HCPDIFF_TRUST", raising=False)
    with pytest.raises(trust.TargetError):
        trust.resolve(path)


NEVER = [path for path in ATTACKS if any(f"{path}.".startswith(f"{area}.") for area in trust.NEVER)]


@pytest.mark.parametrize("path", [*NEVER, "torch.os.system", "torch.nn.functional.torch.load", "torch.sys.exit"])
def test_some_things_are_refused_even_if_the_user_trusts_the_package(path):
    with pytest.raises(trust.TargetError, match="is refused"):
        trust.resolve(path, [path.split(".")[0]])


@pytest.mark.parametrize("path", NEEDED.split())
def test_what_configs_need_is_allowed(path):
    assert callable(trust.resolve(path))


def test_every_target_of_hcpdiff_that_is_shown_to_users_is_allowed():
    text = "\n".join(file.read_text(encoding="utf-8") for file in [ROOT / "README.md", *DOCUMENTED])
    shown = set(re.findall(r"_target_[`\"']*: *[`\"']*(hcpdiff(?:\.\w+)+)", text))
    listed = set(re.findall(r"^\| `(hcpdiff(?:\.\w+)+)` \|", text, re.MULTILINE))
    assert len(shown) > 5
    assert len(listed) > 20
    for path in shown | listed:
        assert callable(trust.resolve(path)), path


@pytest.mark.parametrize("package", offers.PACKAGES)
def test_every_class_that_a_package_exports_is_allowed_but_for_a_few(package):
    for name in importlib.import_module(package).__all__:
        found = getattr(importlib.import_module(package), name)
        if inspect.isclass(found) and found.__module__ != "typing" and name not in offers.NOT_OFFERED:
            assert trust.resolve(f"{package}.{name}") is found


def test_a_refusal_says_where_to_look():
    with pytest.raises(trust.TargetError, match=r"^'hcpdiff\.train\.run\.train' is refused: .*; docs/config\.md lists"):
        trust.resolve("hcpdiff.train.run.train")


def test_a_check_calls_nothing_that_a_config_names(write, monkeypatch):
    """A model's arguments are looked at, to match its layers; a target among them is not called."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "toys"))
    write(
        "my.yaml",
        """
        model:
          _target_: hcpdiff.models.SD3.from_pretrained
          path: {_target_: toybox.leave_a_mark, path: ran}
        data:
          main:
            source: {_target_: toybox.leave_a_mark, path: ran}
            bucket: {_target_: hcpdiff.data.FixedBucket, size: 64}
            batch_size: 1
        plugins:
          style:
            _target_: hcpdiff.plugins.LoRA
            layers: [a]
            rank: 1
        train:
          steps: 1
          optimizer: {_target_: torch.optim.AdamW}
          callbacks: [{_target_: toybox.leave_a_mark, path: ran}]
          loss: {_target_: toybox.Marker, path: ran}
        infer:
          prompts: [a]
          size: [64, 64]
        """,
    )
    assert check(load("my.yaml", trust=["toybox"]), selectors=True) == []
    assert not Path("ran").exists()


@pytest.mark.parametrize("root", ["os", "builtins", "subprocess", "pickle", "importlib", "hydra", "ctypes"])
def test_some_packages_cannot_be_trusted(root):
    with pytest.raises(trust.TargetError, match=f"{root} is never trusted"):
        trust.resolve(f"{root}.anything", [root])


def test_an_untrusted_module_is_not_even_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text("import pathlib; pathlib.Path('ran').write_text('x')\ndef run(): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    message = "'evil_module.run' is refused: evil_module is not trusted; targets come from .* --trust evil_module"
    with pytest.raises(trust.TargetError, match=message):
        trust.resolve("evil_module.run")
    assert "evil_module" not in sys.modules
    assert not (tmp_path / "ran").exists()
    assert trust.resolve("evil_module.run", ["evil_module"])() is None


def test_a_trusted_package_of_the_user_opens_no_way_out(toys):
    assert trust.resolve("toybox.Square").__name__ == "Square"
    for path in ("toybox.system", "toybox.os.system", "toybox.Path.unlink", "toybox.answer", "toybox.Square.area"):
        with pytest.raises(trust.TargetError):
            trust.resolve(path)


def test_trust_comes_from_the_environment_too(monkeypatch):
    monkeypatch.setenv("HCPDIFF_TRUST", "one, two three")
    assert trust.named(["zero"]) == ["zero", "one", "two", "three"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("trust_remote_code", True), ("custom_pipeline", "x/y"), ("code_revision", "main"), ("weights_only", False)],
)
def test_arguments_that_run_code_are_refused(toys, key, value):
    with pytest.raises(ConfigError, match=rf"^x\.{key}: .* is refused: it can run code that comes with a model$"):
        build({"_target_": "toybox.Remote", key: value}, "x")


def test_nothing_in_a_config_is_evaluated(write):
    write("my.yaml", "a: __import__('os').getcwd()\nb: '${oc.env:NOT_SET_ANYWHERE,1+1}'\n")
    assert load("my.yaml").tree == {"a": "__import__('os').getcwd()", "b": "1+1"}
