import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import composed
from hydra.utils import instantiate
from special_tokens import made

from dash_exp.core.errors import UserError
from dash_exp.core.types import Completion
from dash_exp.distributed.ranks import Ranks
from dash_exp.evaluation.evaluator import Evaluator
from dash_exp.evaluation.measures import wilson
from dash_exp.rewards.base import Scores
from dash_exp.rewards.exact import ExactReward
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.hf import HFSampler


class Written:
    """A sampler of set answers: `greedy[problem]`, and `sampled[problem]` in a row."""

    version = 0

    def __init__(self, tokenizer, greedy, sampled):
        self.tokenizer, self.greedy, self.sampled = tokenizer, greedy, sampled

    def sample(self, prompts, group_size, sampling, key):
        texts = [
            t
            for p in prompts
            for t in ([self.greedy[p.problem.id]] if sampling.temperature == 0 else self.sampled[p.problem.id][:group_size])
        ]
        ids = [(*self.tokenizer(t).input_ids, self.tokenizer.eos_token_id)[: sampling.max_tokens] for t in texts]
        return [Completion(i, None, truncated=i[-1] != self.tokenizer.eos_token_id) for i in ids]


def written(tokenizer, prompts, **changes):
    names = [p.problem.id for p in prompts]  # the answer to each is 1
    greedy = dict(zip(names, ["A:1", "A:2", "A:1", "A:1 and more"], strict=True))
    sampled = dict(zip(names, [["A:1", "A:1", "A:2"], ["A:2", "A:3", "A:1"], ["A:2", "A:2", "A:1"], ["", "", ""]], strict=True))
    settings = {
        "sampler": Written(tokenizer, greedy, sampled),
        "rewards": {"t": ExactReward(r"A:(\S+)")},
        "tokenizer": tokenizer,
        "greedy": Sampling(5, 0.0),
        "n": 3,
        "k": (1, 2),
        "sampling": Sampling(5),
    }
    return Evaluator(**(settings | changes))


def test_summary_by_hand(tokenizer, prompts):
    summary = written(tokenizer, prompts)("t", prompts).summary()
    assert summary["accuracy"] == 3 / 4
    assert (summary["accuracy/low"], summary["accuracy/high"]) == wilson(3, 4)
    assert summary["length/mean_tokens"] == (4 + 4 + 4 + 5) / 4  # characters and the end, at most 5
    assert summary["length/truncated_fraction"] == 1 / 4
    # right of 3: 2, 1, 1, 0
    assert summary["avg@3"] == pytest.approx((2 + 1 + 1 + 0) / 3 / 4)
    assert summary["pass@1"] == pytest.approx(summary["avg@3"])
    # pass@2 = 1 - C(wrong, 2)/3: 1, 2/3, 2/3, 0
    assert summary["pass@2"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 4)
    # majorities: right, one of three, wrong, nobody votes
    assert summary["maj@3"] == pytest.approx((1 + 1 / 3) / 4)
    assert summary["sampled/length/mean_tokens"] == (4 * 9 + 3) / 12
    assert summary["sampled/length/truncated_fraction"] == 0
    assert all(summary[f"{m}/low"] <= summary[m] <= summary[f"{m}/high"] for m in summary if f"{m}/low" in summary)


def test_a_limit_of_a_test_set(tokenizer, prompts):
    """The completions, with their ends, have 4, 4, 4 and 13 tokens."""
    reward = ExactReward(r"A:(\S+)")
    evaluator = written(
        tokenizer, prompts, rewards={"t": reward, "short": reward, "long": reward}, max_tokens={"short": 3, "long": 99}
    )
    found = {test: evaluator(test, prompts) for test in ("t", "short", "long")}
    assert {test: e.greedy.tokens for test, e in found.items()} == {"t": [4, 4, 4, 5], "short": [3] * 4, "long": [4, 4, 4, 13]}
    assert [sum(e.greedy.truncated) for e in found.values()] == [1, 4, 0]
    assert max(found["short"].sampled.tokens) == 3


