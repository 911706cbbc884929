"""The cases of the speed benchmark: models by their dimensions, sizes and settings, and what fits a machine."""

from __future__ import annotations

import dataclasses

import diffusers
import pytest
import torch

from bench_twins import ONE_PER_ARCHITECTURE, QUICK, benchmark, tiny
from ras_dit.bench import CASES, Settings, case_named, chosen_cases
from ras_dit.bench.architectures import ARCHITECTURES, Size
from ras_dit.bench.loops import run_loop, short_config
from ras_dit.bench.weights import empty_transformer, random_transformer, weight_bytes
from ras_dit.config import RASConfig
from ras_dit.engine import accelerate
from ras_dit.flops import compute_dtype


@pytest.mark.parametrize("name", CASES)
def test_dimensions_are_those_of_the_class(name: str) -> None:
    case = CASES[name]
    if case.dimensions is None:
        return
    kind = getattr(diffusers, ARCHITECTURES[case.dimensions.architecture].transformer)
    model = empty_transformer(kind, dict(case.dimensions.arguments), torch.bfloat16)
    assert all(parameter.is_meta for parameter in model.parameters())
    billions = {
        "mid": 0.255,
        "sd3-medium": 2.03,
        "sd3-medium-2048": 2.03,
        "sd3.5-large": 8.06,
        "lumina-next": 1.75,
        "flux-dev": 11.9,
        "flux-kontext": 11.9,
        "qwen-image": 20.4,
        "wan-1.3b": 1.42,
    }
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions[name], rel=0.01)
    assert weight_bytes(model) == pytest.approx(2e9 * billions[name], rel=0.02)
    assert set(CASES[name].tiny().dimensions.arguments) >= set(case.dimensions.arguments)  # type: ignore[union-attr]


