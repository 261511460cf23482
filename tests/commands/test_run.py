"""The real program, end to end, on a policy of some thousand parameters."""

import csv
import json

import pytest
from conftest import LETTERS, SMALL, composed
from transformers import AutoModelForCausalLM

from dash_exp.algorithms.losses import TokenLoss
from dash_exp.commands import build, rewards, run
from dash_exp.core.errors import UserError
from dash_exp.core.metrics import METRICS, read_metrics
from dash_exp.distributed.ranks import Ranks

PROMISED = ["status", "time/total_s", "tokens/sampled", "tokens/trained", "completions/sampled", "completions/kept"]
PROMISED += [f"accuracy/{d}/{when}" for d in ("in_dist", "out_dist") for when in ("base", "final")]
PROMISED += [f"time/{phase}_s" for phase in ("sample", "score", "update", "sync", "eval")]


def without_times(path):
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


@pytest.fixture
def small_run(tmp_path):
    def start(name, *overrides):
        return run.run(composed(*SMALL, *overrides), tmp_path / name), tmp_path / name

    return start


def test_what_a_run_leaves(small_run):
    result, folder = small_run("run", "steps=3", "eval.every=2")
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["status"] == "done"
    assert set(PROMISED) <= set(result)
    assert result["completions/sampled"] == 3 * 32
    rows = read_metrics(folder / "metrics.csv")
    assert [r["step"] for r in rows] == [0, 1, 2, 3]
    assert [r["accuracy/in_dist"] is not None for r in rows] == [True, False, True, True]
    measured = ["length/mean_tokens", "length/truncated_fraction"]
    assert set(rows[0]) == {*METRICS, *(f"eval/{test}/{name}" for test in ("in_dist", "out_dist") for name in measured)}
    assert sum(r["tokens/sampled"] or 0 for r in rows) == result["tokens/sampled"]
    phases = sum(result[f"time/{p}_s"] for p in ("sample", "score", "update", "sync", "eval"))
    assert 0 < phases <= result["time/total_s"]
    assert (folder / "config.yaml").read_text().count("${") == 0
    assert result["git"] is None or len(result["git"].removesuffix("+changes")) == 40
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    for checkpoint in ("last", "best"):
        AutoModelForCausalLM.from_pretrained(folder / "checkpoints" / checkpoint)