def test_cutting_into_batches_changes_nothing(policy, tokenizer, prompts):
    def evaluator(at_a_time):
        sampling = Sampling(5, 0.7, 0.95)
        return written(tokenizer, prompts, sampler=HFSampler(policy, tokenizer, 8), sampling=sampling, at_a_time=at_a_time)

    steps = []
    apart = evaluator(3)("t", prompts, lambda graded, greedy: steps.append((graded, len(greedy.correct))))
    assert apart == evaluator(None)("t", prompts)
    assert steps == [(3, 3), (4, 4), (7, 4), (10, 4), (13, 4), (16, 4)]  # greedy ones, then three of each problem
    assert len(set(apart.sampled.texts)) > 4  # the completions of a problem differ


@pytest.mark.parametrize(
    ("at_a_time", "n", "calls"),
    [
        (4, 3, [(4, 1), (1, 3), (1, 3), (1, 3), (1, 3)]),  # greedy ones in full batches, however many are sampled
        (6, 3, [(4, 1), (2, 3), (2, 3)]),
        (2, 3, [(2, 1), (2, 1), (1, 3), (1, 3), (1, 3), (1, 3)]),  # fewer than a problem has: one problem all the same
        (3, 0, [(3, 1), (1, 1)]),
        (None, 3, [(4, 1), (4, 3)]),  # all at once
    ],
)
def test_what_the_sampler_is_asked_for(tokenizer, prompts, at_a_time, n, calls):
    evaluator = written(tokenizer, prompts, at_a_time=at_a_time, n=n, k=())
    asked, sample = [], evaluator.sampler.sample
    evaluator.sampler.sample = lambda some, count, *how: asked.append((len(some), count)) or sample(some, count, *how)
    evaluator("t", prompts)
    assert asked == calls


def test_prompts_of_similar_length_are_sampled_together_and_results_put_back(tokenizer, prompts):
    """Prompts of 4, 12, 4 and 8 tokens: the longest first, those of one length in the order of the data set."""
    cut = [replace(p, ids=(p.ids * 3)[:n]) for p, n in zip(prompts, (4, 12, 4, 8), strict=True)]
    evaluator = written(tokenizer, cut, at_a_time=2, n=2, k=())
    asked, sample = [], evaluator.sampler.sample
    evaluator.sampler.sample = lambda some, *how: asked.append([cut.index(p) for p in some]) or sample(some, *how)
    done = evaluator("t", cut)
    assert asked == [[1, 3], [0, 2], [1], [3], [0], [2]]  # greedy, then two of one problem at a time
    assert done.problems == [p.problem for p in cut]
    assert done.greedy.texts == ["A:1", "A:2", "A:1", "A:1 a"]
    assert done.greedy.correct == [True, False, True, True]
    assert done.sampled.texts == ["A:1", "A:1", "A:2", "A:3", "A:2", "A:2", "", ""]
    assert done == written(tokenizer, cut, at_a_time=None, n=2, k=())("t", cut)


class Beside(Ranks):
    """A rank in a thread of its own. `given`: what each rank gives the others; they wait for each other at the `barrier`."""

    def __init__(self, index, given, barrier):
        super().__init__(index, len(given))
        self.given, self.barrier = given, barrier

    def gather(self, value):
        self.given[self.index] = value
        self.barrier.wait(60)
        found = list(self.given)
        self.barrier.wait(60)
        return found


@pytest.mark.parametrize("at_a_time", [None, 6])  # 6: two problems with three completions, so one of three ranks has none
def test_each_rank_grades_a_share_of_the_problems_and_all_have_the_whole(tokenizer, prompts, at_a_time):
    class Counting(ExactReward):
        def __init__(self):
            super().__init__(r"A:(\S+)")
            self.graded, self.read = [], []

        def __call__(self, problems, texts):
            self.graded += texts
            return replace(super().__call__(problems, texts), timeouts=1)

        def answers(self, texts):
            self.read.append(texts)
            return super().answers(texts)

    size, alone = 3, written(tokenizer, prompts, at_a_time=at_a_time)("t", prompts)
    given, barrier = [None] * size, threading.Barrier(size)
    rewards = [Counting() for _ in range(size)]

    def evaluated(index):
        ranks = Beside(index, given, barrier)
        return written(tokenizer, prompts, rewards={"t": rewards[index]}, at_a_time=at_a_time, ranks=ranks)("t", prompts)

    with ThreadPoolExecutor(size) as threads:
        found = list(threads.map(evaluated, range(size)))
    shares = [len(reward.graded) for reward in rewards]
    assert sum(shares) == 4 * (1 + 3)
    assert max(shares) <= 2 * (1 + 3)
    assert all(len(texts) % 3 == 0 for reward in rewards for texts in reward.read)  # all of a problem in one call
    assert found[0].timeouts > 0
    for each in found:
        assert each.greedy == replace(alone.greedy, timeouts=each.greedy.timeouts)
        assert each.sampled == replace(alone.sampled, timeouts=each.sampled.timeouts)
        assert each.summary() == alone.summary()


