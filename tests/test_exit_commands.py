"""Train, evaluate, sweep and measure a model with early exits, from end to end on drawn shapes."""

import csv
import importlib
import json

import numpy as np
import pytest

import train
from jaxseg import build, model_dir, trade_off
from jaxseg.errors import UserError
from jaxseg.inference import EvalSpec
from jaxseg.methods.dtop import Exit
from jaxseg.models.initial import draw
from jaxseg.models.network import shapes
from jaxseg.tools import bench, compare, forced, sweep

evaluation = importlib.import_module("eval")


def config_of(arg="smoke", **changes):
    config = importlib.import_module("configs.dtop_segvit_vitti_camvid").get_config(arg)
    config.update_from_flattened_dict(changes)
    return config


LOW = {"method.exit1.threshold": 0.2, "method.exit2.threshold": 0.2, "method.k": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dtop")
    train.train(config_of(**LOW), str(folder), "test")
    return folder


def test_evaluation_reports_dense_and_pruned(trained, capsys):
    out = trained / "with_exits"
    results = evaluation.evaluate(config_of(**LOW), str(trained), str(out))
    assert results["exit_layers"] == [1, 2] and len(results["kept_after_exit"]) == 2
    assert results["kept_after_exit"][1] < 1
    assert results["dense_images_per_second"] > 0 and 0 <= results["dense_miou"] <= 1
    for name in ("flops_ratio", "speedup", "efficiency"):
        assert results[name] > 0
    assert json.loads((out / "results.json").read_text())["exit_layers"] == [1, 2]
    parts = results["by_exit"]
    assert [part["layer"] for part in parts] == [1, 2, None] and parts[0]["pixels"] > 0
    for ours, whole in (("accuracy", "pixel_accuracy"), ("pixels", None)):
        total = sum(p["pixels"] * (p[ours] if whole else 1) for p in parts if p["pixels"])
        assert total == pytest.approx(results[whole] if whole else 1)
    assert {"difficulty.png", "kept.png"} < {p.name for p in (out / "exits").iterdir()}
    said = capsys.readouterr().out
    assert "efficiency" in said and "left after layer 2:" in said


def test_sweep_writes_a_row_per_combination(trained):
    found = sweep.sweep(config_of(), str(trained), ["1", "1+2"], [0.2, 1.0])
    assert [(r["exits"], r["threshold"]) for r in found["rows"]] == [
        ("1", 0.2), ("1", 1.0), ("1+2", 0.2), ("1+2", 1.0)
    ]  # fmt: skip
    for row in found["rows"]:
        if row["threshold"] == 1.0:  # nobody leaves
            assert row["miou"] == pytest.approx(found["dense"]["miou"], abs=1e-6)
            assert row["kept"] == [1.0] * len(row["kept"]) and row["flops_ratio"] < 1
    assert found["rows"][0]["kept"][0] < 1
    rows = list(csv.DictReader(trade_off.as_csv(found["rows"]).splitlines()))
    assert len(rows) == 4 and rows[2]["kept"].count(" ") == 1


def test_compare_measures_all_against_the_first_in_its_dense_form(trained, tmp_path):
    never = f"DToP={trained};method.exit1.threshold=1.0;method.exit2.threshold=1.0"
    found = compare.compare([f"dense={trained}", f"DToP={trained}", never])
    dense, early, late = found["rows"]
    assert dense["speedup"] == dense["flops_ratio"] == dense["efficiency"] == 1.0
    assert len(dense["tokens"]) == 1 and len(early["tokens"]) == 3
    assert early["tokens"][0] == dense["tokens"][0] and early["tokens"][2] < dense["tokens"][0]
    assert late["miou"] == pytest.approx(dense["miou"], abs=1e-9) and late["flops_ratio"] == 1.0
    assert early["speedup"] == pytest.approx(
        early["images_per_second"] / dense["images_per_second"]
    )
    assert compare.table(found["rows"]).count("\n| DToP |") == 2
    trade_off.picture(found["rows"][1:], dense, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 5000


def test_compare_reads_its_arguments():
    assert compare.parse("runs/a") == ("runs/a", "runs/a", {})
    assert compare.parse("A=runs/a;method.k=2;eval.resize=(8, 9);method.exit6.threshold=0.5") == (
        "A",
        "runs/a",
        {"method": {"k": 2, "exit6": {"threshold": 0.5}}, "eval": {"resize": (8, 9)}},
    )
    assert compare.parse("a;config.method.name=dtop")[2] == {"method": {"name": "dtop"}}
    for wrong in ("=a", "a=", "a;b", "a;=1"):
        with pytest.raises(UserError, match=wrong):
            compare.parse(wrong)
    with pytest.raises(UserError, match="two models or more"):
        compare.compare(["a"])


def test_compare_refuses_unknown_fields(trained):
    with pytest.raises(UserError, match=r"methd.*did you mean 'method'"):
        compare.contender(f"{trained};methd.name=dtop")


def test_sweep_wants_the_classes_of_the_model_and_exits_alone(trained, tmp_path):
    with pytest.raises(UserError, match="'svit' chooses tokens, which no threshold here changes"):
        sweep.sweep(config_of(**{"method.name": "svit"}), str(trained), [], [0.5])
    stored = json.loads((trained / "config.json").read_text())
    for field in ("names", "colours"):
        stored["classes"][field].reverse()
    (tmp_path / "config.json").write_text(json.dumps(stored))
    (tmp_path / "model.safetensors").symlink_to(trained / "model.safetensors")
    with pytest.raises(UserError, match="use the classes it was trained on"):
        sweep.sweep(config_of(), str(tmp_path), ["1"], [0.5])


def test_sweep_names_the_layers_there_are():
    with pytest.raises(UserError, match="no auxiliary head"):
        sweep.positions_of([], ())
    assert sweep.positions_of([], (5, 7)) == [(6,), (8,), (6, 8)]
    assert sweep.positions_of(["8+6", "8"], (5, 7)) == [(6, 8), (8,)]
    with pytest.raises(UserError, match=r"--exits=7: the heads of this model read layers \(6, 8\)"):
        sweep.positions_of(["7"], (5, 7))


def test_bench_forces_the_keep_rates(monkeypatch):
    monkeypatch.setattr(bench, "faster", lambda *_: ("one batch", 0.0))
    spec = build.segmenter_spec(config_of(**{"method.k": 1}), 2)
    params, stats = draw(*shapes(spec), 0)
    how = EvalSpec(mode="whole", crop=(160, 160), stride=(160, 160), batch_size=4)
    found = bench.bench(
        spec, params | stats, (0.6, 0.3), how, rounds=2, seconds=0.0, seed=0, bfloat16=False
    )
    # 100 tokens an image; one per class stays on top.
    np.testing.assert_allclose(found["kept"], (0.6, 0.3), atol=0.06)
    assert found["flops_ratio"] > 1 and found["programs"]["pruned"] >= 3
    assert found["programs"]["dense"] == 1  # one of the two ways ran
    assert found["compile_seconds"]["pruned"] > 0
    text = bench.table(found)
    assert "images/s" in text and f"{found['flops_ratio']:.3f}" in text


def test_gains_compare_every_round_with_itself():
    dense, pruned = np.array([2.0, 2.0, 4.0]), np.array([1.0, 0.5, 4.0])
    found = bench.gains("cpu", dense, pruned, np.array([2.0, 5.0, 1.0]))
    assert found["speedup_cpu"] == 2.0 and found["efficiency_cpu"] == 1.0
    assert found["seconds_cpu"] == {"dense": 2.0, "pruned": 1.0}


@pytest.mark.parametrize(("rounds", "batch"), [(9, 1), (3, 8)])
def test_rates_are_spread_around_their_means(rounds, batch):
    for keep in ((0.55, 0.40), (0.9, 0.3)):
        rates = forced.draw_rates(keep, rounds, batch, np.random.default_rng(0))
        assert rates.shape == (rounds, 2, batch)
        assert (rates[:, 1] <= rates[:, 0]).all() and (rates > 0).all() and (rates <= 1).all()
        np.testing.assert_allclose(rates.mean(axis=(0, 2)), keep, atol=0.05)
        assert rates[:, 1].max() - rates[:, 1].min() > 0.2


def test_heads_only_leaves_the_backbone_as_it_was(tmp_path):
    changes = {"optim.freeze": ("^vit",), "optim.lr": 0.1, "train.steps": 4}
    config = config_of(**(LOW | changes))
    train.train(config, str(tmp_path), "test")
    spec = build.segmenter_spec(config, 12)
    start, _ = draw(*shapes(spec), config.seed)
    after = model_dir.load(str(tmp_path)).arrays
    moved = {name for name in start if (after[name] != start[name]).any()}
    assert not [name for name in moved if name.startswith("vit.")]
    assert {f"heads.{i}.class_embed.kernel" for i in range(3)} <= moved


def test_ways_of_training():
    retrain, heads, finetune = (config_of(arg) for arg in ("retrain", "heads_only", ""))
    dense = importlib.import_module("configs.segvit_vitti_camvid").get_config()
    assert retrain.train.steps == dense.train.steps > finetune.train.steps == heads.train.steps
    assert retrain.optim.lr == dense.optim.lr > finetune.optim.lr
    assert heads.optim.freeze == ("^vit",) and not finetune.optim.freeze
    with pytest.raises(UserError, match="heads_only, retrain or smoke"):
        config_of("finetune")


# --- from the configuration to decisions


def exits_of(**changes):
    spec = build.segmenter_spec(config_of("", **changes), 11)
    return {head.taps[0] + 1: head.decide for head in spec.heads if head.decide}


def test_exits_are_what_the_fields_say():
    assert exits_of() == {6: Exit(0.95), 8: Exit(0.95)}
    ours = exits_of(**{"method.exit8.threshold": 0.9, "method.context": "remove"})
    assert ours == {6: Exit(0.95, "remove"), 8: Exit(0.9, "remove")}
    assert exits_of(**{"method.exit6.threshold": 1.0}) == {8: Exit(0.95)}
    assert exits_of(**{"method.name": "dense"}) == {}
    three = {"model.taps": (2, 5, 7, 11), "method.exit3.threshold": 0.99}
    assert exits_of(**three) == {3: Exit(0.99), 6: Exit(0.95), 8: Exit(0.95)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method.exit7.threshold": 0.5}, r"exit7.threshold=0.5: no auxiliary head reads layer 7"),
        ({"method.exit12.threshold": 0.5}, "exit12.threshold=0.5: no auxiliary head"),
        ({"model.head": "cascade"}, "cascade"),
        ({"method.name": "dtopp"}, "method.name='dtopp'"),
        ({"method.context": "topk"}, "method.context='topk'"),
        ({"method.exit6.threshold": 1.5}, "threshold=1.5"),
        (
            {"model.head": "conv", "model.head_up_scale": 2, "model.head_layers": 2},
            "head_up_scale=2",
        ),
        ({"model.head": "conv", "model.head_kernel": 3}, "config.model.head_kernel=3: where"),
        ({"model.aux_head": "conv", "model.head_kernel": 3}, "head_kernel=3: where tokens leave"),
        ({"model.head_kernel": 2}, "config.model.head_kernel=2: choose 1 or 3"),
        ({"model.aux_head": "fcn"}, "model.aux_head='fcn'"),
        (
            {"model.head": "conv", "model.aux_head": "atm", "model.aux_head_width": 20},
            "config.model.aux_head_width=20 is not a multiple of config.model.head_heads=3",
        ),
        (
            {"model.head": "conv", "model.aux_head": "atm", "model.aux_head_width": 192}
            | {"method.final_at_exit": True},
            "config.method.final_at_exit=True: what ATM exits hand on",
        ),
    ],
)
def test_impossible_exits_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        exits_of(**changes)


def test_released_auxiliary_heads_of_setr_grade_at_the_tokens():
    changes = {"model.head": "conv", "model.head_layers": 1, "model.head_up_scale": 4}
    changes |= {"model.aux_head": "conv", "model.aux_head_layers": 2}
    sizes = [h.sizes for h in build.segmenter_spec(config_of("", **changes), 11).heads]
    assert [(s.convs, s.up_scale) for s in sizes] == [(2, 1), (2, 1), (1, 4)]
    dense = build.segmenter_spec(config_of("", **changes, **{"method.name": "dense"}), 11)
    assert [h.sizes.up_scale for h in dense.heads] == [4, 4, 4]


def test_convolutions_over_neighbours_need_every_token():
    changes = {"model.head": "conv", "model.head_layers": 4, "model.head_kernel": 3}
    changes |= {"model.head_up_scale": 2, "model.aux_head": "conv", "model.aux_head_up_scale": 4}
    changes |= {"method.name": "dense"}
    heads = build.segmenter_spec(config_of("", **changes), 11).heads
    sizes = [(h.sizes.convs, h.sizes.kernel, h.sizes.up_scale) for h in heads]
    assert sizes == [(1, 3, 4), (1, 3, 4), (4, 3, 2)]
    with pytest.raises(UserError, match="head_kernel=3: where tokens leave early or are shared"):
        build.segmenter_spec(config_of("", **changes, **{"method.merge": "cts"}), 11)


def test_heads_may_be_mixed():
    spec = build.segmenter_spec(config_of("", **{"model.aux_head": "conv"}), 11)
    kinds = [type(head.sizes).__name__ for head in spec.heads]
    assert kinds == ["ConvSpec", "ConvSpec", "AtmSpec"] and spec.heads[0].sizes.weight == 0.4
