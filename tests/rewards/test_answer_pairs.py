"""Pairs of a gold answer and a text: those of public graders, texts that must not be evaluated, golds and votes."""

import json
import time
from pathlib import Path

import pytest

from dash_exp.rewards.grading import gradable, math_answer, math_equal

PAIRS = json.loads((Path(__file__).parent / "answer_pairs.json").read_text())


@pytest.mark.parametrize("source", PAIRS)
def test_pairs_of_public_graders(source):
    """`equal` is what their tests say; a pair with `why_not` is decided otherwise here, for that reason."""
    for pair in PAIRS[source]:
        try:
            found = math_equal(pair["gold"], pair["text"])
        except ValueError:
            found = None
        assert (found == pair["equal"]) == ("why_not" not in pair), pair


SENTENCE = (
    "3 supports integer arithmetic by determining the additive identity with 3. It carries the property that 3 + 3 is indeed "
    "3, demonstrating the well-defined behavior of addition."
)


@pytest.mark.parametrize(
    "text",
    [
        SENTENCE,
        f"\\boxed{{{SENTENCE}}}",
        f"\\boxed{{\\text{{{SENTENCE}}}}}",
        f"${SENTENCE}$",
        SENTENCE * 500,
        "def f(x):\n    return x ** 9 ** 9\nprint(f(3))",
        r"\boxed{9**9**9**9}",
        r"\boxed{9^{9^{9^{9}}}}",
        r"\boxed{x^{x^{x^{x^{x}}}}}",
        r"\boxed{(((9!)!)!)!}",
        r"\boxed{\binom{99999}{50000}}",
        r"\boxed{\gcd(10^{9}!, 7)}",
        r"\boxed{" + "|x|" * 60 + "}",
        r"\boxed{" + "(" * 11 + "x" + ")" * 11 + "}",
        r"\boxed{" + r"\sqrt{2+" * 40 + "2" + "}" * 40 + "}",
        r"\boxed{\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}^{100}}",
        r"\boxed{\int_0^1 x^x dx}",
        r"\boxed{\sum_{n=1}^{\infty} \frac{1}{n^7+n+1}}",
        r"\boxed{\prod_{n=1}^{99999999} n}",
        r"\boxed{x^{x^x} + \sin x = \tan(y)^z}",
    ],
)
@pytest.mark.parametrize("gold", ["6", "x^2 + 1", "y = 2x + 3"])
def test_texts_that_are_not_evaluated(gold, text):
    """Sentences and giants never reach an evaluation: seconds of this process, which other loads do not change."""
    start = time.process_time()
    assert not math_equal(gold, text)
    assert time.process_time() - start < 5


