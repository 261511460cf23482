import json
import threading
from contextlib import nullcontext

import pytest
import special_tokens
from completions import plain
from conftest import NANO, composed
from filelock import FileLock

from dash_exp.commands import run
from dash_exp.core.errors import UserError
from dash_exp.core.metrics import read_metrics
from dash_exp.core.types import Completion, Problem, Prompt
from dash_exp.models import loading
from dash_exp.rewards.exact import ExactReward
from dash_exp.rewards.tags import answer_part
from dash_exp.sampling.base import Sampling
from dash_exp.sampling.teacher import Teacher, TeacherSampler

SAMPLING = Sampling(20)
PROBLEMS = [Prompt(Problem(f"id{i}", f"{i}+1=", str(i + 1)), (5,)) for i in range(6)]


class Scripted:
    """Stands in for the teacher's sampler: right from the `right_at`-th attempt on, for every problem."""

    def __init__(self, tokenizer, right_at=0, truncated=False):
        self.tokenizer, self.right_at, self.truncated = tokenizer, right_at, truncated
        self.asked = []

    def sample(self, prompts, group_size, sampling, key):
        self.asked.append(([p.problem.id for p in prompts], self.tokenizer.decode(prompts[0].ids), key))
        answers = [p.problem.answer if key[1] >= self.right_at else "0" for p in prompts]
        ids = [tuple(self.tokenizer(f"try {key[1]} A:{a}").input_ids) for a in answers]
        return [Completion(i if self.truncated else (*i, self.tokenizer.eos_token_id), None, self.truncated) for i in ids]


@pytest.fixture
def folder(policy, tokenizer, tmp_path):
    policy.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.fixture
def make(folder, tokenizer, tmp_path):
    def make(scripted, data="sums", chunk=256, **settings):
        teacher = Teacher(**{"path": str(folder), "tokenizer": str(folder), **settings})
        return TeacherSampler(
            tokenizer,
            ExactReward(r"A:\s*(\S+)"),
            teacher,
            str(tmp_path / "traces" / "t.jsonl"),
            data,
            lambda **parts: scripted,
            chunk=chunk,
        )

    return make


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "traces" / "t.jsonl").read_text().splitlines()]


def texts(tokenizer, completions):
    return [tokenizer.decode(c.ids) for c in completions]


def test_traces_are_sampled_once_and_then_read(make, tokenizer, tmp_path):
    first, second = Scripted(tokenizer), Scripted(tokenizer)
    wrote = make(first).sample(PROBLEMS[:3], 2, SAMPLING, (0, 0))
    assert texts(tokenizer, wrote)[::2] == texts(tokenizer, wrote)[1::2] == [f"try 0 A:{i}<eos>" for i in (1, 2, 3)]
    assert all(c.logprobs is None and not c.truncated for c in wrote)
    assert plain(make(second).sample(PROBLEMS[:3], 2, SAMPLING, (7, 5))) == plain(wrote)
    assert second.asked == []
    header, *rows = lines(tmp_path)
    assert (header["teacher"], header["data"], len(header["weights"])) == ("teacher", "sums", 64)
    assert [(r["problem"], r["trace"]) for r in rows] == [("id0", "try 0 A:1"), ("id1", "try 0 A:2"), ("id2", "try 0 A:3")]


def test_only_missing_problems_are_sampled_some_at_a_time(make, tokenizer, tmp_path):
    make(Scripted(tokenizer)).sample(PROBLEMS[:2], 1, SAMPLING, (0, 0))
    more = Scripted(tokenizer)
    make(more, chunk=3).sample(PROBLEMS[::-1], 1, SAMPLING, (0, 0))
    assert [ids for ids, _, _ in more.asked] == [["id5", "id4", "id3"], ["id2"]]
    assert [r["problem"] for r in lines(tmp_path)[1:]] == ["id0", "id1", "id5", "id4", "id3", "id2"]


def test_a_problem_is_asked_until_the_reward_accepts(make, tokenizer, tmp_path):
    scripted = Scripted(tokenizer, right_at=1)
    assert texts(tokenizer, make(scripted, tries=4).sample(PROBLEMS[:1], 1, SAMPLING, (0, 0))) == ["try 1 A:1<eos>"]
    assert [key for _, _, key in scripted.asked] == [(0, 0), (0, 1)]
    assert [(r["accepted"], r["tries"]) for r in lines(tmp_path)[1:]] == [(True, 2)]


@pytest.mark.parametrize(("right_at", "truncated"), [(9, False), (0, True)])
def test_where_no_trace_is_accepted_the_last_stays(make, tokenizer, tmp_path, right_at, truncated):
    (completion,) = make(Scripted(tokenizer, right_at, truncated), tries=2).sample(PROBLEMS[:1], 1, SAMPLING, (0, 0))
    assert completion.truncated == truncated
    assert tokenizer.decode(completion.ids).endswith("<eos>") != truncated
    assert [(r["accepted"], r["tries"], r["complete"]) for r in lines(tmp_path)[1:]] == [(False, 2, not truncated)]