def test_the_seed_keys_the_noise_and_leaves_greedy_alone(policy, tokenizer, prompts):
    def texts(seed):
        evaluator = written(tokenizer, prompts, sampler=HFSampler(policy, tokenizer, 8), seed=seed)
        done = evaluator("t", prompts)
        return done.greedy.texts, done.sampled.texts

    assert texts(0) == texts(0)
    assert texts(0)[0] == texts(1)[0]
    assert texts(0)[1] != texts(1)[1]
    training = HFSampler(policy, tokenizer, 8).sample(prompts, 3, Sampling(5), (0, 0))  # the same seed, its first step
    assert texts(0)[1] != tokenizer.batch_decode([c.ids for c in training], skip_special_tokens=True)


def test_a_reward_sees_tags_that_are_special_tokens(prompts):
    """The default pattern of reward=format: with the tags left out of the text it would be 0 for ever."""
    tokenizer = made("<bos>", "<eos>")
    text = "<think>1 and 1</think><answer>2</answer>"
    ids = (*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id)
    sampler = SimpleNamespace(sample=lambda *_: [Completion(ids, None, truncated=False)])
    reward = instantiate(composed("reward=format").reward)
    done = Evaluator(sampler, {"t": reward}, tokenizer, Sampling(99, 0.0))("t", prompts[:1])
    assert (done.greedy.texts, done.greedy.rewards) == ([text], [1])


def test_greedy_alone_is_the_default(tokenizer, prompts):
    evaluator = written(tokenizer, prompts, n=0, k=(), sampling=None)
    summary = evaluator("t", prompts).summary()
    assert {name.removesuffix("/low").removesuffix("/high") for name in summary} == {
        "accuracy",
        "length/mean_tokens",
        "length/truncated_fraction",
    }


def test_no_majority_without_answers_and_failures_are_counted(tokenizer, prompts):
    def reward(problems, texts):
        return Scores([1.0] * len(texts), timeouts=1, errors=2)

    done = written(tokenizer, prompts, rewards={"t": reward}, at_a_time=6)("t", prompts)
    assert "maj@3" not in done.summary()
    assert done.summary()["avg@3"] == 1
    assert (done.timeouts, done.errors) == (3, 6)  # one call for greedy completions, two for three of each problem


def test_a_summed_reward_is_right_by_one_of_its_parts(tokenizer, prompts):
    class Sum:
        correct = "exact"

        def __call__(self, problems, texts):
            return Scores([1.1] * len(texts), components={"exact": [float("A:1" in t) for t in texts]})

    done = written(tokenizer, prompts, rewards={"t": Sum()})("t", prompts)
    assert done.accuracy == 3 / 4
    assert done.greedy.rewards == [1.1] * 4


def test_each_test_set_has_its_reward(tokenizer, prompts):
    """Greedy completions are A:1, A:2, A:1 and `A:1 a`: what is right, and whether there is a vote, is up to the test set."""

    def twos(problems, texts):
        return Scores([float("2" in text) for text in texts])

    evaluator = written(tokenizer, prompts, rewards={"ones": ExactReward(r"A:(\S+)"), "twos": twos})
    assert evaluator("ones", prompts).accuracy == 3 / 4
    assert evaluator("twos", prompts).accuracy == 1 / 4
    for test in ("ones", "twos"):
        measured = evaluator(test, prompts).summary()
        assert evaluator.names(test) == [name for name in evaluator.names("ones") if name in measured]
        assert ("maj@3" in measured) == (test == "ones")


@pytest.mark.parametrize(
    ("n", "k", "says"), [(2, (3,), "k=3: is more than n=2"), (-1, (), "n=-1"), (4, (0,), "k=0"), (2.0, (), "n=2")]
)
def test_counts_that_cannot_be(tokenizer, prompts, n, k, says):
    with pytest.raises(UserError, match=says):
        written(tokenizer, prompts, n=n, k=k)
