"""Broken plugins are named with their reason and keep nobody else's from working."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import HERE, entry_points, install

import kdzoo
from kdzoo.extend.bases import Loss
from kdzoo.extend.hookspecs import HOOKS
from kdzoo.extend.registry import Registry
from kdzoo.spec.models import KINDS

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
    "nan-default": "Params cannot be written in a spec",
    "foreign-params": "Params is not derived from kdzoo.Params",
    "own-init": "__init__ must take params alone",
    "undocumented": "has no docstring",
    "odd-api": "KDZOO_API_VERSION is '1.0'; it must be a whole number from 1 on",
}
BAD_METADATA = {  # what cannot be parsed at all is not among them: torch and pydantic fail there
    "no-attribute": (b"[kdzoo]\nno-attribute = a_good:nothing\n", "has no attribute 'nothing'"),
    "no-module": (b"[kdzoo]\nno-module = not_there\n", "No module named 'not_there'"),
    "no-path": (b"[kdzoo]\nno-path = my loss!\n", "its entry point is 'my loss!'"),
}


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
    assert "zz-good" not in str(caught.value)
    with pytest.raises(kdzoo.SpecError, match=r"is disabled: disabled by KDZOO_DISABLE_PLUGINS"):
        plugins.find("loss", "later")


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


def test_what_a_plugin_prints_does_not_get_into_an_answer(
    tmp_path: Path, kdzoo_command: Callable
) -> None:
    noisy = tmp_path / "noisy.py"
    good = (HERE / "bad_plugins" / "zz_good.py").read_text()
    noisy.write_text(good + 'print("licence found\\n" * 10000)\n')
    install(tmp_path / "site", noisy)
    listed = kdzoo_command("plugins", "--json", env={"PYTHONPATH": str(tmp_path / "site")})
    assert {record["status"] for record in json.loads(listed.stdout)} == {"active"}
    assert "licence found" in listed.stderr


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
