"""Broken plugins are named with their reason and keep nobody else's from working."""

from __future__ import annotations

import gc
import json
import multiprocessing
import operator
import os
import random
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from conftest import HERE, entry_points, install
from fresh import Fresh

import kdzoo
from kdzoo.extend import isolation
from kdzoo.extend.bases import Loss
from kdzoo.extend.hookspecs import HOOKS
from kdzoo.extend.registry import Registry
from kdzoo.spec.models import KINDS


class _Outside(kdzoo.Params):
    a: float = kdzoo.Field(-1.0, gt=0, description="Allowed from 0 on.")


BAD = {
    "import-error": "cannot be imported: ModuleNotFoundError: No module named 'no_such_library'",
    "exits": "cannot be imported: SystemExit: 3",
    "misspelt-hook": 'unknown hook "kdzoo_loses"; did you mean "kdzoo_losses"?',
    "wrong-signature": "wrong signature",
    "unmarked-hook": "kdzoo_losses is not marked @kdzoo.hookimpl",
    "no-hooks": "adds nothing",
    "duplicate-name": 'loss "good" is already added by a-good; duplicate-name must choose',
    "hook-raises": "kdzoo_losses() raised RuntimeError: the licence server did not answer",
    "not-a-list": "kdzoo_losses() must return a list of classes, not a class",
    "reserved-param": "Params.weight: the name is reserved for the spec's own key",
    "undescribed-param": "Params.tau: has no description",
    "mutable-param": "Params.scales: is mutable; use a tuple",
    "newer-api": "is written for kdzoo API 99, and this kdzoo has API 1",
    "wrong-kind": "is not a loss: return classes derived from kdzoo.Loss",
    "abstract": "does not define forward",
    "bad-name": "name is 'My Loss!'; set it to letters, digits, dashes and underscores",
    "unicode-name": "name is 'größe'; set it to letters, digits, dashes and underscores",
    "syntax-error": "cannot be imported: SyntaxError",
    "recursion": "cannot be imported: RecursionError",
    "interrupts": "cannot be imported: KeyboardInterrupt",
    "hangs": "cannot be imported: it took more than 2 s; KDZOO_PLUGIN_SECONDS gives it longer",
    "unprintable": "cannot be imported: BrokenError: (its message cannot be printed)",
    "native-library": "cannot be imported: OSError: libno_such_library.so.7",
    "sets-dtype": "changes torch's default dtype for everybody when it is loaded",
    "takes-ctrl-c": "changes what Ctrl-C does for everybody",
    "changes-directory": "changes the working directory for everybody",
    "silences-logs": "changes the level of all logs for everybody",
    "exits-later": "kdzoo_losses() raised SystemExit: no licence",
    "nan-default": "Params.tau: the default is nan; it should be a valid number",
    "foreign-params": "Params is not derived from kdzoo.Params",
    "own-init": "__init__ must take params alone",
    "undocumented": "has no docstring",
    "odd-api": "KDZOO_API_VERSION is '1.0'; it must be a whole number from 1 on",
    "other-kind": "kind is 'feature'; kdzoo.Loss has set it to 'loss'",
    "getattr-raises": "cannot be examined: RuntimeError: KDZOO_API_VERSION is not there yet",
    "wrong-attribute": "default_weight is 'heavy'; it should be a valid number",
    "no-starters": "starters is None; it should be a valid dictionary",
    "duplicate-starter": 'spec to start from "good-images" is already added by a-good',
    "starts-thread": "starts threads when it is loaded (waiting), and no command would end",
    "flushes-denormals": "changes torch's treatment of denormal numbers for everybody",
}
BAD_METADATA = {  # what cannot be parsed at all is not among them: torch and pydantic fail there
    "no-attribute": (b"[kdzoo]\nno-attribute = a_good:nothing\n", "has no attribute 'nothing'"),
    "no-module": (b"[kdzoo]\nno-module = not_there\n", "No module named 'not_there'"),
    "no-path": (b"[kdzoo]\nno-path = my loss!\n", "its entry point is 'my loss!'"),
}


PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "1.0"

[project.entry-points.kdzoo]
{name} = "{module}"

[tool.hatch.build.targets.wheel]
only-include = ["{module}.py"]
"""
BUILD = """
import os, sys
import hatchling.build

for folder in sys.argv[1:]:
    os.chdir(folder)
    hatchling.build.build_wheel("../wheels")
    os.chdir("..")
"""
DATASETS = {"no-starters", "duplicate-starter"}  # the others are losses, or might have been


def reading(flag: str) -> Callable[[], Any]:
    return lambda: operator.attrgetter(flag)(torch.backends)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    site = tmp_path / "bad-site"
    sources = sorted((HERE / "bad_plugins").glob("*.py"))
    for source in sources:
        install(site, source)
    monkeypatch.syspath_prepend(str(site))
    yield site
    for source in sources:
        sys.modules.pop(source.stem, None)


def test_each_broken_plugin_is_a_record_and_the_rest_stays_active(site: Path) -> None:
    plugins = Registry(entry_points(site), seconds=2)
    records = {record.name: record for record in plugins.records}
    assert set(records) == {*BAD, "a-good", "zz-good"}
    for name, reason in BAD.items():
        assert records[name].status == "broken", name
        assert reason in records[name].reason, name
    assert plugins.names("loss") == ["good", "later"]
    assert plugins.find("loss", "good").__module__ == "a_good"
    assert plugins.owner(plugins.find("loss", "later")).distribution == "zz-good"
    assert torch.get_default_dtype() == torch.float32
    assert Path.cwd() != Path("/")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("moment", [0, 1, 5])
def test_ctrl_c_while_plugins_are_loaded_is_nobodys_mistake(
    site: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Also before and after their code: in what is done for each of them it would come as often."""
    looks = 0

    def looked() -> int:
        nonlocal looks
        if looks == moment:
            signal.raise_signal(signal.SIGINT)
        looks += 1
        return 0

    monkeypatch.setitem(isolation.TORCH_SETTINGS, "a setting", (looked, lambda before: None))
    with pytest.raises(KeyboardInterrupt):
        Registry(entry_points(site), seconds=2)


def test_strict_mode_raises_for_the_first_broken_plugin(site: Path) -> None:
    with pytest.raises(kdzoo.PluginError, match=r'plugin "abstract" of abstract 1\.0: loss class'):
        Registry(entry_points(site), strict=True, seconds=2)


def test_a_disabled_plugin_is_not_even_imported(site: Path) -> None:
    plugins = Registry(entry_points(site), disabled=["import-error", "exits", "hangs", "a-good"])
    records = {record.name: record for record in plugins.records}
    assert records["exits"].status == "disabled"
    assert "exits" not in sys.modules
    assert plugins.find("loss", "good").__module__ == "duplicate_name"


def test_what_a_broken_plugin_may_have_added_is_named_with_the_reason(site: Path) -> None:
    plugins = Registry(entry_points(site), disabled=["hangs", "zz-good"])
    with pytest.raises(kdzoo.SpecError) as caught:
        plugins.find("loss", "import-error")
    assert "may add it, but is broken: cannot be imported" in str(caught.value)
    assert "did you mean" not in str(caught.value)
    assert "known are" not in str(caught.value)
    assert "zz-good" not in str(caught.value)
    with pytest.raises(kdzoo.SpecError, match=r"is disabled: disabled by KDZOO_DISABLE_PLUGINS"):
        plugins.find("loss", "later")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """What is installed, and all that is bad."""
    site = tmp_path_factory.mktemp("everything")
    sources = sorted((HERE / "bad_plugins").glob("*.py"))
    for source in sources:
        install(site, source)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.setenv("KDZOO_PLUGIN_SECONDS", "2")
        plugins = Registry.installed()
    for source in sources:
        sys.modules.pop(source.stem, None)
    return plugins


