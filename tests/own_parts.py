"""Parts of a user's own, each wrong in one way: `_target_` names them in tests of what is refused."""

from dash_exp.algorithms.losses import TokenLoss
from dash_exp.rewards.base import Scores

NOT_CALLABLE = 3


def other_arguments(first, second, third, fourth, fifth):
    return first


def nothing(*_, **__):
    return None


def total(values, *_):
    return values.sum()


def by_deviation(rewards_PG):
    return (rewards_PG - rewards_PG.mean(1, keepdim=True)) / rewards_PG.std(1, keepdim=True)  # 0 / 0 where all are equal


def by_reward(rewards_PG):
    return 1 / rewards_PG


def by_distance(rewards_PG):
    mean_P1 = rewards_PG.mean(1, keepdim=True)
    return (rewards_PG - mean_P1) / (1 - mean_P1)  # 0 / 0 where all are right


def in_place(rewards_PG):
    rewards_PG -= rewards_PG.mean(1, keepdim=True)
    return rewards_PG


def filter_in_place(rewards_PG, advantages_PG):
    return advantages_PG.abs_() > 0.1


def no_booleans(rewards_PG, advantages_PG):
    return rewards_PG


def without_gradient(logprobs_BT, old_logprobs_BT, advantages_B, mask_BT):
    return TokenLoss(logprobs_BT.detach(), None)


def text(*_, **__):
    return "text"


def texts(*_, **__):
    return ["a", "b"]


def one_for_all(problems, texts):
    return Scores([1.0])


def longest_is_best(problems, texts):
    """Relative to the batch: it fails where all texts are empty."""
    return Scores([len(text) / max(map(len, texts)) for text in texts])


def words(problems, texts):
    return Scores(["good" for _ in texts])


def needs_a_text(problems, texts):
    return Scores([float(text[0]) for text in texts])