def test_the_limit_of_the_policy_cuts_a_trace(make, tokenizer):
    (completion,) = make(Scripted(tokenizer)).sample(PROBLEMS[:1], 1, Sampling(4), (0, 0))
    assert (tokenizer.decode(completion.ids), completion.truncated) == ("try ", True)


def test_a_trace_stands_behind_the_separator_and_ends_once(make, tokenizer, tmp_path):
    sampler = make(Scripted(tokenizer))
    sampler.separator = "\n"
    assert texts(tokenizer, sampler.sample(PROBLEMS[:1], 1, SAMPLING, (0, 0))) == ["\ntry 0 A:1<eos>"]
    assert lines(tmp_path)[1]["trace"] == "try 0 A:1"  # the file keeps what the teacher wrote


def test_two_runs_add_to_one_file(make, tokenizer, tmp_path):
    one, other = make(Scripted(tokenizer)), make(late := Scripted(tokenizer))
    one.sample(PROBLEMS[:2], 1, SAMPLING, (0, 0))
    other.sample(PROBLEMS[:4], 1, SAMPLING, (0, 0))
    assert [ids for ids, _, _ in late.asked] == [["id2", "id3"]]
    one.sample(PROBLEMS, 1, SAMPLING, (0, 0))
    assert [r["problem"] for r in lines(tmp_path)[1:]] == [f"id{i}" for i in range(6)]


def test_a_torn_last_line_is_mended(make, tokenizer, tmp_path):
    make(Scripted(tokenizer)).sample(PROBLEMS[:3], 1, SAMPLING, (0, 0))
    file = tmp_path / "traces" / "t.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    again = Scripted(tokenizer)
    make(again).sample(PROBLEMS[:3], 1, SAMPLING, (0, 0))
    assert [ids for ids, _, _ in again.asked] == [["id2"]]
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.replace(b'"trace": "try 0 A:2"', b'"trace": '), r"at byte \d+: is not a line of a file of traces"),
        (lambda b: b.replace(b'"try 0 A:2"', b"5"), "its field trace is not of type str"),
        (lambda b: b.replace(b'"trace"', b'"track"'), "a line needs the fields problem, prompt, trace"),
        (lambda b: b"", "has no header"),
        (lambda b: b"half a hea", "has no header"),
        (lambda b: b'{"question": "1+1?"}\n', "is not a line of a file of traces"),
    ],
)
def test_a_file_that_is_broken_otherwise_is_refused(make, tokenizer, tmp_path, change, message):
    make(Scripted(tokenizer)).sample(PROBLEMS[:3], 1, SAMPLING, (0, 0))
    file = tmp_path / "traces" / "t.jsonl"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match=message):
        make(Scripted(tokenizer))


def test_a_place_that_cannot_hold_the_file_is_refused(make, tokenizer, tmp_path):
    (tmp_path / "traces").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"^teacher\.file=.*t\.jsonl: cannot be read and written"):
        make(Scripted(tokenizer))
    (tmp_path / "traces").unlink()
    (tmp_path / "traces" / "t.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot be read and written \(Is a directory\)"):
        make(Scripted(tokenizer))