@pytest.mark.parametrize("name", BAD)
def test_a_spec_that_needs_it_fails_with_its_reason(everything: Registry, name: str) -> None:
    spec: dict[str, Any] = {"name": "needs", "student": "mlp", "train": {"epochs": 1}}
    spec |= {"data": name} if name in DATASETS else {"data": "digits", "losses": ["ce", name]}
    with pytest.raises(kdzoo.SpecError) as caught:
        kdzoo.read_spec(spec, plugins=everything)
    kind = "dataset" if name in DATASETS else "loss"
    assert f'unknown {kind} "{name}"' in str(caught.value)
    assert f'plugin "{name}" of {name} 1.0 may add it, but is broken: ' in str(caught.value)
    assert BAD[name] in str(caught.value)


@pytest.mark.slow
def test_packages_that_pip_installed_harm_nobody(tmp_path: Path) -> None:
    """All of them at once, in an environment of their own."""
    fresh, folders = Fresh(tmp_path / "venv"), []
    fresh.environment["KDZOO_PLUGIN_SECONDS"] = "2"
    for source in sorted((HERE / "bad_plugins").glob("*.py")):
        name = source.stem.replace("_", "-")
        folder = tmp_path / name
        folder.mkdir()
        (folder / source.name).write_bytes(source.read_bytes())
        (folder / "pyproject.toml").write_text(PYPROJECT.format(name=name, module=source.stem))
        folders.append(name)
    (tmp_path / "build.py").write_text(BUILD)
    fresh(f"python build.py {' '.join(folders)}", tmp_path)
    fresh("python -m pip install -q --no-deps wheels/*.whl", tmp_path)
    assert "Usage: kdzoo" in fresh("kdzoo --help", tmp_path)
    said = fresh("kdzoo plugins", tmp_path)
    for name, reason in BAD.items():
        found = re.search(rf'^plugin "{name}" of {name} 1.0 is broken: (.*)$', said, re.MULTILINE)
        assert found, name
        assert reason in found[1], name
    assert {"digits", "good-images"} <= set(fresh("kdzoo init", tmp_path).splitlines())
    fresh("kdzoo schema; kdzoo plugins show kd; kdzoo init digits", tmp_path)
    short = "--set train.epochs=1 --set teacher.train.epochs=1"
    done = fresh(f"kdzoo run digits.yaml {short}", tmp_path)
    assert done.count(" is broken and was left out: ") == len(BAD)
    assert list(tmp_path.glob("runs/digits-*/report.json"))
    needed = fresh("! kdzoo run digits.yaml --set losses.kd.use=native-library", tmp_path)
    assert f"is broken: {BAD['native-library']}" in needed


LOSS = (HERE / "bad_plugins" / "zz_good.py").read_text()
ADAPTER = '''
class Late(kdzoo.Adapter):
    """Nothing."""
    name = "late"
    def setup(self, student_shape, teacher_shape):
        pass
    def forward(self, feature):
        return feature

@kdzoo.hookimpl
def kdzoo_adapters():
    return [Late]
'''


def with_adapter(name: str, adapter: str) -> str:
    named = LOSS.replace('name = "later"', f'name = "{name}"\n    default_adapter = "{adapter}"')
    assert named != LOSS
    return named


def test_a_default_adapter_that_no_plugin_has_breaks_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    texts = {
        "aa_early": with_adapter("early", "late"),
        "bb_none": with_adapter("none-such", "lat"),
        "cc_late": f"import kdzoo\n{ADAPTER}",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
        install(site, tmp_path / f"{name}.py")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(site))
    plugins = Registry(entry_points(site))
    assert [record.status for record in plugins.records] == ["active", "broken", "active"]
    assert 'there is no adapter "lat"; did you mean "late"?' in plugins.broken[0].reason
    assert plugins.names("loss") == ["early"]
    with pytest.raises(kdzoo.SpecError, match=r'"bb-none" of bb-none 1\.0 may add it, but is bro'):
        plugins.find("loss", "none-such")
    with pytest.raises(kdzoo.PluginError, match=r'"bb-none" of .*no adapter "lat"'):
        Registry(entry_points(site), strict=True)
    # One that is not here may have had it, and breaks no other.
    assert "none-such" in Registry(entry_points(site), disabled=["cc-late"]).names("loss")


