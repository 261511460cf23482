r"""LaTeX of an answer in one spelling, and taken apart: arguments, lists, brackets and relations. Nothing is evaluated here."""

from __future__ import annotations

import re

from dash_exp.rewards.answers import TEXT_COMMAND, group_end, is_prose

MARKS = re.compile(  # of formulas, of brackets that grow, of a small space back, of dollars; but \\ ends a row
    r"\$|(?<!\\)\\(?:[()\[\]$]|!\s*|(?:left|right|[bB]igg?[lr]?)(?![a-z])\.?|(?:displaystyle|boldsymbol|limits)(?![a-zA-Z]))"
)
DEGREE = re.compile(r"\s*(?:\^\s*\{\s*\\circ\s*\}|\^?\s*\\circ(?![a-z])|°|\\degree(?![a-z]))(?:\s*[CF](?![a-zA-Z]))?")
# 30^\circ is 30, as a unit is left out; but for \sin 30^\circ its value is needed.
OF_ANGLE = re.compile(rf"(\\(?:sin|cos|tan|cot|sec|csc)(?:\s*\^\s*2)?\s*[({{]?\s*)([0-9.]+)(?:{DEGREE.pattern})")
SPACE = re.compile(r"(?<!\\)\\[,;: ]|\\q?quad|~|[\s\u00a0\u200b\u202f\ufeff]")
OF_CHOOSE = r"(\s*\{[^{}]*\}\s*|[^{}]*)"
CHOOSE = re.compile(rf"(?:\A|\{{){OF_CHOOSE}\\choose(?![a-z]){OF_CHOOSE}(?:\}}|\Z)")
MACRO = re.compile(r"\\(frac|sqrt)(?![a-zA-Z])")
ARGUMENT = re.compile(r"\\[a-zA-Z]+|[^\s{}\\]")
UNICODE = {
    "−": "-",
    "–": "-",
    "×": r"\times ",
    "·": r"\cdot ",
    "÷": "/",
    "π": r"\pi ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "±": r"\pm ",
}
UNICODE |= {"≠": r"\ne ", "∪": r"\cup ", "½": r"\frac{1}{2}", "∅": r"\emptyset ", "∈": r"\in ", "℃": "°C", "℉": "°F"}

# "6!=720" has a factorial, "x != 6" and "7 != 6" have not.
RELATION = re.compile(r"\\(?:[lg]e(?:q(?:slant)?)?|lt|gt|neq?)(?![a-zA-Z])|<=|>=|(?<![0-9)}])!=|[<>]|(?<![<>=])=(?!=)")
OPERATORS = {"\\lt": "<", "\\gt": ">", "\\neq": "!=", "\\ne": "!="}
OPERATORS |= {"\\leq": "<=", "\\le": "<=", "\\leqslant": "<=", "\\geq": ">=", "\\ge": ">=", "\\geqslant": ">="}


def plain_latex(text: str) -> str:
    r"""The same answer in one spelling: no marks of formulas, one kind of space and of fraction, arguments in braces.

    `"$\dfrac\pi 2$" -> "\frac{\pi}{2}"`, `"3\,000\!" -> "3 000"`, `"90^\circ" -> "90"`, `"\textbf{(C)}" -> "\text{(C)}"`.
    """
    text = re.sub(r"√\s*(?:\(([^()]*)\)|([0-9]+|\w))", r"\\sqrt{\1\2}", text)
    text = "".join(UNICODE.get(character, character) for character in text)
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text)  # \\\\frac, escaped twice
    text = TEXT_COMMAND.sub(lambda t: rf"\text{{{t[1]}}}" if re.search(r"[^\W\d_]", t[1]) else t[1], MARKS.sub("", text))
    text = DEGREE.sub("", OF_ANGLE.sub(r"\1\\frac{\2\\pi}{180}", text))
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    text = re.sub(r"\\\{\s*\\\}|\\varnothing(?![a-z])", r"\\emptyset ", text)
    text = CHOOSE.sub(lambda c: rf"\binom{{{c[1].strip(' {}')}}}{{{c[2].strip(' {}')}}}", text)
    text = re.sub(r"(?<![a-zA-Z\\])pi(?![a-zA-Z])", r"\\pi", text)
    text = re.sub(r"\s*\{\s*,\s*\}\s*", ",", text)
    text = re.sub(r"\\text\{\s*\}|\\phantom\s*(?:\{[^{}]*\}|[^{}])|\A\s*\\approx(?![a-z])", " ", text)
    text = re.sub(r" +", " ", SPACE.sub(" ", text)).strip(" *")
    text = re.sub(r"[,;]\Z|(?<!\.)\.\Z", "", text).strip()
    while text.startswith("{") and group_end(text, 0) == len(text):
        text = text[1:-1].strip()
    return _with_braces(text)