def test_two_runs_take_turns_with_the_file(make, tokenizer, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dash_exp.sampling.teacher.WAIT_S", 0.2)
    sampler = make(Scripted(tokenizer))
    other = FileLock(f"{tmp_path}/traces/t.jsonl.lock", thread_local=False)
    other.acquire()
    threading.Timer(1.0, other.release).start()
    sampler.sample(PROBLEMS[:1], 1, SAMPLING, (0, 0))
    assert "waiting for another run that is writing" in capsys.readouterr().out
    assert len(lines(tmp_path)) == 2


def test_a_file_of_other_settings_is_refused_by_what_differs(make, tokenizer, folder):
    make(Scripted(tokenizer)).sample(PROBLEMS[:1], 1, SAMPLING, (0, 0))
    with pytest.raises(UserError, match=r"sampled with temperature 1.0, not 0.5; seed 0, not 3\. Delete the file"):
        make(Scripted(tokenizer), temperature=0.5, seed=3)
    with pytest.raises(UserError, match="data 'sums', not 'others'"):
        make(Scripted(tokenizer), data="others")
    loading.load_policy("", architecture={**NANO, "initializer_range": 0.1}).save_pretrained(folder)
    with pytest.raises(UserError, match="sampled with weights '"):
        make(Scripted(tokenizer))


def test_a_problem_that_has_changed_is_sampled_again(make, tokenizer, tmp_path):
    make(Scripted(tokenizer)).sample(PROBLEMS[:1], 1, SAMPLING, (0, 0))
    changed = [Prompt(Problem("id0", "2*2=", "4"), (5,))]
    assert texts(tokenizer, make(Scripted(tokenizer)).sample(changed, 1, SAMPLING, (0, 0))) == ["try 0 A:4<eos>"]
    assert [(r["prompt"], r["trace"]) for r in lines(tmp_path)[1:]] == [("0+1=", "try 0 A:1"), ("2*2=", "try 0 A:4")]
    again = make(last := Scripted(tokenizer)).sample([*changed, *PROBLEMS[:1]], 1, SAMPLING, (0, 0))
    assert (texts(tokenizer, again), last.asked) == (["try 0 A:4<eos>", "try 0 A:1<eos>"], [])


def test_what_the_teacher_reads(make, tokenizer, folder, tmp_path):
    make(plain := Scripted(tokenizer), template="Work out {prompt}").sample(PROBLEMS[:1], 1, SAMPLING, (0, 0))
    assert plain.asked[0][1] == "Work out 0+1="
    file = tmp_path / "traces" / "t.jsonl"
    file.unlink()
    with pytest.raises(UserError, match="has no chat template"):
        make(Scripted(tokenizer), chat=True).sample(PROBLEMS[3:4], 1, SAMPLING, (0, 0))
    chatty = loading.load_tokenizer(str(folder))
    chatty.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    chatty.save_pretrained(folder)
    make(chat := Scripted(tokenizer), template="{prompt}!", chat=True).sample(PROBLEMS[:1], 1, SAMPLING, (0, 0))
    several = Prompt(Problem("id0", "0+1=", "1", messages=(("system", "Add."), ("user", "0+1="))), (5,))
    make(chat, template="{prompt}!", chat=True).sample([several], 1, SAMPLING, (0, 0))
    assert [asked for _, asked, _ in chat.asked] == ["<user>0+1=!<assistant>", "<system>Add.<user>0+1=!<assistant>"]


def test_what_the_teachers_chat_template_has_begun_is_once_in_the_trace(make, tokenizer, folder, tmp_path):
    """As `<think>` in DeepSeek-R1's: the policy learns it where its own prompt does not end with it."""
    chatty = loading.load_tokenizer(str(folder))
    chatty.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    chatty.chat_template += "{% if add_generation_prompt %}<assistant><think>{% endif %}"
    chatty.save_pretrained(folder)
    sampler, problem = make(scripted := Scripted(tokenizer), template="{prompt}", chat=True), PROBLEMS[0].problem
    grade, seen = sampler.reward, []
    sampler.reward = lambda problems, texts: seen.extend(texts) or grade(problems, texts)
    bare, opened = (Prompt(problem, tuple(tokenizer(text).input_ids)) for text in ("0+1=", "0+1=<think>"))
    begun = Prompt(problem, opened.ids, prefill="<think>")
    found = texts(tokenizer, sampler.sample([bare, opened, begun], 1, SAMPLING, (0, 0)))
    assert found == ["<think>try 0 A:1<eos>", "try 0 A:1<eos>", "try 0 A:1<eos>"]
    assert [asked for _, asked, _ in scripted.asked] == ["<user>0+1=<assistant><think>"]
    assert {*seen} == {lines(tmp_path)[1]["trace"]} == {"<think>try 0 A:1"}


@pytest.mark.parametrize("prefill", ["<think>", "So: "])
def test_right_traces_that_a_begun_thought_would_hide_are_refused_and_kept(prefill, make, tokenizer, tmp_path):
    sampler = make(Scripted(tokenizer))
    grade = sampler.reward
    sampler.reward = lambda problems, texts: grade(problems, [answer_part(text) for text in texts])
    refused = pytest.raises(UserError, match=r"^problem id0: its prompt begins the answer with '<think>', behind which")
    with refused if prefill == "<think>" else nullcontext():
        sampler.sample([Prompt(p.problem, p.ids, prefill=prefill) for p in PROBLEMS[:2]], 1, SAMPLING, (0, 0))
    assert [row["accepted"] for row in lines(tmp_path)[1:]] == [True, True]


def test_a_teacher_without_a_template_gets_the_prompts_of_the_run(make, tokenizer, tmp_path):
    """With their stop strings and their prefill, which the reward sees; what it writes is trained as it is."""
    scripted = Scripted(tokenizer)
    scripted.sample = lambda prompts, *more: stops.append(more[1].stop) or Scripted.sample(scripted, prompts, *more)
    stops, seen = [], []
    sampler = make(scripted, template=None)
    sampler.separator, grade = "\n", sampler.reward
    sampler.reward = lambda problems, texts: seen.extend(texts) or grade(problems, texts)
    ids = tuple(tokenizer("Add: 0+1=So").input_ids)
    prompt = Prompt(PROBLEMS[0].problem, ids, prefill="So", lead="Add: 0+1=So")
    assert texts(tokenizer, sampler.sample([prompt], 1, SAMPLING, (0, 0))) == ["try 0 A:1<eos>"]
    assert scripted.asked[0][1] == lines(tmp_path)[1]["prompt"] == "Add: 0+1=So"
    sampler.sample([prompt], 1, Sampling(20, stop=("!",)), (0, 0))
    other = Prompt(PROBLEMS[0].problem, tuple(tokenizer("Sum: 0+1=").input_ids))
    sampler.sample([other, prompt], 1, SAMPLING, (0, 0))  # of which the second is there
    assert [asked for _, asked, _ in scripted.asked] == ["Add: 0+1=So", "Add: 0+1=So", "Sum: 0+1="]
    assert (stops, seen) == ([(), ("!",), ()], ["Sotry 0 A:1", "Sotry 0 A:1", "try 0 A:1"])


def test_a_trace_that_a_stop_string_ended_has_no_end_of_sequence(make, tokenizer, tmp_path):
    """As a completion of the policy, which a stop string ends."""
    scripted = Scripted(tokenizer)
    ids = tokenizer("A:1!").input_ids
    scripted.sample = lambda prompts, *more: [Completion(ids, None, truncated=False, stopped=True)]
    sampling = Sampling(20, stop=("!",))
    for sampler in (make(scripted, template=None), make(Scripted(tokenizer), template=None)):  # written, and read
        (completion,) = sampler.sample(PROBLEMS[:1], 1, sampling, (0, 0))
        assert (tokenizer.decode(completion.ids), completion.stopped, completion.truncated) == ("A:1!", True, False)
    (cut,) = make(scripted, template=None).sample(PROBLEMS[:1], 1, Sampling(2, stop=("!",)), (0, 0))
    assert (tokenizer.decode(cut.ids), cut.stopped, cut.truncated) == ("A:", False, True)


def test_a_teacher_of_other_tokens_cannot_have_the_prompts_of_the_run(make, folder):
    other = special_tokens.made()
    other.save_pretrained(folder)
    with pytest.raises(UserError, match=r"teacher\.template=null: gives the teacher the token ids"):
        make(None, template=None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "no place"}, r"teacher\.template=no place"),
        ({"tries": 0}, r"teacher\.tries=0: is too small"),
        ({"temperature": 0, "tries": 2}, r"teacher\.tries=2: gives the same trace every time at temperature 0"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        Teacher("x", "x", **settings)


def test_sft_m_learns_from_right_traces_alone(tmp_path):
    """The real program: half of the problems get a wrong trace from a poor teacher, and none of those is kept."""
    small = ["logger=csv", "steps=2", "batch.prompts=32", "data.train.size=64", "data.tests.in_dist.size=8"]
    small += ["data.tests.out_dist.size=8", "teacher.path=${asset:tiny}", "teacher.tries=1"]
    small += [f"teacher.file={tmp_path}/traces.jsonl", "algo=sft_m"]
    run.run(composed(*small), tmp_path / "one")
    rows = [json.loads(line) for line in (tmp_path / "one/completions/step_00001.jsonl").open()]
    assert {(r["reward"], r["kept"]) for r in rows} == {(0.0, False), (1.0, True)}
    written = (tmp_path / "traces.jsonl").read_bytes()
    run.run(composed(*small, "seed=1"), tmp_path / "two")
    assert (tmp_path / "traces.jsonl").read_bytes() == written  # the 64 problems were all there
    losses = [r["loss/total"] for r in read_metrics(tmp_path / "one/metrics.csv")[1:]]
    assert all(0 < loss < 3 for loss in losses)


@pytest.mark.parametrize("form", [[], ["prompt.text='{prompt} '", "prompt.prefill='1'"]])
def test_a_policy_that_is_its_own_teacher(form, tmp_path):
    """The real program, with teacher=itself: it is asked as it is trained and evaluated."""
    small = ["logger=csv", "steps=1", "batch.prompts=16", "data.train.size=16", "data.tests.in_dist.size=8", *form]
    small += ["data.tests.out_dist.size=8", f"teacher.file={tmp_path}/traces.jsonl", "algo=sft_m", "teacher=itself"]
    run.run(composed(*small), tmp_path / "one")
    rows = [json.loads(line) for line in (tmp_path / "one/completions/step_00001.jsonl").open()]
    traces = {row["problem"]: row for row in map(json.loads, (tmp_path / "traces.jsonl").read_text().splitlines()[1:])}
    assert len(traces) == len(rows) == 16
    begun = "1" if form else ""
    for row in rows:
        trace = traces[row["problem"]]
        assert row["completion"] == begun + trace["trace"]
        assert trace["prompt"].endswith(" 1" if form else "=")
    if not form:
        assert any(row["kept"] for row in rows)