MATRIX = r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        ("5", r"\boxed{a+b=5}", r"\boxed{a+b=6}"),  # what stands left of = does not count
        ("5", r"\boxed{a+b+c = 2+3 = 5}", r"\boxed{a+b+c = 5+1 = 6}"),
        ("5", r"\boxed{x = 5}", r"\boxed{a+b > 5}"),
        ("5", r"\boxed{2+3 = 5}", r"\boxed{5 = a+b}"),
        ("17", "The answer is $m+n=17$.", "The answer is $17+n=m$."),
        ("17", "Thus $m+n = 10+7 = 17$.", "Thus $m+n = 10+7 \\le 17$."),
        ("17", r"\boxed{AB^2 = 17}", r"\boxed{AB^2 = 17, BC = 3}"),
        ("0", r"\boxed{x = 0}", r"\boxed{x^2-4=0}"),  # an equation to solve
        ("0", r"\boxed{f(2) + f(3) = 0}", r"\boxed{2x - 6 = 0}"),
        ("0", r"\boxed{\cos 180^\circ + 1 = 0}", r"\boxed{x^{2} + 1.5 = 0}"),
        ("17", r"\boxed{f(3)+f(4)=17}", r"\boxed{17=f(3)+f(4)}"),
        ("6", "The answer is a + b = 6.", "7 != 6"),
        ("6", r"\[a+b=6\]", r"\[a+b=7\]"),
        ("2x+3", r"\boxed{f^{-1}(x) = 2x+3}", r"\boxed{f^{-1}(x) = 2x-3}"),
        ("x + y = 5", r"\boxed{2x + 2y = 10}", r"\boxed{5}"),
        ("x = 5", r"\boxed{x = 2+3}", r"\boxed{y = 5}"),
        (MATRIX, rf"\boxed{{A = {MATRIX}}}", rf"\boxed{{A = {MATRIX.replace('4', '5')}}}"),
        (MATRIX, rf"\boxed{{\mathbf{{A}} = {MATRIX}}}", r"\boxed{\mathbf{A} = 1, 2, 3, 4}"),
        ("204_5", r"\boxed{x = 204_5}", r"\boxed{x = 203_5}"),
        ("204_5", "$x=204_5$", "$x=204_6$"),
        ("2516_8", r"\boxed{2516_{(8)}}", r"\boxed{2516_{(9)}}"),
        ("2516_8", r"\boxed{2516\text{ (base 8)}}", r"\boxed{2516\text{ (base 9)}}"),
        ("5", r"\boxed{5_{10}}", r"\boxed{5_8}"),
        ("52_8", r"\boxed{52_8 \text{ units}}", r"\boxed{53_8 \text{ units}}"),
        ("720", r"\boxed{6!=720}", r"\boxed{6 != 720}"),
        (r"\sqrt{2}", r"\boxed{\sqrt{2} \approx 1.41}", r"\boxed{\sqrt{3} \approx 1.41}"),
        (r"\frac{1}{3}", r"\boxed{\frac13 \approx 0.33}", r"\boxed{x \approx 0.33}"),
        (r"3\pi", r"\boxed{x = 3\pi \approx 9.42}", r"\boxed{x = 3 \approx 3\pi}"),
        ("1.41", r"\boxed{\theta \approx 1.41}", r"\boxed{\theta_1 \approx 1.42}"),
        ("120", r"\boxed{{10 \choose 3}}", r"\boxed{{10 \choose 4}}"),  # characters and commands
        ("120", r"\boxed{{10} \choose {3}}", r"\boxed{{10} \choose {4}}"),
        (r"\binom{10}{3}", r"\boxed{{{10} \choose {3}}}", r"\boxed{{10} \choose 4}"),
        (r"\binom{10}{3}", r"\boxed{10 \choose 3}", r"\boxed{10 \choose 2}"),
        (r"1 \pm \sqrt{19}", r"\boxed{1 ± \sqrt{19}}", r"\boxed{1 ± \sqrt{18}}"),
        (r"\sqrt{12}", "√12", "√1 2"),
        (r"\sqrt{x+1}", r"\boxed{√(x+1)}", r"\boxed{√x+1}"),
        ("20", r"\boxed{20°C}", r"\boxed{20C}"),
        ("20", r"\boxed{20℃}", r"\boxed{21℃}"),
        ("20", r"\boxed{20 ℉}", r"\boxed{20 ℉ or 30}"),
        (r"\frac{1}{2}", r"\boxed{\sin 30^\circ}", r"\boxed{\sin 30}"),
        (r"\frac{3}{4}", r"\boxed{\sin^2(60^\circ)}", r"\boxed{\sin^2(30^\circ)}"),
        ("45", r"\boxed{\frac{90^\circ}{2}}", r"\boxed{\frac{80^{\circ}}{2}}"),
        ("1", r"\boxed{\tan{45^\circ}}", r"\boxed{\tan{60^\circ}}"),
        (r"\emptyset", r"\boxed{\{\}}", r"\boxed{\{0\}}"),
        (r"\emptyset", r"\boxed{\varnothing}", r"\boxed{0}"),
        ("(1,2)", r"\boxed{\bigl( 1, 2 \bigr)}", r"\boxed{\Big( 2, 1 \Big)}"),
        (r"\frac{1}{2}", r"\boxed\frac12", r"\boxed\frac13"),
        ("e^2", r"\boxed{\mathrm{e}^2}", r"\boxed{\mathrm{e}^3}"),
        (MATRIX, r"\boxed{\begin{pmatrix} 1 & 2 \\[2pt] 3 & 4 \end{pmatrix}}", r"\boxed{1, 2, 3, 4}"),
        (MATRIX, rf"\boxed{{{MATRIX} \text{{ units}}}}", rf"\boxed{{{MATRIX} \text{{ or }} 0}}"),
        ("(2,4)", r"\boxed{(2,4) \text{ units}}", r"\boxed{(4,2) \text{ units}}"),
        ("[2,4]", r"\boxed{[2,4] \text{ cm}}", r"\boxed{(2,4) \text{ cm}}"),
        ("24", "Step 1: \\boxed{12}\n\n\\boxed{24}", "Step 1: \\boxed{24}\n\n\\boxed{12}"),  # boxes side by side
        ("24", "$\\boxed{12}$\n\n$\\boxed{24}$", "$\\boxed{12}$,\n\n$\\boxed{24}$"),
        ("1,2", r"\boxed{1} \quad \boxed{2}", r"\boxed{1}\, \boxed{2}"),
        ("11111111100", r"#### 11,\! 111,\! 111,\! 100", r"#### 11,\! 111,\! 111,\! 10"),  # in prose
        ("1000000", "The answer is 1 million.", "The answer is 1 millionth."),
        ("1000000", "So it makes 1 million dollars.", "So it makes 1 dollar of a million."),
        ("5400000", "The answer is $5.4$ million.", "The answer is $5.4$ millionths."),
        (r"5.4 \text{ million}", "So it costs $5.4$ million dollars.", "So it costs $5.4$ dollars of a million."),
        ("204_5", "The answer is 204 (base 5).", "The answer is 204 (base 6)."),
        ("204_5", "So it is 204 in base 5.", "It is 204, a base, and 5."),
        (r"\text{June 20}", "The answer is June 20.", "The answer is June 21."),
        ("3:4", "The ratio is 3:4.", "The ratio is 4:3."),
        ("C", "The correct option is C", "The correct option is D"),
        (r"\frac{\pi}{4}", "The answer is pi/4.", "The answer is pi/3."),
    ],
)
def test_spellings(gold, right, wrong):
    assert math_equal(gold, right)
    assert not math_equal(gold, wrong)


def test_golds_that_can_be_graded():
    golds = [
        r"\frac{1}{2}",
        r"\text{(E)},",
        r"\approx 8.24 \text{ mph}",
        "0.56 = 56\\%",
        "2:30",
        "52_8",
        r"x \ne 4",
        "(1, x)",
        "two lines",
    ]
    assert all(map(gradable, golds))
    assert not any(map(gradable, ["", "$$", "?", r"\frac{1}{", r"x + \boxed{"]))


@pytest.mark.parametrize(
    ("texts", "answer"),
    [
        ((r"\boxed{30 \text{ or } 150}", "#### 150, 30"), "{150, 30}"),
        ((r"\boxed 2", r"\boxed{\frac{4}{2}}", "x = 2"), "2"),
        ((r"\boxed{\frac{1}{3000000}}",), "3.33333e-07"),
        (("x = 204_5", r"\boxed{204_{5}}", "The answer is 204 (base 5)."), "204_5"),
        (("The answer is Evelyn!", r"\boxed{\text{Evelyn}}"), "evelyn"),
    ],
)
def test_answers_for_a_vote(texts, answer):
    assert [math_answer(text) for text in texts] == [answer] * len(texts)
