"""The package: what is imported when, what pyproject.toml asks for, and a wheel that works without the repository."""

import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.training.tiny import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = ("torch", "transformers", "datasets", "numpy")


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=500)


@pytest.mark.parametrize(
    "code",
    [
        "import lookupffn",
        "from lookupffn import UserError",
        "import lookupffn.cli.commands",
        "import lookupffn.cli.export",
        "from lookupffn.cli.command_line import read_command_line\n"
        "from lookupffn.errors import UserError\n"
        "try:\n    read_command_line('train', ['ffn=lokup'])\n"
        "except UserError as error:\n    assert 'lookup' in str(error)",
        "from lookupffn.cli.help import help_text; assert 'low_rank' in help_text('train', 'x')",
    ],
)
def test_nothing_heavy_is_imported(code: str, tmp_path: Path):
    check = f"{code}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = python("-c", check, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_a_comparison_needs_no_torch(tmp_path: Path):
    check = "import sys, lookupffn.cli.compare; print({'torch', 'matplotlib'} & sys.modules.keys())"
    assert python("-c", check, cwd=tmp_path, PYTHONPATH=str(ROOT)).stdout == "set()\n"


def test_every_public_name_is_there():
    import lookupffn

    for name in lookupffn.__all__:
        assert getattr(lookupffn, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        lookupffn.nothing_of_this_name  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import lookupffn; from transformers import AutoConfig",
        "from transformers import AutoConfig; import lookupffn",
        "import lookupffn; from transformers import AutoTokenizer, PreTrainedModel, AutoConfig",
        "import lookupffn; from lookupffn import LookupRobertaModel; from transformers import AutoConfig",
    ],
)
def test_auto_classes_know_the_models_after_import_lookupffn(code: str, tmp_path: Path):
    use = (
        "\nfrom transformers import AutoModel\n"
        "sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)\n"
        "AutoModel.from_config(AutoConfig.for_model('lookup-roberta', **sizes)).save_pretrained('model')\n"
        "print(type(AutoConfig.from_pretrained('model')).__name__, type(AutoModel.from_pretrained('model')).__name__)"
    )
    done = python("-c", code + use, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.stdout == "LookupRobertaConfig LookupRobertaModel\n", done.stderr


def test_dependencies_hold_what_is_pinned():
    pinned = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        name, _, version = line.partition("#")[0].strip().partition("==")
        if name:
            pinned[name.lower()] = version
    asked = {requirement.name.lower(): requirement for requirement in map(Requirement, PROJECT["dependencies"])}
    assert asked.keys() == pinned.keys()
    for name, requirement in asked.items():
        assert requirement.specifier.contains(pinned[name]), name


@pytest.mark.parametrize("target", PROJECT["scripts"].values())
def test_console_commands_exist(target: str):
    module, _, name = target.partition(":")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.slow
def test_the_wheel_works_in_a_folder_without_the_repository(tmp_path: Path):
    pytest.importorskip("hatchling")
    wheels, site, empty = tmp_path / "wheels", tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    offline = ("--no-deps", "--no-index", "--disable-pip-version-check", "--quiet")
    built = python("-m", "pip", "wheel", *offline, "--no-build-isolation", "-w", str(wheels), str(ROOT), cwd=empty)
    assert built.returncode == 0, built.stderr
    wheel = str(next(wheels.glob("*.whl")))
    assert python("-m", "pip", "install", *offline, "--target", str(site), wheel, cwd=empty).returncode == 0
    environment = {"PYTHONPATH": str(site), "LOOKUPFFN_CACHE": str(tmp_path / "cache"), "WANDB_MODE": "offline"}

    def command(name: str, *arguments: str) -> subprocess.CompletedProcess:
        return python(str(site / "bin" / name), *arguments, cwd=empty, **environment)

    where = python("-c", "import lookupffn; print(lookupffn.__file__)", cwd=empty, **environment).stdout
    assert where.startswith(str(site))
    for name in PROJECT["scripts"]:
        shown = command(name, "--help")
        assert shown.returncode == 0 and name in shown.stdout, shown.stderr
    wrong = command("lookupffn-train", "ffn=lokup")
    assert wrong.returncode == 2 and "did you mean 'lookup'" in wrong.stderr and wrong.stderr.count("\n") == 1

    (empty / "text.txt").write_text("\n\n".join(f"word{i % 7} and word{i % 5} of {i}" * 40 for i in range(60)))
    settings = ("data=text", "data.train_files=text.txt", "data.validation_fraction=0.3", "tokenizer.vocab_size=300",
                "tracker=none", "training.max_steps=4", "training.batch_size=4", "evaluation.max_tokens=1024",
                "model.sequence_length=32", "output_dir=runs/one")  # fmt: skip
    trained = command("lookupffn-train", *settings)
    assert trained.returncode == 0, trained.stderr
    scored = command("lookupffn-evaluate", "checkpoint=runs/one")
    assert scored.returncode == 0 and "perplexity" in scored.stdout, scored.stderr
    compared = command("lookupffn-compare", "runs", "--no-plots")
    assert compared.returncode == 0 and (empty / "runs" / "comparison").is_dir(), compared.stderr
    # the sources of the kernels came along
    if any(map(shutil.which, ("c++", "g++", "clang++"))) and "CXX" not in os.environ:
        assert len(list((tmp_path / "cache" / "kernels").glob("lookupffn-*.so"))) == 1, trained.stderr
        assert "cannot be used" not in trained.stderr
    else:
        assert trained.stderr.count("the fast CPU kernels cannot be used") == 1


@pytest.mark.slow
def test_an_editable_install_is_the_repository(tmp_path: Path):
    pytest.importorskip("hatchling")
    venv.create(tmp_path / "venv", with_pip=False)
    interpreter = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    environment = {"PYTHONPATH": sysconfig.get_path("purelib")}  # for the dependencies
    installed = python(
        "-m", "pip", f"--python={interpreter}", "install", "--no-deps", "--no-index", "--no-build-isolation", "--quiet",
        "--disable-pip-version-check", "--editable", str(ROOT), cwd=tmp_path, **environment,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stderr
    assert not (site / "lookupffn").exists()
    for name in PROJECT["scripts"]:
        command = [str(tmp_path / "venv" / "bin" / name), "--help"]
        shown = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True, check=False
        )
        assert shown.returncode == 0 and name in shown.stdout, shown.stderr
    code = "import lookupffn; from lookupffn.cli.choices import CONFIG_DIR; print(lookupffn.__file__, CONFIG_DIR)"
    shown = subprocess.run(
        [interpreter, "-c", code], cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert shown.stdout.split() == [str(ROOT / "lookupffn" / "__init__.py"), str(ROOT / "configs")], shown.stderr
