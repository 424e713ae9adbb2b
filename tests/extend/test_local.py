"""Components of one's own without a package: from a local file, or registered from Python."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import install
from ruamel.yaml import YAML
from torch import nn

import kdzoo
from kdzoo.extend.registry import Registry, registry

MODELS = '''
import kdzoo
from torch import nn

class Net(kdzoo.ModelSource):
    """One linear layer."""
    name = "my-net"
    def build(self, input_shape, num_classes):
        channels, height, width = input_shape
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes))

@kdzoo.hookimpl
def kdzoo_models():
    return [Net]
'''


@pytest.fixture
def spec_file(tmp_path: Path, tiny: dict[str, Any]) -> Path:
    file = tmp_path / "tiny.yaml"
    with file.open("w") as stream:
        YAML(typ="safe", pure=True).dump({**tiny, "student": "my-net"}, stream)
    return file


def test_a_local_file_is_loaded_from_the_command_line_alone(
    tmp_path: Path, spec_file: Path, kdzoo_command: Callable[..., Any]
) -> None:
    (tmp_path / "my_models.py").write_text(MODELS)
    without = kdzoo_command("validate", "tiny.yaml")
    assert without.returncode == 1
    assert 'unknown model "my-net"; known are' in without.stderr
    assert "one of your own is given with `--plugin FILE`, in Python" in without.stderr
    done = kdzoo_command("run", "tiny.yaml", "--plugin", "my_models.py")
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("runs/tiny-??????????")
    versions = json.loads((run / "environment.json").read_text())["versions"]
    assert str(tmp_path / "my_models.py") in versions
    done = kdzoo_command("evaluate", str(run), "--plugin", "my_models.py")
    assert done.returncode == 0, done.stderr
    (tmp_path / "script.py").write_text(f"{MODELS}\nkdzoo.register(Net)")
    registers = kdzoo_command("validate", "tiny.yaml", "--plugin", "script.py")
    assert registers.returncode == 1
    assert "script.py: calls kdzoo.register, which is for scripts" in registers.stderr
    listed = kdzoo_command("plugins", "--json", "--plugin", "my_models.py").stdout
    mine = [record for record in json.loads(listed) if record["name"] == "my_models"]
    assert [record["adds"] for record in mine] == [{"model": ["my-net"]}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone.py", None, "cannot be read: No such file"),
        ("broken.py", "import nothing_like_it", "cannot be imported: ModuleNotFoundError"),
        (
            "invalid.py",
            "import kdzoo\n\n\nclass Own(kdzoo.Params):\n    size: int\n\n\nOwn(size='x')",
            "input_value='x', input_type=str]",
        ),
        ("exits.py", "raise SystemExit(3)", "cannot be imported: SystemExit"),
        (
            "leaves.py",
            "import os\nos._exit(0)",
            "cannot be imported: it ends the process (os._exit)",
        ),
        ("odd.py", "KDZOO_API_VERSION = True", "KDZOO_API_VERSION is True; it must be a whole num"),
        ("empty.py", "", "adds nothing"),
        ("text.txt", MODELS, "is no Python file"),
        ("taken.py", MODELS.replace("my-net", "mlp"), '"mlp" is already added by kdzoo'),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(kdzoo.PluginError) as failure:
        Registry.installed().add_file(tmp_path / name)
    assert str(failure.value).startswith(f"{tmp_path / name}: ")
    assert message in str(failure.value)
    assert "https://" not in str(failure.value)


def test_a_crash_says_where_it_was(tmp_path: Path, kdzoo_command: Callable[..., Any]) -> None:
    (tmp_path / "crashes.py").write_text("import ctypes\nctypes.string_at(0)\n")
    done = kdzoo_command("plugins", "--plugin", "crashes.py")
    assert done.returncode == -signal.SIGSEGV
    assert f'File "{tmp_path / "crashes.py"}", line 2' in done.stderr


def test_a_child_process_may_end_while_a_plugin_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "forks.py").write_text(
        "import os\nif not (child := os.fork()):\n    os._exit(5)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5\n"
    )
    with pytest.raises(kdzoo.PluginError, match="adds nothing"):
        Registry([]).add_file(tmp_path / "forks.py")


def linear(name_: str, bias: bool) -> type[kdzoo.ModelSource]:
    class Linear(kdzoo.ModelSource):
        """One linear layer."""

        name = name_

        def build(self, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[2], num_classes, bias=bias))

    return Linear


def test_registered_from_python_and_again_from_the_same_cell(
    tmp_path: Path, tiny: dict[str, Any]
) -> None:
    before = list(registry().records)
    try:
        kdzoo.register(linear("cell", bias=True))
        kdzoo.register(linear("cell", bias=False))
        run = kdzoo.run({**tiny, "student": "cell"}, runs=tmp_path)
        model = kdzoo.load_student(run.directory).model
        assert [name for name, _ in model.named_parameters()] == ["1.weight"]
        with pytest.raises(kdzoo.PluginError, match='"mlp" is already added by kdzoo'):
            kdzoo.register(linear("mlp", bias=True))
        with pytest.raises(kdzoo.PluginError, match="is no component"):
            kdzoo.register(torch.nn.Linear)  # type: ignore[type-var]
        assert len(registry().records) == len(before) + 1
    finally:
        registry.cache_clear()


def test_what_a_run_was_made_with_is_named_where_it_is_gone_or_another(
    tmp_path: Path, tiny: dict[str, Any], kdzoo_command: Callable[..., Any]
) -> None:
    tiny |= {"student": {"use": "my-net"}, "teacher": None, "baseline": False}
    tiny |= {"losses": ["ce"], "policy": "all"}
    site, net = tmp_path / "site", tmp_path / "my_nets.py"
    params = """
    class Params(kdzoo.Params):
        {}: int = kdzoo.Field(3, description="Of what.")
    def build"""

    def installed(version: str, param: str) -> None:
        shutil.rmtree(site, ignore_errors=True)
        net.write_text(MODELS.replace("    def build", params.format(param)))
        install(site, net, version=version)

    def said(command: str) -> str:
        done = kdzoo_command(
            *command.split(), env={"PYTHONPATH": f"{site}:{os.environ['PYTHONPATH']}"}
        )
        assert "Traceback" not in done.stderr
        return str(done.stderr)

    with (tmp_path / "tiny.yaml").open("w") as stream:
        YAML(typ="safe", pure=True).dump(tiny, stream)
    installed("0.1.0", "width")
    said("run tiny.yaml")
    (run,) = tmp_path.glob("runs/tiny-??????????")
    installed("0.2.0", "channels")
    changed = said(f"evaluate {run}")
    assert (
        'its model cannot be built: model "my-net" takes other parameters here (width)' in changed
    )
    assert "my-nets was 0.1.0 when it was made and is 0.2.0 now" in changed
    shutil.rmtree(site)
    gone = said(f"evaluate {run}")
    assert 'unknown model "my-net"; known are' in gone
    assert "`--plugin FILE`, in Python kdzoo.register" in gone
    assert "it was made with my-nets 0.1.0, which is not here" in gone
    with pytest.raises(kdzoo.CheckpointError, match=r"made with my-nets 0\.1\.0, which is not"):
        kdzoo.load_student(run)


def test_code_that_was_changed_is_run_again(tmp_path: Path, tiny: dict[str, Any]) -> None:
    tiny["student"] = "my-net"
    file, directories = tmp_path / "my_models.py", set()
    try:
        for text in (MODELS, MODELS, MODELS.replace("nn.Flatten()", "nn.Flatten(), nn.ReLU()")):
            file.write_text(text)
            registry.cache_clear()
            registry().add_file(file)
            directories.add(kdzoo.run(tiny, runs=tmp_path / "runs").directory)
        assert len(directories) == 2
        registry().add(linear("another", bias=True))  # of no concern to the run
        directories.add(kdzoo.run(tiny, runs=tmp_path / "runs").directory)
        assert len(directories) == 2
    finally:
        registry.cache_clear()
