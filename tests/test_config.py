from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ras_dit import PRESETS, RASConfig

BAD: list[tuple[dict[str, Any], str]] = [
    ({"sample_ratio": 0}, r"sample_ratio: got 0; allowed: .*\(0, 1\]"),
    ({"sample_ratio": 1.5}, r"sample_ratio: got 1\.5"),
    ({"sample_ratio": -0.1}, "sample_ratio"),
    ({"sample_ratio": float("nan")}, "sample_ratio"),
    ({"sample_ratio": "half"}, "sample_ratio: got 'half'"),
    ({"sample_ratio": True}, "sample_ratio"),
    ({"final_sample_ratio": 0.0}, "final_sample_ratio"),
    ({"warmup_steps": 0}, "warmup_steps: got 0; allowed: at least 1"),
    ({"warmup_steps": -1}, "warmup_steps"),
    ({"warmup_steps": 1.0}, "warmup_steps"),
    ({"refresh_steps": (-2,)}, "refresh_steps: got -2"),
    ({"refresh_steps": "12,20"}, "refresh_steps"),
    ({"skip_steps": (1.5,)}, "skip_steps"),
    ({"refresh_every": 1}, "refresh_every: got 1"),
    ({"end_step": -1}, "end_step"),
    ({"importance": "sdt"}, "Did you mean 'std'"),
    ({"forecast_order": 3}, "forecast_order: got 3; allowed: 0, 1 or 2"),
    ({"forecast_damping": 2}, "forecast_damping"),
    ({"forecast_midpoint": 1}, "forecast_midpoint"),
    ({"solver_order": 3}, "solver_order: got 3; allowed: 1 or 2"),
    ({"kv_forecast": -0.5}, "kv_forecast: got -0.5"),
    ({"step_ratios": (0.5, 1)}, "step_ratios: got 0.5 first; allowed: 1"),
    ({"step_ratios": (1, 1.5)}, "step_ratios: got 1.5; allowed: one share"),
    ({"step_ratios": "1,0"}, "step_ratios: got '1,0'; allowed: a tuple of shares of the tokens"),
    ({"step_ratios": (1, 0.5), "sample_ratio": 0.5}, "sample_ratio: got 0.5; step_ratios say it"),
    ({"step_ratios": (1, 0.5), "refresh_every": 2}, "refresh_every: got 2; step_ratios say it"),
    ({"refresh_tolerance": 0}, "refresh_tolerance: got 0; allowed: a number above 0"),
    ({"score_filter": "median"}, "score_filter: got 'median'; allowed: blur, dilate"),
    ({"anchor_stride": 1}, "anchor_stride: got 1; allowed: an int of at least 2"),
    ({"neighbor_update": 1.5}, "neighbor_update: got 1.5"),
    ({"auto": 1}, "auto: got 1; allowed: True or False"),
    *(
        ({option.name: "no"}, f"{option.name}: got 'no'; allowed: True or False")
        for option in dataclasses.fields(RASConfig)
        if isinstance(option.default, bool)
    ),
    ({"forecast_below": 0}, "forecast_below: got 0; allowed: a noise level"),
    ({"forecast_reach": 0}, "forecast_reach: got 0; allowed: a number above 0, or None"),
    ({"high_ratio": 1.01}, "high_ratio"),
    ({"starvation_scale": -1}, "starvation_scale"),
    ({"starvation_scale": float("nan")}, "starvation_scale"),
    ({"token_multiple": 0}, "token_multiple"),
    ({"seed": 0.5}, "seed"),
    ({"skip_num_step": 64}, "belong to reference rules"),
    ({"rules": "paper"}, "rules: got 'paper'"),
    ({"rules": "reference"}, "importance 'std' or 'l2norm' with forecast_order 0"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_values_are_refused_with_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RASConfig(**options)


def test_dense_may_have_no_warm_up() -> None:
    assert RASConfig(sample_ratio=1.0, warmup_steps=0).warmup_steps == 0


@pytest.mark.parametrize(
    "options", [{"skip_num_step": 64}, {"start_step": 0}, {"reset_steps": (0.5,)}, {"metric": "error"}]
)
def test_bad_reference_values(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"got|give"):
        RASConfig.reference(**options)


def test_the_config_is_frozen_and_every_option_is_explained() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RASConfig().sample_ratio = 0.5  # type: ignore[misc]
    for option in dataclasses.fields(RASConfig):
        assert len(option.metadata["help"]) > 20, option.name


positions = st.one_of(st.integers(0, 60), st.floats(0.01, 0.99))
configs = st.builds(
    RASConfig,
    sample_ratio=st.floats(0.01, 1),
    warmup_steps=st.one_of(st.integers(1, 9), st.floats(0.01, 0.99)),
    refresh_every=st.one_of(st.none(), st.integers(2, 9)),
    refresh_steps=st.lists(positions, max_size=4).map(tuple),
    importance=st.sampled_from(["error", "std", "l2norm", "random", "round_robin"]),
    forecast_order=st.integers(0, 2),
    forecast_damping=st.floats(0, 1),
    token_multiple=st.none() | st.integers(1, 64),
    forecast_below=st.floats(0.01, 1),
    forecast_reach=st.one_of(st.none(), st.floats(0.01, 3)),
    score_filter=st.sampled_from([None, "blur", "dilate"]),
    anchor_stride=st.one_of(st.none(), st.integers(2, 9)),
    neighbor_update=st.floats(0, 1),
    forecast_fit=st.sampled_from([(), (0.5, -0.1, 0.0, 1e-6)]),
)


@given(configs)
def test_round_trips(config: RASConfig) -> None:
    assert RASConfig.from_dict(config.to_dict()) == config
    assert RASConfig.from_json(config.to_json()) == config
    assert RASConfig.from_yaml(config.to_yaml()) == config


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_files(tmp_path: Path, suffix: str) -> None:
    config = RASConfig.reference(0.25, reset_steps=(12, 20), skip_num_step=64, skip_num_step_length=4)
    config.save(tmp_path / f"config{suffix}")
    assert RASConfig.load(tmp_path / f"config{suffix}") == config
    assert [path.name for path in tmp_path.iterdir()] == [f"config{suffix}"]


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no file"):
        RASConfig.load(tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"ending in \.json, \.yaml or \.yml"):
        RASConfig.load(tmp_path / "config.toml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="a mapping of option names"):
        RASConfig.load(tmp_path / "list.yaml")


def test_from_dict_knows_the_papers_name_and_refuses_unknown_ones() -> None:
    assert RASConfig.from_dict({"error_reset_steps": [12, 20]}).refresh_steps == (12, 20)
    with pytest.raises(ValueError, match="not both"):
        RASConfig.from_dict({"error_reset_steps": [12], "refresh_steps": [12]})
    with pytest.raises(ValueError, match="Did you mean 'sample_ratio'"):
        RASConfig.from_dict({"sampling_ratio": 0.5})


def test_presets() -> None:
    assert list(PRESETS) == ["quality", "balanced", "fast", "regions", "regions_fast", "regions_faster"]
    assert RASConfig.preset("fast") is PRESETS["fast"]
    with pytest.raises(ValueError, match="Did you mean 'balanced'"):
        RASConfig.preset("balance")
    assert RASConfig().replace(sample_ratio=0.5).sample_ratio == 0.5


def test_options_of_the_plan_replace_a_listed_plan() -> None:
    listed = RASConfig(step_ratios=(1, 0.25, 0), solver_order=2)
    assert listed.has_savings
    assert listed.skips
    ratio = RASConfig(sample_ratio=0.5, refresh_every=4, solver_order=2)
    assert ratio.replace(step_ratios=(1, 0.25, 0)) == listed, "a listed plan takes the place of the other options"
    with pytest.raises(ValueError, match=r"sample_ratio: got 0\.5; step_ratios say it"):
        ratio.replace(step_ratios=(1, 0.25), sample_ratio=0.5)
    assert listed.replace(seed=3).step_ratios == (1, 0.25, 0)
    changed = listed.replace(sample_ratio=0.5)
    assert (changed.step_ratios, changed.sample_ratio, changed.solver_order) == ((), 0.5, 2)
    assert not listed.dense.has_savings
    assert RASConfig.from_json(listed.to_json()) == listed
    assert RASConfig(sample_ratio=1.0, skip_steps=(5,)).has_savings


def test_a_saved_config_may_be_read_by_others(tmp_path: Path) -> None:
    """Its mode is that of any new file, its folder is made, and no temporary file stays."""
    path = tmp_path / "new" / "config.json"
    RASConfig().save(path)
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert [each.name for each in path.parent.iterdir()] == ["config.json"]
    assert RASConfig.load(path) == RASConfig()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.json",
            b'{"region_of_interest": {"foo": 1}}',
            "region_of_interest: got foo; allowed: height, width and bits",
        ),
        ("a.json", b"{", "got text that is no JSON"),
        ("a.yaml", b"a: [", "got text that is no YAML"),
        ("a.yaml", "# caf\u00e9".encode("latin-1"), "no text in UTF-8"),
        ("a.json", b'{"sample_ratio": 2}', "sample_ratio: got 2"),
    ],
)
def test_errors_name_the_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as found:
        RASConfig.load(tmp_path / name)
    assert str(found.value).startswith(f"config: {tmp_path / name} could not be read: ")
    assert type(found.value) is ValueError


def test_text_that_is_no_config() -> None:
    for read, text in ((RASConfig.from_json, "{"), (RASConfig.from_yaml, "a: [")):
        with pytest.raises(ValueError, match="RASConfig: got text that is no") as found:
            read(text)
        assert "; allowed: " in str(found.value)
        assert type(found.value) is ValueError


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_marks_at_the_start_of_a_file(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_text(RASConfig(sample_ratio=0.5).to_json(), encoding=encoding)
    assert RASConfig.load(tmp_path / "a.json") == RASConfig(sample_ratio=0.5)


@pytest.mark.parametrize("option", ["text_reuse", "reference_reuse"])
def test_layers_without_keys_have_none_to_reuse(option: str) -> None:
    assert RASConfig(kv_cache_layers=0.5).kv_cache_layers == 0.5
    with pytest.raises(ValueError, match=f"{option}: got True with kv_cache_layers=0.5.*allowed: kv_cache_layers=1"):
        RASConfig(kv_cache_layers=0.5, **{option: True})
