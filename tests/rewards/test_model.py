import pytest
import torch
from conftest import save_scorer
from problems import problem
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from dash_exp.core.errors import UserError
from dash_exp.core.types import Problem
from dash_exp.rewards.base import correct
from dash_exp.rewards.model import ModelReward


def by_hand(folder, ids):
    """The logit of one unpadded row, by the model itself."""
    scorer = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return float(scorer(input_ids=torch.tensor([ids])).logits[0, 0])


def test_model_reward_is_the_logit_whatever_the_batches(tmp_path, tokenizer):
    folder = save_scorer(tmp_path)
    texts = ["7", "a longer one: 7", "", "8 and some more"]
    logits = [by_hand(folder, tokenizer("?" + t).input_ids) for t in texts]
    assert len({round(logit, 3) for logit in logits}) == 4
    for max_tokens in (1, 20, 1000):
        reward = ModelReward(str(folder), squash=False, accept_above=sorted(logits)[1], max_tokens=max_tokens, device="cpu")
        scores = reward([problem("7")] * 4, texts)
        assert scores.rewards == pytest.approx(logits, abs=1e-4)
    squashed = ModelReward(str(folder), device="cpu")([problem("7")] * 4, texts)
    assert squashed.rewards == pytest.approx(torch.tensor(logits).sigmoid().tolist(), abs=1e-4)
    assert correct(squashed, reward) == [logit > 0 for logit in logits]


CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def test_model_reward_in_a_chat_template(tmp_path, tokenizer):
    folder = save_scorer(tmp_path, CHAT)
    for chat, text in ((True, "<user>?<assistant>7"), (False, "?7")):
        scores = ModelReward(str(folder), chat=chat, squash=False, device="cpu")([problem("7")], ["7"])
        assert scores.rewards == pytest.approx([by_hand(folder, tokenizer(text).input_ids)], abs=1e-4)


NO_SYSTEM = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
TALK = (("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"))


@pytest.mark.parametrize(
    ("template", "messages", "read"),
    [
        (CHAT, TALK, "<system>s<user>a<assistant>b<user>c<assistant>7"),
        (CHAT, (*TALK, ("assistant", "7")), "<system>s<user>a<assistant>b<user>c<assistant>7"),  # the answer is begun
        (NO_SYSTEM, TALK, "<user>s\n\na<assistant>b<user>c<assistant>7"),
        (None, TALK, "c7"),
    ],
)
def test_the_whole_conversation_is_read(tmp_path, tokenizer, template, messages, read):
    reward = ModelReward(str(save_scorer(tmp_path, template)), squash=False, device="cpu")
    scores = reward([Problem("p", "c", "", messages=messages)], ["7"])
    assert scores.rewards == pytest.approx([by_hand(tmp_path, tokenizer(read).input_ids)], abs=1e-4)


@pytest.mark.parametrize(
    ("template", "wrong"),
    [
        ("{{ raise_exception('only one turn') if messages | length > 2 }}" + CHAT, "only one turn"),
        ("{{ messages[-2].content }}{{ messages[-1].content }}", r"leaves out a text of the conversation \('s'\)"),
    ],
)
def test_a_template_that_refuses_a_conversation_or_loses_a_text(tmp_path, template, wrong):
    reward = ModelReward(str(save_scorer(tmp_path, template)), device="cpu")
    with pytest.raises(UserError, match=rf"^reward\.chat=true: .*{wrong}.*\. Write reward\.chat=false\.$"):
        reward([Problem("p", "c", "", messages=TALK)], ["7"])


def test_what_a_model_cannot_read_is_an_error(tmp_path):
    reward = ModelReward(str(save_scorer(tmp_path, max_position_embeddings=16)), accept_above=-1.0, device="cpu")
    scores = reward([problem("7")] * 2, ["x" * 16, "x" * 15])  # the prompt takes one token
    assert (scores.rewards[0], scores.errors) == (0, 1)
    assert scores.rewards[1] > 0
    assert correct(scores, reward) == [False, True]


def test_folders_that_are_no_reward_model(tmp_path, policy: PreTrainedModel, tokenizer):
    with pytest.raises(UserError, match=r"reward\.path=.*gives 2 logits"):
        ModelReward(str(save_scorer(tmp_path / "two", num_labels=2)))
    policy.config.num_labels = 1
    policy.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    with pytest.raises(UserError, match=r"has no weights for score\.weight"):
        ModelReward(str(tmp_path / "policy"))
    with pytest.raises(UserError, match=r"^reward\.path="):
        ModelReward(str(tmp_path / "nowhere"))
    for setting in ({"device": "abacus"}, {"dtype": "int8"}):
        with pytest.raises(UserError, match=rf"reward\.{next(iter(setting))}="):
            ModelReward(str(tmp_path / "two"), **setting)


@pytest.mark.gpu
def test_model_reward_on_a_gpu(tmp_path):
    folder = str(save_scorer(tmp_path))
    on = {d: ModelReward(folder, device=d)([problem("7")] * 3, ["7", "8", "nine"]).rewards for d in ("cpu", "cuda", "auto")}
    assert on["cuda"] == on["auto"] == pytest.approx(on["cpu"], abs=1e-3)


@pytest.mark.parametrize(("device", "expected"), [("auto", "cuda:3"), ("cuda", "cuda:3"), ("cpu", "cpu")])
def test_each_rank_has_its_reward_model_on_its_own_gpu(tmp_path, monkeypatch, device, expected):
    """Rank 3, whose GPU is the current one (see `Ranks.use_gpu`)."""
    went: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: went.append(torch.device(device)))
    ModelReward(str(save_scorer(tmp_path)), device=device)
    assert went[-1] == torch.device(expected)
