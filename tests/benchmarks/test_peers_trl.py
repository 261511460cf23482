"""`benchmarks/peers_trl.py` with a stand-in for TRL: what is given to it, and what is written of its steps."""

import argparse
import csv
import sys
from types import ModuleType, SimpleNamespace

import peers_table
import peers_trl
import pytest
from conftest import composed

from dash_exp.core.types import Problem, Prompt
from dash_exp.models import loading

SETTINGS = ["algo=no_gf", "kl.coef=0", "steps=2", "batch.prompts=4", "batch.group_size=4", "rollout.max_response_tokens=8"]
SETTINGS += ["data.train.size=64", "data.tests.in_dist.size=8", "data.tests.out_dist=null"]
SETTINGS += ["eval.every=2", "eval.n=2", "eval.temperature=1", "eval.top_p=1"]
ANSWER = [5, 6, 1]  # what the stand-in samples, EOS at its end


class Trainer:
    """Steps as GRPOTrainer has them: completions are sampled for `steps_per_generation` micro-batches at a time."""

    def __init__(self, model, reward_funcs, args, train_dataset, processing_class, callbacks):
        self.reward, self.args, self.rows, self.tokenizer = reward_funcs, args, list(train_dataset), processing_class
        self.callback, self.accelerator, self.prompts = callbacks[0], SimpleNamespace(process_index=0), []
        Trainer.last = self

    def _generate(self, rows):
        self.prompts += [row["prompt"] for row in rows]
        return [ANSWER for _ in rows]

    def _prepare_inputs(self, rows):
        rows = [row for row in rows for _ in range(self.args.num_generations)]
        ids = self._generate(rows)
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        self.rewards = self.reward(
            prompts=[row["prompt"] for row in rows],
            completions=texts,
            completion_ids=ids,
            problem_id=[row["problem_id"] for row in rows],
        )

    def train(self):
        args, rest = self.args, list(self.rows)
        self.callback.on_train_begin(None, None, None)
        for step in range(args.max_steps):
            per_call = args.per_device_train_batch_size * args.steps_per_generation // args.num_generations
            for _ in range(args.gradient_accumulation_steps // args.steps_per_generation):
                self._prepare_inputs([rest.pop(0) for _ in range(per_call)])
            self.callback.on_step_end(args, SimpleNamespace(global_step=step + 1), None)
        assert not rest


@pytest.fixture
def trl(monkeypatch):
    module = ModuleType("trl")
    module.GRPOTrainer, module.GRPOConfig = Trainer, lambda **given: SimpleNamespace(**given)
    monkeypatch.setitem(sys.modules, "trl", module)


@pytest.mark.parametrize(("coupled", "per_generation"), [(False, 4), (True, 1)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_is_recorded(coupled, per_generation, dtype, trl, tmp_path):
    cfg = composed(*SETTINGS, f"model.compute_dtype={dtype}")
    peers_trl.run(argparse.Namespace(out=tmp_path, batch=4, ranks=1, coupled=coupled), cfg)
    made = Trainer.last
    assert (made.args.gradient_accumulation_steps, made.args.steps_per_generation) == (4, per_generation)
    assert (made.args.bf16, made.args.learning_rate) == (dtype == "bfloat16", cfg.optimizer.lr)
    assert len(made.prompts) == 2 * 16 and made.prompts[0] == made.prompts[3] != made.prompts[4]
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2"]
    assert rows[0]["tokens/sampled"] == str(16 * len(ANSWER))
    with_prompts = 16 * len(ANSWER) + 4 * sum(len(made.tokenizer(row["prompt"]).input_ids) for row in made.rows[:4])
    assert rows[0]["tokens/trained"] == str(with_prompts)
    assert rows[0][peers_table.GREEDY] == "" and 0 <= float(rows[1][peers_table.SAMPLED]) <= 1
    assert all(float(rows[1][f"time/{phase}_s"]) >= 0 for phase in peers_table.PHASES)
    assert (tmp_path / "memory.json").exists()


def test_the_reward_reads_the_beginning_of_the_answer():
    """As in train.py: the prefill of the prompt stands in front of the completion."""
    prompts = [Prompt(Problem("a", "1+1", "2"), (3, 4), prefill="<t>"), Prompt(Problem("b", "2+2", "4"), (3,))]
    seen = []

    def reward(problems, texts):
        seen.extend(zip([p.id for p in problems], texts, strict=True))
        return SimpleNamespace(rewards=[0.5] * len(texts))

    measured = SimpleNamespace(tokens={"sampled": 0, "trained": 0})
    rewards = peers_trl.graded(reward, prompts, measured)
    assert rewards(completions=["x", "y"], problem_id=["b", "a"], completion_ids=[[1], [1, 2]]) == [0.5, 0.5]
    assert seen == [("b", "x"), ("a", "<t>y")]
    assert measured.tokens == {"sampled": 3, "trained": 3 + 1 + 2}


def test_prompts_that_trl_reads_otherwise_are_refused():
    tokenizer, cfg = loading.load_tokenizer(str(loading.ASSETS / "tiny")), composed()
    ids = tuple(tokenizer("3+4=").input_ids)
    problem = Problem("one", "3+4=", "7")
    assert peers_trl.as_text([Prompt(problem, ids)], tokenizer, cfg) == [{"prompt": "3+4=", "problem_id": "one"}]

    def with_a_beginning(text, **more):
        return SimpleNamespace(input_ids=[99, *tokenizer(text, **more).input_ids])

    with_a_beginning.decode = tokenizer.decode
    with pytest.raises(SystemExit, match=r"other tokens than train\.py in the prompt of problem one"):
        peers_trl.as_text([Prompt(problem, ids)], with_a_beginning, cfg)
    with pytest.raises(SystemExit, match=r"prompt\.stop"):
        peers_trl.as_text([], tokenizer, composed("prompt.stop=[x]"))
