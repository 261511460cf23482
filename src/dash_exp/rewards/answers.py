r"""Finds the final answer in a text. Completions, written solutions and gold answers are read by these functions alike.

What is found is a piece of LaTeX or plain text; `grading` compares it. Nothing here parses mathematics, and every search takes
time linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from dash_exp.rewards.quantities import FORMULA_WORDS
from dash_exp.rewards.tags import in_answer_tag, without_thought

TAIL = 5_000  # characters: without a box or a line of ####, an answer is looked for only so far from the end

BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # \{ and \} are characters of the answer
# What TeX takes where no { follows: a command, or one character. A number counts as one, since who writes `\boxed 12` means 12;
# digits behind \frac and \sqrt belong to them.
TOKEN = re.compile(r"\\[dt]?frac\s*[0-9]{2}|\\sqrt\s*[0-9]|\\[a-zA-Z]+|-?[0-9]+(?:[.,][0-9]+)*|[a-zA-Z](?![a-zA-Z])")
HOLLOW = re.compile(r"(?:\\[a-zA-Z]+\s*\{\s*\}|\\[ ,;:!]|[\s${}~.,])*")  # in `\boxed{}` and `\boxed{\text{ }}`

# Between boxes, or formulas, that are one answer: spaces, marks of formulas, commas, "and" and "or", also as \text{and}.
JOINT = re.compile(
    r"(?:[\s$,;&*]|\\[()\[\],;:! ]|\\\\|\\q?quad(?![a-zA-Z])|\b(?:and|or)\b"
    r"|\\(?:text[a-z]*|mbox|mathrm)\s*\{[\s,]*(?:and|or)?[\s,]*\})*"
)
JOINT_SIGN = re.compile(r"(?<!\\)[,;&]|quad|and|or")  # one of these must be there: white space alone divides
HASHES = re.compile(r"####(?!#)[ \t]*\n?[ \t]*(\S[^\n]*)")  # GSM8K's last line; also Markdown's heading "#### Step 2"
HEADING = re.compile(r"[0-9]+[.):]\s+[A-Za-z]")  # "1. Add the numbers"
# "The answer to the given problem is", without digits and without words by which it answers something else than the problem.
NOT_FINAL = "(?<!initial )(?<!partial )(?<!intermediate )(?<!previous )(?<!wrong )(?<!incorrect )"
ELSE = "is|are|parts?|steps?|first|second|third|next|previous|other|each|both|which|what|how|if|when"
TO_WHAT = rf"(?:\s+(?:to|for)(?:\s+(?!(?:{ELSE})\b)[a-z][a-z'’-]*){{1,12}})"
ANSWER_IS = re.compile(
    rf"(?i){NOT_FINAL}\b(?:answers?|correct (?:option|choice))(?:{TO_WHAT}?\s+(?:is|are)\b|\**\s*[:=])"
    r"(?:\s+(?:actually|exactly|indeed|just|simply|therefore|thus)\b)?(?:\s*:)?"
)
# "A: 75", "**(B)** : 75", and what stands before it: a name of one letter. 3:4, a:b, n: x and sets {x : ...} stay as they are.
LABEL = re.compile(r"\A(?:[^:{]*\s)?\(?[a-zA-Z]\)?\**\s*:[\s*]*(?=[-+.\s]*[0-9$\\(])")
CHAIN = re.compile(r"(?:[-+*/^×÷0-9.,()$ ]+=)+\s*")  # "87 - 3 = 84, which is ..."
# "(C) because ...": the letter; "(C) Paris": both, for a gold answer that is the text.
CHOICE = re.compile(r"(?:(?:option|choice) )?\(?([A-J])[):](?:\s+(?!(?:as|because|for|since)\b)\S+(?: \S+){0,2}\Z)?")
# "A, because ...": the letter.
LETTER = re.compile(r"([A-J])(?=,? (?:as|because|for|since)\b|[,;]?\Z)")
# "3 to 5" behind "answer is"; elsewhere it may be a change.
RANGE = re.compile(r"[0-9]+(?:\.[0-9]+)? to [0-9]+(?:\.[0-9]+)?(?![0-9])")
ALONE = re.compile(r"\(([A-J])\)|>\s*\(?([A-J])\)?\s*</")  # "It must be (B)", "<b>B</b>"
SENTENCE_END = re.compile(r"(?<!\\)[.!?](?=\s|\Z)")
# A formula between marks. For $...$ this is Pandoc's rule, which tells "$5 and $3" from a formula: no space inside the marks
# (or one on both sides), no digit behind the second.
FORMULA = re.compile(
    r"\$\$(?P<display>[^$]{1,800}?)\$\$|\\\[(?P<bracket>.{1,800}?)\\\]|\\\((?P<inline>.{1,800}?)\\\)"
    r"|(?<![\\$])\$(?![\s$])(?P<dollar>[^$\n]{0,800}?[^\s$\\])\$(?![0-9])|(?<![\\$])\$ (?P<spaced>[^$\n]{1,800}?) \$(?![0-9])",
    re.DOTALL,
)
PERCENT = re.compile(r"\s*\\?%|\s*(?i:per ?cent(?:age)?|pct)\b")
SCALE = re.compile(r"\s(?i:thousand|million|billion|trillion)\b")

# A date, or a range with its unit: January 5, 2024  2024-01-05  1/2/2024  3-5 hours
MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
SERIES = (
    rf"(?:{MONTHS}) [0-9]{{1,2}}(?:st|nd|rd|th)?(?![0-9])(?:,? [0-9]{{4}}(?![0-9]))?"
    rf"|[0-9]{{1,2}}(?:st|nd|rd|th)? (?:of )?(?:{MONTHS})(?![a-z])(?:,? [0-9]{{4}}(?![0-9]))?"
    r"|[0-9]{1,4}(?:-[0-9]{1,4}){2}(?![0-9-])|[0-9]+(?:/[0-9]+){2}(?![0-9/])|[0-9]+[-–—][0-9]+(?=\s+[a-z]{3}|%)"
)
# A number as people write it: 1,234.5  .5  -3/4  1 1/4  2:30  6.7e-5; its sign counts where it is not a difference.
PLAIN_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
NUMBER = (
    rf"(?<![\w.,/^])(?:(?<![\w)])-\s?)?\$?(?:{SERIES}|[0-9]+ [0-9]+/[0-9]+|[0-9]{{1,3}}:[0-9]{{1,3}}(?:\s*[aApP]\.?[mM]\b\.?)?"
    rf"|(?:{PLAIN_NUMBER})(?:\s?/\s?[0-9]+(?![0-9/]|\.[0-9])|[eE][+-]?[0-9]+|\s?(?:\\times|[*x×])\s?10\s?\^\s?\{{?-?[0-9]+\}}?)?)"
)
# Its scale or base: 5 million, 204_5, 204 (base 5).
BEHIND = rf"(?:{SCALE.pattern}|_\{{?[0-9]+\}}?|\s\(base\s[0-9]+\)|\sin\sbase\s[0-9]+)?"
NUMBERS = re.compile(rf"{NUMBER}{BEHIND}(?:(?:,\s{NUMBER})*,?\s(?:and|or)\s{NUMBER})?")  # "2, 4, and 6" is one answer
OR = re.compile(r"(?<=[\w)}.])\s*,?\s*\b(?:and|or)\s+(?=[\w.({\\-])")  # between numbers or formulas
MARKS = " \t\n*_`\"'“”"  # around an answer in Markdown

TEXT_COMMAND = re.compile(r"\\(?:text[a-z]*|mbox|mathrm|mathbf|mathit|operatorname)\s*\{([^{}]*)\}")
WORD = re.compile(r"(?<![\\a-zA-Z])[^\W\d_]{2,}")
# What looks like a word and belongs to formulas; with numbers between them "and" and "or" only make a list.
MATH_WORDS = FORMULA_WORDS | frozenset(
    ("alpha arccos arcsin arctan beta cosh deg det dfrac frac gcd infty lcm lg max min oo sinh tanh theta").split()  # noqa: SIM905
)


class Found(NamedTuple):
    """A box or formula: where it starts and ends in the text, and what it holds."""

    start: int
    end: int
    content: str


def final_answer(text: str) -> str | None:
    r"""The final answer that the completion `text` names; None where there is none. A thought (`tags`) does not count.

    Where there is a pair of <answer> and </answer>, it is a box, a line of `####` or what follows "answer is" in the last of
    them, else all that is in it: `"<answer>x+1</answer>" -> "x+1"`.

    Else the first of these that there is: the last box that is not empty; the last line of `####`; what follows the last
    "answer is" or "answer:"; the last line if it is a formula; the last number or formula. Several of them that are separated
    only by commas, "and" or "or" are one answer: `"\boxed{1} and \boxed{-2}" -> "1,-2"`, but `"\boxed{8}. No: \boxed{7}"` is 7.
    """
    text = without_thought(text)
    tagged = in_answer_tag(text)
    if tagged is not None:
        return marked_answer(tagged) or _behind_words(tagged[-TAIL:].replace("−", "-")) or tagged.strip(MARKS) or None
    return marked_answer(text) or _answer_of_prose(text[-TAIL:].replace("−", "-"))


def marked_answer(text: str) -> str | None:
    """The answer in the last box that is not empty, or else in the last line of `####`; None without either."""
    return boxed_answer(text) or _after_hashes(text)


def boxed_answer(text: str) -> str | None:
    r"""What the last box holds, with boxes that are joined to it; None without a box. `"so $\boxed 2$." -> "2"`."""
    found = [box for box in boxes(text) if not HOLLOW.fullmatch(box.content)]
    return _joined(text, found, backward=True) if found else None


def boxes(text: str) -> list[Found]:
    r"""Every outermost \boxed or \fbox with its group or token. One that is not closed ends the list: the text broke off."""
    found, position = [], 0
    while box := BOX.search(text, position):
        end = group_end(text, box.end())
        if end is not None:
            content = BOX.sub("", text[box.end() + 1 : end - 1])
        elif text.startswith("{", box.end()):
            break
        elif token := TOKEN.match(text, box.end()):
            end = token.end()
            while token[0].startswith("\\") and (more := group_end(text, end)):  # \boxed \frac{1}{2}
                end = more
            content = text[token.start() : end]
        else:
            position = box.end()
            continue
        position = end
        found.append(Found(box.start(), end, content + _percent_behind(text, end)))
    return found


def group_end(text: str, start: int) -> int | None:
    r"""The position behind the group {...} that starts at `start`; None where there is none or it is not closed."""
    if not text.startswith("{", start):
        return None
    depth = 0
    for brace in BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.end()
    return None


def is_prose(text: str, letters: int = 2) -> bool:
    r"""Whether it has a word: `letters` or more in a row that are no LaTeX command, not in \text{} and not as `sin` or `pi`."""
    bare = re.sub(r"\\[a-zA-Z]+", " ", re.sub(r"\\(?:begin|end)\s*\{[a-z*]+\}", " ", TEXT_COMMAND.sub(" ", text)))
    return any(len(word) >= letters and word.lower() not in MATH_WORDS for word in WORD.findall(bare))


def _joined(text: str, found: Sequence[Found], backward: bool) -> str:
    """The contents of the last of `found` (or the first), and of those before it (after it) that are joined to it."""
    step = -1 if backward else 1
    kept = [found[::step][0]]
    for other in found[::step][1:]:
        left, right = (other, kept[-1]) if backward else (kept[-1], other)
        between = text[left.end : right.start]
        if not JOINT.fullmatch(between) or (between and not JOINT_SIGN.search(between)):
            break
        kept.append(other)
    return ",".join(one.content.strip() for one in kept[::step])


def _percent_behind(text: str, end: int) -> str:
    return r"\%" if PERCENT.match(text, end) else ""


def _after_hashes(text: str) -> str | None:
    for line in reversed(HASHES.findall(text)):
        if not HEADING.match(line) and (answer := _at_start(line)):
            return answer
    return None


def _behind_words(text: str) -> str | None:
    """What follows the last "answer is" that an answer follows."""
    for anchor in reversed(list(ANSWER_IS.finditer(text))):
        if answer := _at_start(text[anchor.end() :]):
            return answer
    return None


def _answer_of_prose(text: str) -> str | None:
    if answer := _behind_words(text):
        return answer
    lines = text.strip().splitlines() or [""]
    last = _bare(lines[-1])
    is_formula = not FORMULA.search(last) and not is_prose(last)
    if re.search(r"\w", last) and (is_formula or (len(lines) == 1 and re.fullmatch(r"[\w(){}$\\.-]+", last))):
        return OR.sub(",", LABEL.sub("", last, count=1))
    return _last(text)


def _at_start(text: str) -> str | None:
    """The answer with which `text` starts: formulas, a whole sentence without words, numbers, a choice, or a few words."""
    text = text.lstrip(MARKS)
    formulas = _formulas(text)
    if formulas and formulas[0].start == 0:
        return _joined(text, formulas, backward=False)
    line = (text.splitlines() or [""])[0]
    end = SENTENCE_END.search(line)
    sentence = _bare(line[: end.start()] if end else line)
    if not sentence:
        return None
    if not is_prose(sentence):
        return OR.sub(",", sentence)
    if span := RANGE.match(sentence):
        return span[0]
    chain = CHAIN.match(sentence)
    if numbers := NUMBERS.match(sentence, chain.end() if chain else 0):
        return OR.sub(",", numbers[0]) + _percent_behind(sentence, numbers.end())
    if letter := LETTER.match(sentence):
        return letter[1]
    if choice := CHOICE.match(sentence):
        return choice[0] if choice.end() == len(sentence) else choice[1]
    return sentence if len(sentence.split()) <= 3 and not re.search(r"[0-9$\\]", sentence) else None


def _last(text: str) -> str | None:
    """The last formula or number; without one, the last choice in brackets or in a tag."""
    formulas, numbers = _formulas(text), list(NUMBERS.finditer(text))
    if formulas and (not numbers or numbers[-1].end() <= formulas[-1].end):
        return _joined(text, formulas, backward=True)
    if numbers:
        return OR.sub(",", numbers[-1][0]) + _percent_behind(text, numbers[-1].end())
    letters = ALONE.findall(text)
    return "".join(letters[-1]) if letters else None


def _formulas(text: str) -> list[Found]:
    found = []
    for match in FORMULA.finditer(text):
        content = (match[match.lastgroup or 0]).strip()
        if content and not is_prose(content, letters=3):
            scale = SCALE.match(text, match.end())
            content += scale[0].lower() if scale else _percent_behind(text, match.end())
            found.append(Found(match.start(), match.end(), content))
    return found


def _bare(line: str) -> str:
    """A line without Markdown and without the marks that end a sentence; the ! of a formula such as `n!` stays.

    `"**18**!" -> "18"`: behind a number in a sentence the mark is no factorial.
    """
    bare = line.strip(MARKS).rstrip(MARKS + ".,;:?").lstrip("= ")
    while bare != (shorter := re.sub(r"(?:(?<=[0-9%])|(?<=[^\W\d_]{2}))!+\Z", "", bare.rstrip(MARKS + ".,;:?"))):
        bare = shorter
    return bare
