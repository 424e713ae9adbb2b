"""Broken plugins are named with their reason and keep nobody else's from working."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
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
    plugins = Registry(entry_points(site))
    records = {record.name: record for record in plugins.records}
    assert set(records) == {*BAD, "a-good", "zz-good"}
    for name, reason in BAD.items():
        assert records[name].status == "broken", name
        assert reason in records[name].reason, name
    assert plugins.names("loss") == ["good", "later"]
    assert plugins.find("loss", "good").__module__ == "a_good"
    assert plugins.owner(plugins.find("loss", "later")).distribution == "zz-good"


def test_strict_mode_raises_for_the_first_broken_plugin(site: Path) -> None:
    with pytest.raises(kdzoo.PluginError, match=r'plugin "abstract" of abstract 1\.0: loss class'):
        Registry(entry_points(site), strict=True)


def test_a_disabled_plugin_is_not_even_imported(site: Path) -> None:
    plugins = Registry(entry_points(site), disabled=["import-error", "exits", "a-good"])
    records = {record.name: record for record in plugins.records}
    assert records["exits"].status == "disabled"
    assert "exits" not in sys.modules
    assert plugins.find("loss", "good").__module__ == "duplicate_name"


def test_what_a_broken_plugin_may_have_added_is_named_with_the_reason(site: Path) -> None:
    plugins = Registry(entry_points(site), disabled=["zz-good"])
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
    env = {"PYTHONPATH": str(site)}
    assert kdzoo_command("--help", env=env).returncode == 0
    listed = kdzoo_command("plugins", "--json", env=env)
    assert listed.returncode == 0
    status = {record["name"]: record["status"] for record in json.loads(listed.stdout)}
    assert status["losses.kd"] == "active"
    assert {name for name in status if status[name] == "broken"} == set(BAD)
    shown = kdzoo_command("plugins", env=env)
    assert all(reason in shown.stdout for reason in BAD.values())
    assert kdzoo_command("plugins", "--check", env=env).returncode == 1
    strict = kdzoo_command("plugins", env={**env, "KDZOO_STRICT_PLUGINS": "1"})
    assert strict.returncode == 1
    assert "Traceback" not in strict.stderr
    disabled = {**env, "KDZOO_DISABLE_PLUGINS": ",".join(BAD), "KDZOO_STRICT_PLUGINS": "1"}
    assert kdzoo_command("plugins", "--check", env=disabled).returncode == 0


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