@pytest.mark.parametrize(
    ("requirement", "reason"),
    [
        ("kdzoo>=99,<100", "is for kdzoo<100,>=99, and this is kdzoo "),
        ("KDzoo (<0.0.1)", "is for kdzoo<0.0.1, and this is kdzoo "),
        ("kdzoo", ""),
        ("kdzoo<99", ""),
        ('kdzoo>=99; extra == "all"', ""),
        ("kdzoo-more>=99", ""),
        ("no requirement!", ""),
    ],
)
def test_a_plugin_for_another_kdzoo_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requirement: str, reason: str
) -> None:
    install(tmp_path / "site", HERE / "bad_plugins" / "zz_good.py")
    (metadata,) = tmp_path.glob("site/*.dist-info/METADATA")
    metadata.write_text(f"{metadata.read_text()}Requires-Dist: {requirement}\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (record,) = Registry(entry_points(tmp_path / "site")).records
    assert record.status == ("broken" if reason else "active")
    assert reason in record.reason


def test_two_distributions_may_use_the_same_entry_point_name(tmp_path: Path) -> None:
    for module in ("zz_good", "a_good"):
        install(tmp_path / module, HERE / "bad_plugins" / f"{module}.py")
    entries = [entry for m in ("zz_good", "a_good") for entry in entry_points(tmp_path / m)]
    renamed = [type(e)("same", e.value, e.group)._for(e.dist) for e in entries]
    sys.path[:0] = [str(tmp_path / "zz_good"), str(tmp_path / "a_good")]
    try:
        assert Registry(renamed).names("loss") == ["good", "later"]
    finally:
        del sys.path[:2]


def test_the_command_line_lives_with_broken_plugins(
    site: Path, kdzoo_command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, (text, _) in BAD_METADATA.items():
        info = site / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_bytes(text)
    reasons = {**BAD, **{name: reason for name, (_, reason) in BAD_METADATA.items()}}
    env = {"PYTHONPATH": str(site), "KDZOO_PLUGIN_SECONDS": "2"}
    assert kdzoo_command("--help", env=env).returncode == 0
    listed = kdzoo_command("plugins", "--json", env=env)
    assert listed.returncode == 0
    status = {record["name"]: record["status"] for record in json.loads(listed.stdout)}
    assert status["losses.kd"] == "active"
    assert {name for name in status if status[name] == "broken"} == set(reasons)
    shown = kdzoo_command("plugins", env=env)
    assert all(reason in shown.stdout for reason in reasons.values())
    assert kdzoo_command("plugins", "--check", env=env).returncode == 1
    strict = kdzoo_command("plugins", env={**env, "KDZOO_STRICT_PLUGINS": "1"})
    assert strict.returncode == 1
    assert "Traceback" not in strict.stderr
    disabled = {**env, "KDZOO_DISABLE_PLUGINS": ",".join(reasons), "KDZOO_STRICT_PLUGINS": "1"}
    assert kdzoo_command("plugins", "--check", env=disabled).returncode == 0


@pytest.mark.parametrize(
    ("base", "attributes", "message"),
    [
        (kdzoo.Loss, {"kind": "feature"}, "kind is 'feature'"),
        (kdzoo.Loss, {"kind": "adapter"}, "kind is 'adapter'"),
        (kdzoo.Loss, {"guidance": "teachers"}, "guidance is 'teachers'; it should be 'teacher' or"),
        (kdzoo.Loss, {"default_layers": (kdzoo.LayerPair(1.5, 2),)}, "a valid integer"),
        (kdzoo.Loss, {"default_adapter": Loss}, "it should be a valid string"),
        (kdzoo.Loss, {"default_weight": float("nan")}, "it should be a finite number"),
        (kdzoo.Loss, {"default_weight": -1.0}, "greater than or equal to 0"),
        *(
            (kdzoo.Loss, {"default_layers": value}, "it should be a tuple of pairs: (kdzoo.LayerP")
            for value in (3, kdzoo.LayerPair(2, 2), ((2, 2),))
        ),
        (
            kdzoo.Loss,
            {"Params": _Outside},
            "Params.a: the default is -1.0; it should be great",
        ),
        (kdzoo.Loss, {"default_label_weight": None}, "default_label_weight is None; it should"),
        (kdzoo.Loss, {"default_warmup_epochs": 2.5}, "default_warmup_epochs is 2.5; it should"),
        (kdzoo.Loss, {"needs_indices": "no"}, "needs_indices is 'no'; it should be a valid bool"),
        (kdzoo.Loss, {"needs_targets": 1}, "needs_targets is 1; it should"),
        (kdzoo.Loss, {"takes_columns": None}, "takes_columns is None; it should"),
        (kdzoo.Loss, {"invariances": frozenset({"scale"})}, "it should be 'identity', 'shift'"),
        (kdzoo.Loss, {"invariances": {"shift"}}, "it should be a valid frozenset"),
        (kdzoo.Loss, {"forward": None}, "forward is None; it must be a method"),
        (kdzoo.DataSource, {"starters": []}, "starters is []; it should be a valid dictionary"),
        (kdzoo.DataSource, {"starters": {"a": 1}}, "starters is {'a': 1}; it should be a valid st"),
        (kdzoo.DataSource, {"starters": {"digits": ""}}, '"digits" is already added by kdzoo'),
        (kdzoo.ModelSource, {"layers": ("0", "1")}, "layers is ('0', '1'); it must be a method"),
        (kdzoo.ClassPolicy, {"needs_validation": lambda self: False}, "mark it @property"),
        (
            kdzoo.Loss,
            {"forward": lambda self, student: None},
            "forward(self, student) must take (self, student, teacher, batch)",
        ),
        (
            kdzoo.Loss,
            {"setup": lambda self, a, b, c, d, *, e: None},
            "setup(self, a, b, c, d, *, e) must take (self, student_shapes, teacher_shapes, num_c",
        ),
        (kdzoo.ModelSource, {"layers": lambda: kdzoo.Layers()}, "layers() must take (self)"),
        (kdzoo.Loss, {"default_adapter": "regresor"}, 'no adapter "regresor"; did you mean "regr'),
        *(
            (kdzoo.Loss, {"name": name}, f"name is '{name}', which YAML does not read as text")
            for name in ("null", "True", "off", "12", "1e5", "0x1f", "2026-11-26")
        ),
    ],
)
def test_what_a_class_says_of_itself_is_checked_when_it_is_loaded(
    base: type[Any], attributes: dict[str, Any], message: str
) -> None:
    defined = dict.fromkeys(base.__abstractmethods__, lambda self, *given: None)
    said = {"__doc__": "Whatever.", "name": "whatever", **defined, **attributes}
    with pytest.raises(kdzoo.PluginError) as caught:
        Registry.installed().add(type("Whatever", (base,), said))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("code", "name", "value"),
    [
        ("torch.set_flush_denormal(True)", "denormal numbers", lambda: sys.float_info.min / 2 == 0),
        ("torch.autograd.set_detect_anomaly(True)", "anomalies", torch.is_anomaly_enabled),
        *(
            (f"torch.backends.{flag} = {value}", f"torch.backends.{flag}", reading(flag))
            for flag, value in (
                ("mkldnn.enabled", False),
                ("mkldnn.deterministic", True),
                ("cudnn.enabled", False),
                ("cudnn.benchmark", True),
                ("cudnn.deterministic", True),
                ("cudnn.allow_tf32", False),
                ("cuda.matmul.allow_tf32", True),
            )
        ),
        (
            "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
            "torch.backends.cuda.matmul.fp32_precision",
            torch.get_float32_matmul_precision,
        ),
        (
            "multiprocessing.set_start_method('spawn', force=True)",
            "how processes are started",
            multiprocessing.get_start_method,
        ),
        ("sys.path.insert(0, '/nowhere')", "sys.path", lambda: list(sys.path)),
        ("sys.path.pop()", "sys.path", lambda: list(sys.path)),
        ("sys.setrecursionlimit(700)", "the recursion limit", sys.getrecursionlimit),
        ("sys.modules['numpy'] = None", "modules of others", lambda: sys.modules["numpy"]),
        ("del sys.modules['numpy']", "modules of others", lambda: sys.modules["numpy"]),
        ("os.environ['OMP_SCHEDULE'] = 'x'", "environment variables", lambda: dict(os.environ)),
        ("os.environ['PYTHONPATH'] = 'x'", "environment variables", lambda: dict(os.environ)),
        ("os.umask(0o177)", "the permissions of new files", lambda: os.umask(os.umask(0o077))),
        ("numpy.seterr(all='raise')", "what NumPy does about errors", numpy.geterr),
        ("gc.disable()", "garbage collection", gc.isenabled),
        ("sys.excepthook = print", "sys.excepthook", lambda: sys.excepthook),
    ],
)
def test_what_holds_for_everybody_is_put_back(
    tmp_path: Path, code: str, name: str, value: Callable[[], Any]
) -> None:
    before = value()
    imports = "import gc, multiprocessing, os, sys, warnings\nimport numpy, torch\n"
    (tmp_path / "sets.py").write_text(f"{imports}{code}\n")
    with pytest.raises(kdzoo.PluginError, match=re.escape(name)) as caught:
        Registry([]).add_file(tmp_path / "sets.py")
    assert "for everybody when it is loaded" in str(caught.value)
    assert value() == before


def test_a_plugin_that_draws_when_it_is_loaded_changes_nobodys_draws(tmp_path: Path) -> None:
    (tmp_path / "draws.py").write_text(
        "import random, numpy, torch\nrandom.seed(2)\nnumpy.random.seed(1)\ntorch.manual_seed(7)\n"
    )
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    wanted = random.random(), numpy.random.rand(), torch.rand(1).item()
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    with pytest.raises(kdzoo.PluginError, match="adds nothing"):
        Registry([]).add_file(tmp_path / "draws.py")
    assert (random.random(), numpy.random.rand(), torch.rand(1).item()) == wanted


def test_a_param_that_no_spec_can_hold_is_told_in_plain_words(tmp_path: Path) -> None:
    (tmp_path / "tensor.py").write_text(
        "import kdzoo, torch\nclass P(kdzoo.Params):\n    a: torch.Tensor\n"
    )
    with pytest.raises(kdzoo.PluginError, match=r"torch\.Tensor.*what YAML can hold") as caught:
        Registry([]).add_file(tmp_path / "tensor.py")
    assert "arbitrary_types_allowed" not in str(caught.value)


def test_what_libraries_do_when_they_are_imported_is_no_harm(tmp_path: Path) -> None:
    filters, folders = list(warnings.filters), list(sys.path)
    (tmp_path / "asks.py").write_text(
        "import multiprocessing, os, sys, warnings\nmultiprocessing.get_context()\n"
        "os.environ['QT_QPA_FONTDIR'] = '/nowhere'\nwarnings.simplefilter('error')\n"
        "sys.path.append('/nowhere')\n"
    )
    try:
        with pytest.raises(kdzoo.PluginError, match="adds nothing"):
            Registry([]).add_file(tmp_path / "asks.py")
        assert sys.path == [*folders, "/nowhere"]
    finally:
        sys.path[:] = folders
        os.environ.pop("QT_QPA_FONTDIR", None)
    assert warnings.filters == filters


def test_what_a_plugin_prints_does_not_get_into_an_answer(
    tmp_path: Path, kdzoo_command: Callable
) -> None:
    noisy = tmp_path / "noisy.py"
    good = (HERE / "bad_plugins" / "zz_good.py").read_text()
    raw = "import ctypes, os, sys\nos.write(1, b'raw')\nctypes.CDLL(None).puts(b'from C')\n"
    raw += "sys.__stdout__.write('past redirection')\n"
    noisy.write_text(good + 'print("licence found\\n" * 10000)\n' + raw)
    install(tmp_path / "site", noisy)
    listed = kdzoo_command("plugins", "--json", env={"PYTHONPATH": str(tmp_path / "site")})
    assert {record["status"] for record in json.loads(listed.stdout)} == {"active"}
    for said in ("licence found", "raw", "from C", "past redirection"):
        assert said in listed.stderr


def test_what_a_plugin_uses_and_will_go_is_said(tmp_path: Path, kdzoo_command: Callable) -> None:
    ageing = tmp_path / "ageing.py"
    good = (HERE / "bad_plugins" / "zz_good.py").read_text()
    warns = 'import warnings\nwarnings.warn("x is now y", DeprecationWarning)\n'
    ageing.write_text(warns + good)
    install(tmp_path / "site", ageing)
    sys.path.insert(0, str(tmp_path / "site"))
    try:
        (record,) = Registry(entry_points(tmp_path / "site")).records
    finally:
        sys.path.remove(str(tmp_path / "site"))
    assert record.status == "active"
    assert record.warnings == ("ageing.py:2: x is now y",)
    shown = kdzoo_command("plugins", env={"PYTHONPATH": str(tmp_path / "site")})
    assert (
        'plugin "ageing" of ageing 1.0 uses what will go: ageing.py:2: x is now y' in shown.stdout
    )


def test_the_engines_keys_are_those_of_the_spec() -> None:
    """A component's Params may not hide a key of its entry, so both lists must agree."""
    keys: dict[str, set[str]] = {base.kind: set() for base in HOOKS.values()}
    for entry, kind in KINDS.items():
        keys[kind] |= set(entry.model_fields) - {"use"}
    for base in HOOKS.values():
        assert base.engine_keys == keys[base.kind], base.kind


@pytest.mark.parametrize(
    ("init", "message"),
    [
        (lambda self, params: None, r"does not call super\(\).__init__\(params\)"),
        (lambda self, params: 1 / 0, 'policy "made" failed: ZeroDivisionError'),
    ],
)
def test_a_component_that_cannot_be_made_is_named(init: Any, message: str) -> None:
    class Made(kdzoo.ClassPolicy):
        """Cannot be made."""

        name = "made"
        __init__ = init

        def update(self, curves: kdzoo.TeachingCurves) -> kdzoo.ClassWeights:
            raise NotImplementedError

    registry = Registry(())
    registry._components["policy"]["made"] = Made
    with pytest.raises(kdzoo.PluginError, match=message):
        registry.make("policy", "made", {})


def test_params_are_strict_closed_and_frozen() -> None:
    class Params(kdzoo.Params):
        tau: float = kdzoo.Field(1.0, description="A number.")

    assert Params(tau=2).tau == 2.0
    for wrong in ({"tau": "2"}, {"tau": True}, {"tau": float("nan")}, {"taw": 1.0}):
        with pytest.raises(ValueError, match=r"tau|taw"):
            Params(**wrong)
    with pytest.raises(ValueError, match="frozen"):
        Params().tau = 3.0
    assert Loss.Params() == Loss.Params()