def plain_text(text: str) -> str:
    r"""An answer without its dress: `"\text{(C)}" -> "C"`, `"6:00 \text{ PM}" -> "6:00 pm"`, `"1 2"` stays two numbers.

    Case counts where it may tell symbols apart, that is unless there are words.
    """
    bare = re.sub(r"\s+", " ", TEXT_COMMAND.sub(r" \1 ", text)).strip(" .")
    bare = re.sub(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])", "", bare)  # what is left keeps two words or numbers apart
    bare = re.sub(r"(?<=[0-9A-Z])[ _{(]+(?:in )?base ?([0-9]+)[)}]*\Z", r"_\1", bare)  # 204 (base 5)
    if is_prose(bare):
        bare = bare.lower()
    return bare[1:-1] if re.fullmatch(r"\([A-Za-z]\)", bare) else bare


def _with_braces(text: str) -> str:
    r"""Arguments of \frac and \sqrt in braces, as TeX takes them: a group, a command or one character."""
    for macro in reversed(list(MACRO.finditer(text))):
        position = macro.end()
        index = re.compile(r"\s*\[[^\]]*\]").match(text, position) if macro[1] == "sqrt" else None
        position = index.end() if index else position
        arguments = []
        for _ in range(2 if macro[1] == "frac" else 1):
            position += len(text[position:]) - len(text[position:].lstrip())
            end = group_end(text, position)
            if end is not None:
                arguments.append(text[position:end])
            elif argument := ARGUMENT.match(text, position):
                end = argument.end()
                while argument[0].startswith("\\") and argument[0] in ("\\frac", "\\sqrt") and (more := group_end(text, end)):
                    end = more
                arguments.append(f"{{{text[position:end]}}}")
            else:
                return text
            position = end
        text = text[: macro.end()] + (index[0].strip() if index else "") + "".join(arguments) + text[position:]
    return text


def split(text: str, separators: str) -> list[str]:
    r"""The parts of `text` between separators (characters, or one command) outside of all brackets."""
    pieces = re.split(r"(\\[{}]|\\[a-zA-Z]+|[()\[\]{},;=])", text)
    parts, depth = [""], 0
    for piece in pieces:
        depth += 1 if piece in ("(", "[", "{", "\\{") else -1 if piece in (")", "]", "}", "\\}") else 0
        if depth == 0 and piece and (piece == separators or (len(piece) == 1 and piece in separators)):
            parts.append("")
        else:
            parts[-1] += piece
    return [part.strip() for part in parts]


def inside(text: str) -> tuple[str, str, str]:
    r"""The brackets around the whole text and what is between them: `"(1, 2]" -> ("(", "1, 2", "]")`; else three times ""."""
    pair = re.fullmatch(r"(\\\{|[(\[{]|\\lbrace)(.*?)(\\\}|[)\]}]|\\rbrace)", text.strip())
    if pair is None:
        return "", "", ""
    depth = 0
    for bracket in re.findall(r"[(\[{]|[)\]}]", pair[2]):
        depth += 1 if bracket in "([{" else -1
        if depth < 0:
            return "", "", ""
    names = {"\\{": "{", "\\lbrace": "{", "\\}": "}", "\\rbrace": "}"}
    return names.get(pair[1], pair[1]), pair[2], names.get(pair[3], pair[3])


def relation(text: str) -> tuple[list[str], list[str]]:
    r"""The operators outside of groups, and the sides between them: `"1 < x \le 2" -> (["<", "<="], ["1", "x", "2"])`."""
    operators, sides, depth, start = [], [], 0, 0
    for found in re.finditer(rf"\\[{{}}]|[{{}}]|{RELATION.pattern}", text):
        if found[0] in "{}":
            depth += 1 if found[0] == "{" else -1
        elif depth == 0 and len(found[0].strip("\\{}")):
            operators.append(OPERATORS.get(found[0], found[0]))
            sides.append(text[start : found.start()].strip())
            start = found.end()
    return operators, [*sides, text[start:].strip()]