def test_random_weights_keep_the_size_of_what_passes_and_wide_parts_wide() -> None:
    arguments = dict(CASES["wan-1.3b"].tiny().dimensions.arguments)  # type: ignore[union-attr]
    model = random_transformer(diffusers.WanTransformer3DModel, arguments, "cpu", torch.bfloat16)
    assert model.scale_shift_table.dtype == torch.float32
    assert model.proj_out.weight.dtype == torch.bfloat16
    assert float(model.blocks[0].ffn.net[0].proj.weight.float().std()) == pytest.approx(32**-0.5, rel=0.1)
    assert float(model.blocks[0].ffn.net[0].proj.bias.float().std()) > 0
    again = random_transformer(diffusers.WanTransformer3DModel, arguments, "cpu", torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_case_that_does_not_fit_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["sd3-medium"].tiny()
    monkeypatch.setattr("ras_dit.bench.cases.free_bytes", lambda device: 1000)
    said: list[str] = []
    ran = benchmark(said=said)
    assert ran.run([case])
    assert ran.results.cases == {}
    assert said[0].startswith("sd3-medium-tiny: left out, needs about ")
    monkeypatch.setattr("ras_dit.bench.cases.free_bytes", lambda device: None)
    assert case.why_skipped("mps") is None


def test_the_estimate_is_what_the_run_reports() -> None:
    for name in ONE_PER_ARCHITECTURE.values():
        case, pipe, call = tiny(name)
        with accelerate(pipe, short_config(RASConfig(sample_ratio=0.5))) as handle:
            run_loop(pipe, call)
        assert handle.latest_plan is not None
        assert handle.latest_plan.cost is not None
        assert case.estimate()["kv_cache"] == case.num_rows * handle.latest_plan.cost.kv_cache_bytes, name
        assert case.estimate()["weights"] == weight_bytes(pipe.transformer)


def test_schedules_keep_their_shape_in_runs_of_another_length() -> None:
    schedule = CASES["lumina-next"].schedule
    assert (schedule.num_steps, schedule.config(0.5, 30).refresh_steps) == (30, (12, 22))
    assert schedule.config(0.5, 30).warmup_steps == 4
    assert schedule.config(0.5, 15).warmup_steps == pytest.approx(4 / 30)
    assert not schedule.config(1.0, 30).has_savings


def test_sizes_and_cases_by_name() -> None:
    video, picture = Size(480, 832, 81), Size(1024, 1024)
    assert str(video) == "480x832x81"
    assert Size.parse("64", video) == Size(64, 64, 81)
    assert Size.parse("64x96", picture) == Size(64, 96)
    assert Size.parse("64x96x9", picture) == Size(64, 96, 9)
    for text in ("", "0", "axb", "1x2x3x4"):
        with pytest.raises(ValueError, match="--sizes: got"):
            Size.parse(text, picture)
    assert [case.name for case in chosen_cases((), "cpu")] == ["embedded", "embedded-batch", "embedded-256", "mid"]
    assert len(chosen_cases((), "cuda")) == len(CASES)
    with pytest.raises(ValueError, match="--case: got 'sd4'; allowed: embedded"):
        chosen_cases(("sd4",), "cpu")
    with pytest.raises(ValueError, match="embedded: the model in the box"):
        CASES["embedded"].at(picture)


def test_cases_in_another_dtype() -> None:
    (single,) = chosen_cases(("mid",), "cpu", "float32")
    assert (single.name, single.dtype) == ("mid-float32", "float32")
    assert single.title.endswith("fp32")
    assert case_named("mid-float32") == single
    assert next(single.outline().transformer.parameters()).dtype == torch.float32
    assert single.estimate()["kv_cache"] == 2 * CASES["mid"].estimate()["kv_cache"]
    boxed = ["embedded", "embedded-batch", "embedded-256"]
    assert [case.name for case in chosen_cases((), "cpu", "float32")] == [*boxed, "mid-float32"]
    assert [case.name for case in chosen_cases((), "cpu", "float16")] == ["mid-float16"]
    assert chosen_cases(("mid",), "cpu", "bfloat16") == [CASES["mid"]]
    with pytest.raises(ValueError, match="--dtype: got 'int8'; allowed: bfloat16, float16, float32"):
        chosen_cases(("mid",), "cpu", "int8")
    with pytest.raises(ValueError, match="embedded: the model in the box is timed in float32"):
        chosen_cases(("embedded",), "cpu", "bfloat16")


def test_cases_by_the_kernels() -> None:
    case = CASES["sd3-medium"].with_kernels()
    assert case_named("sd3-medium-kernels") == case
    assert case.title.endswith("Triton kernels")
    plain = CASES["sd3-medium"].configs(28)
    for name, config in case.configs(28).items():
        assert config == plain[name].replace(kernels="triton")
    assert case.configs(28, (0.25,)) == {"ratio 0.25": plain["ratio 0.25"].replace(kernels="triton")}


def test_tiny_cases_have_names_of_their_own() -> None:
    tiny_video = CASES["wan-1.3b"].tiny()
    assert tiny_video.name == "wan-1.3b-tiny"
    assert tiny_video.tiny() == tiny_video == case_named("wan-1.3b-tiny")
    (sized,) = chosen_cases(("wan-1.3b-tiny",), "cpu", "bfloat16", "64x96x5")
    assert sized.name == "wan-1.3b-tiny-64x96x5-bfloat16"
    assert case_named(sized.name) == sized
    by_kernels = CASES["sd3-medium"].with_kernels().tiny()
    assert by_kernels == case_named("sd3-medium-kernels-tiny")
    assert by_kernels.has_kernels
    assert CASES["embedded"].tiny() == CASES["embedded"]


def test_cases_without_picture_sizes_are_left_out_unless_they_are_asked_for() -> None:
    cases = [CASES[name] for name in ("embedded", "mid", "sd3-medium-2048")]
    alone = Settings(has_crossover=True, has_loops=False)
    assert alone.with_parts(cases, is_named=False) == [CASES["mid"]]
    assert Settings(has_crossover=True).with_parts(cases, is_named=False) == cases
    assert Settings().with_parts(cases, is_named=True) == cases
    given = Settings(has_crossover=True, sizes=("512",))
    assert given.with_parts(cases[1:], is_named=True) == cases[1:]
    for settings, some, message in (
        (given, cases, "--sizes: got it for embedded, but the model in the box is timed at its own size; take another"),
        (alone, cases[1:], "--no-loops: got it for sd3-medium-2048, but it has no picture sizes of its own; give --s"),
        (Settings(has_crossover=True), cases[2:], "--crossover: got it for sd3-medium-2048"),
    ):
        with pytest.raises(ValueError, match=message):
            settings.with_parts(some, is_named=True)


def test_presets_alone_or_beside_ratios() -> None:
    case = CASES["sd3-medium"]
    assert case.configs(28, presets=("balanced",)) == {"balanced": RASConfig.preset("balanced")}
    assert list(case.configs(28, (0.25,), ("fast", "regions"))) == ["ratio 0.25", "fast", "regions"]
    assert list(case.configs(28)) == [f"ratio {ratio:g}" for ratio in case.ratios] + [
        *(f"ratio 0.125, {name}" for name in case.variants),
        *case.presets,
    ]
    both = case.configs(28, (0.5, 0.25), has_variants=True)
    assert list(both) == ["ratio 0.5", "ratio 0.25", *(f"ratio 0.25, {name}" for name in case.variants)]
    assert both["ratio 0.25, text reuse"] == both["ratio 0.25"].replace(text_reuse=True)
    assert case.configs(28, presets=("fast",), has_variants=True) == case.configs(28, presets=("fast",))
    given, asked = (
        Settings(ratios=(0.25,), has_variants=is_asked).options(case, "eager") for is_asked in (False, True)
    )
    assert given != asked, "what was measured without them is measured anew with them"
    with pytest.raises(ValueError, match=r"preset: got 'blanced'.*balanced"):
        Settings(presets=("blanced",))
    with pytest.raises(ValueError, match="--presets: got them with --no-loops"):
        Settings(presets=("balanced",), has_loops=False)


def test_cases_of_another_size_and_depth() -> None:
    (small,) = chosen_cases(("sd3-medium",), "cuda", size="512x768")
    assert (small.name, small.title) == (
        "sd3-medium-512x768",
        "Stable Diffusion 3 medium's dimensions, 512 x 768, bf16",
    )
    assert small.plan(small.schedule.config(0.5, 28)).num_tokens == 32 * 48
    assert case_named(small.name) == small
    (shallow,) = chosen_cases(("flux-dev",), "cuda", dtype="float32", depth=0.1)
    assert shallow.name == "flux-dev-depth0.1-float32"
    assert case_named(shallow.name) == shallow
    assert shallow.title == "FLUX.1 dev's dimensions, 2 of 19 + 4 of 38 blocks, 1024 x 1024, fp32"
    transformer, whole = shallow.outline().transformer, CASES["flux-dev"].outline().transformer
    assert (len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)) == (2, 4)
    assert 0.05 < transformer.num_parameters() / whole.num_parameters() < 0.15
    ratio = shallow.schedule.config(0.125, 28)
    limit, whole_limit = (case.plan(ratio).speedup_limit for case in (shallow, CASES["flux-dev"]))
    assert limit == pytest.approx(whole_limit, rel=0.05)
    (video,) = chosen_cases(("wan-1.3b",), "cuda", size="256x448x9", depth=0.2)
    assert (video.name, str(video.size)) == ("wan-1.3b-256x448x9-depth0.2", "256x448x9")
    assert case_named(video.name) == video
    assert chosen_cases(("sd3-medium",), "cuda", size="1024", depth=1.0) == [CASES["sd3-medium"]]
    assert "embedded" not in {case.name for case in chosen_cases((), "cuda", depth=0.5)}
    for name in ("sd3-medium-axb", "sd3-medium-depth0", "flux-depth0.1", "embedded-depth0.5", "depth0.1"):
        with pytest.raises(ValueError, match=f"--case: got '{name}'; allowed: embedded"):
            case_named(name)
    with pytest.raises(ValueError, match="--size: got 'big'; allowed: SIDE"):
        chosen_cases(("mid",), "cpu", size="big")
    with pytest.raises(ValueError, match="--depth: got 2; allowed: above 0 and up to 1"):
        chosen_cases(("mid",), "cpu", depth=2.0)
    with pytest.raises(ValueError, match="embedded: the model in the box is timed as a whole"):
        chosen_cases(("embedded",), "cpu", depth=0.5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", sorted(ONE_PER_ARCHITECTURE.values()))
def test_a_gpu_gives_figures_in_bfloat16(name: str) -> None:
    settings = dataclasses.replace(QUICK, device="cuda", modes=("eager", "compiled"), ratios=(0.25,))
    ran = benchmark(settings)
    assert ran.run([dataclasses.replace(CASES[name].tiny(), dtype="bfloat16")])
    rows = ran.results.cases[f"{name}-tiny"]["rows"]
    assert {row["mode"] for row in rows} == {"eager", "compiled"}
    if name != "lumina-next":  # whose tiny dense run holds a table at its peak that RAS does without
        assert rows[1]["memory"]["extra_bytes"] > 0
    profiled = [row["mode"] for row in rows if "profile" in row]
    assert profiled == ["compiled"] * 2, "the profiler comes last"


def test_a_model_with_parts_in_float32_keeps_what_it_computes() -> None:
    """Wan's modulation tables, its first parameters, stay in 32 bits; its keys are of 16."""
    case = dataclasses.replace(CASES["wan-1.3b"].tiny(), dtype="bfloat16")
    assert case.dimensions is not None
    transformer, size = case.outline().transformer, case.size
    assert next(transformer.parameters()).dtype == torch.float32
    assert compute_dtype(transformer) == torch.bfloat16
    num_tokens = ((size.num_frames - 1) // 4 + 1) * (size.height // 16) * (size.width // 16)
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    keys_and_values = 2 * transformer.config.num_layers * num_tokens * width * 2
    assert case.estimate()["kv_cache"] == case.num_rows * keys_and_values