@pytest.mark.parametrize(("good", "said"), [(2, None), (1, "2 of 3 optimizer steps were left out"), (0, "3 of 3")])
def test_a_run_whose_steps_were_mostly_left_out_is_not_done(good, said, tmp_path, monkeypatch):
    """The loss is NaN from one outer step on; `in_a_row` does not end the run before. Its first call is the rehearsal's."""
    calls = []

    def loss(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT):
        calls.append(1)
        return TokenLoss(logprobs_BT * (1.0 if len(calls) <= 1 + good else float("nan")), None)

    monkeypatch.setattr("dash_exp.algorithms.losses.policy_gradient", loss)
    cfg = composed(
        *LETTERS, "steps=3", "eval.every=3", "algo=no_gf", "watch.nonfinite.in_a_row=null", "batch.micro_tokens=9999"
    )
    if said is None:
        assert run.run(cfg, tmp_path)["status"] == "done"
        return
    with pytest.raises(UserError, match=rf"^watch\.nonfinite: {said}.* NaN or infinite\. Lower optimizer\.lr"):
        run.run(cfg, tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "failed"


def test_before_the_first_step_the_policy_is_the_one_that_sampled_and_the_reference(tmp_path):
    """With a model that has dropout in its configuration: a ratio of 1 and a KL of 0, rounding aside."""
    cfg = composed(*LETTERS, "steps=1", "algo=no_gf")
    gpt2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 258, "n_positions": 2048}
    cfg.model.architecture = gpt2 | {"bos_token_id": 1, "eos_token_id": 1, "initializer_range": 0.3}
    run.run(cfg, tmp_path)
    row = read_metrics(tmp_path / "metrics.csv")[1]
    assert row["policy/ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert row["mismatch/max_nats"] < 1e-4
    assert row["kl/ref_nats_per_token"] == pytest.approx(0, abs=1e-9)
    assert row["kl/coef"] == 0.04


def test_completions_are_kept_with_what_was_done_to_them(small_run):
    _, folder = small_run("run")
    files = sorted((folder / "completions").iterdir())
    assert [f.name for f in files] == ["step_00001.jsonl", "step_00002.jsonl"]
    rows = [json.loads(line) for line in files[1].read_text().splitlines()]
    assert len(rows) == 32
    assert {r["policy_version"] for r in rows} == {1}
    assert {r["kept"] for r in rows} == {True, False}
    assert {r["reward"] for r in rows} == {0.0, 1.0}
    for row in rows:
        assert row["kept"] == (abs(row["advantage"]) > 0.1)
        assert row["reward"] == float(row["completion"].rpartition("A:")[2].split(" ")[0] == row["answer"])


def test_the_same_command_gives_the_same_metrics_and_another_seed_does_not(small_run):
    _, first = small_run("first")
    _, again = small_run("again")
    _, other = small_run("other", "seed=1")
    rows = read_metrics(first / "metrics.csv")[1:]
    assert all(r["grad/norm"] > 0 and r["completions/kept"] > 0 for r in rows)  # there was something to learn
    assert without_times(first / "metrics.csv") == without_times(again / "metrics.csv")
    assert without_times(first / "metrics.csv") != without_times(other / "metrics.csv")


def test_arms_start_from_the_same_problems_and_noise(small_run):
    """DASH and GRPO sample the same first completions, although GRPO takes them two prompts at a time."""
    _, dash = small_run("dash", "algo=dash")
    _, grpo = small_run("grpo", "algo=grpo")
    texts = [
        [json.loads(line)["completion"] for line in (folder / "completions/step_00001.jsonl").open()] for folder in (dash, grpo)
    ]
    assert texts[0] == texts[1]


def test_sft_takes_the_same_path(small_run):
    _, folder = small_run("sft", "algo=sft_h", "model=tiny_random", "steps=8")
    rows = read_metrics(folder / "metrics.csv")[1:]
    assert rows[-1]["loss/total"] < rows[0]["loss/total"]  # nats per token of the solutions
    first = json.loads((folder / "completions/step_00001.jsonl").read_text().splitlines()[0])
    assert first["policy_version"] is None
    assert first["completion"].endswith(f"A:{first['answer']}")
    assert first["reward"] == 1


def test_a_run_that_breaks_says_so(tmp_path, monkeypatch):
    def broken(*args):
        raise RuntimeError("out of cheese")

    monkeypatch.setattr("dash_exp.models.passes.micro_batches", broken)
    with pytest.raises(RuntimeError, match="cheese"):
        run.run(composed(*SMALL), tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "failed"
    assert "accuracy/in_dist/base" in result


def test_the_policy_learns(tmp_path):
    """A few steps of the shipped base raise the reward: the sign of the gradient is right."""
    run.run(composed("logger=csv", "steps=12", "batch.prompts=32", "eval.every=12", "data.tests.in_dist.size=64"), tmp_path)
    rows = read_metrics(tmp_path / "metrics.csv")[1:]
    first, last = (sum(r["reward/mean"] for r in part) / 4 for part in (rows[:4], rows[-4:]))
    assert last > first + 0.05


def test_several_test_sets_pass_at_k_and_a_summed_reward(small_run):
    """What `eval.n`, `+test@data.tests.NAME` and `reward.parts` add to the record, under their names."""
    format_ = [
        "+reward.parts.format._target_=dash_exp.rewards.format.FormatReward",
        "+reward.parts.format.pattern='.* A:[0-9]+'",
    ]
    exact = ["+reward.parts.exact._target_=dash_exp.rewards.exact.ExactReward", "+reward.parts.exact.pattern='A:(\\S+)'"]
    total = ["reward._target_=dash_exp.rewards.sums.SumReward", "~reward.pattern", "~reward.timeout_s", "+reward.correct=exact"]
    weights = ["+reward.weights.exact=1.0", "+reward.weights.format=0.5"]
    long = ["+test@data.tests.long=arithmetic", "data.tests.long.operands=[7,8]", "data.tests.long.size=8"]
    result, folder = small_run("run", "eval.n=4", "eval.k=[1,4]", "eval.every=2", *exact, *format_, *total, *weights, *long)
    rows = read_metrics(folder / "metrics.csv")
    assert rows[-1]["reward/mean"] == pytest.approx(rows[-1]["reward/exact"] + 0.5 * rows[-1]["reward/format"])
    assert 0 < rows[-1]["reward/exact"] < rows[-1]["reward/format"] <= 1  # wrong answers have the form as well
    for test, problems in (("in_dist", 16), ("out_dist", 16), ("long", 8)):
        for when in ("base", "final"):
            assert (result[f"accuracy/{test}/{when}"] * problems).is_integer()  # counts right answers, not sums of 1.5
            one, four = result[f"eval/{test}/pass@1/{when}"], result[f"eval/{test}/pass@4/{when}"]
            assert one == result[f"eval/{test}/avg@4/{when}"] <= four <= 1
        assert rows[-1][f"eval/{test}/pass@4"] == result[f"eval/{test}/pass@4/final"]
        assert rows[1][f"eval/{test}/pass@4"] is None
    assert result["accuracy/in_dist/base"] > 0
    first = json.loads((folder / "completions" / "step_00001.jsonl").read_text().splitlines()[0])
    assert first["reward"] == first["reward/exact"] + 0.5 * first["reward/format"]


def test_a_run_that_cannot_be_built_leaves_its_status(small_run, tmp_path):
    with pytest.raises(UserError, match="is not a regular expression"):
        small_run("run", "reward.pattern='('")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "failed"
    assert "is not a regular expression" in result["error"]


def test_a_rank_chooses_its_gpu_before_anything_is_put_on_one(monkeypatch):
    class BuiltError(Exception):
        """Raised in place of building a reward."""

    chosen: list[int] = []

    def made(cfg, key, *args, **kwargs):
        if key == "reward":
            raise BuiltError
        return built(cfg, key, *args, **kwargs)

    built = rewards.made
    monkeypatch.setattr(build.torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(rewards, "made", made)
    cfg = composed(*SMALL, "trainer=ddp", "trainer.accelerator=gpu", "trainer.devices=4")
    with pytest.raises(BuiltError):
        build.build(cfg, Ranks(3, 4))
    assert chosen == [3]


def test_the_reference_of_a_kl_in_the_reward_is_on_the_device_of_the_rank(monkeypatch):
    asked: list[str] = []

    def own_device(accelerator):
        asked.append(accelerator)
        return build.torch.device("meta")

    monkeypatch.setattr(build.loading, "own_device", own_device)
    parts = build.build(composed(*SMALL, "kl.place=reward"))
    assert parts.data.scoring.kl_penalty.reference.device.type == "meta" and asked == ["cpu"]
    assert parts.module.policy.device.type == "cpu" and parts.module.reference is None
    build.close(parts)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_in_16_bits_on_a_cpu_without_another_setting(small_run, dtype):
    """Attention is in 32 bits there, and gives its output in the type of the layer after it."""
    result, folder = small_run("run", f"model.dtype={dtype}", "rollout.max_response_tokens=16", "steps=1")
    assert result["status"] == "done"
    row = read_metrics(folder / "metrics.csv")[-1]
    assert row["mismatch/mean_nats"] < 0.03
    assert result["watch/mismatch"] == 0  # the limit is that of 16 bits
