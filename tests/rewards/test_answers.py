"""Where the final answer of a text is."""

import pytest

from dash_exp.rewards.answers import boxed_answer, boxes, final_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"$x=\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{1} and \boxed{-2}", "1,-2"),
        (r"$\boxed{1}$, $\boxed{2}$, or $\boxed{3}$. This took 4 steps.", "1,2,3"),
        (r"\boxed{8}. No: \boxed{7}", "7"),
        (r"\boxed{5} and then it breaks off: \boxed{6", "5"),
        ("some <<1+1=2>>2\n#### 2", "2"),
        (r"The answer is 3\sqrt{13}.", r"3\sqrt{13}"),
        ("Answer: **B**", "B"),
        ("3/4", "3/4"),
        ("The answer is 7, or 8.", "7,8"),
        ("Answer: 18 apples and 4 pears", "18"),
        ("There are 3 pears.", "3"),
        ("The answer is $3$ and $4$.", "3,4"),
        ("", None),
        ("<answer>42</answer>", "42"),
        ("So $5 and $3 make $8.", "$8"),
        ("$5$ and $3$ and so on", "5,3"),
        ("They weigh 2, 4, and 6 pounds.", "2, 4,6"),
        ("The answer is (C) since 4 is even.", "C"),
        ("The answer is no solution.", "no solution"),
        ("The final answer to the given problem is 84, which is twelve more than 72.", "84"),
        ("So the answers to the original equation are $3$ and $4$. It took 2 steps.", "3,4"),
        ("The answer for Ann's question is: **12**, not 13.", "12"),
        ("The answer to 3+4 is not 8 but 7.", "7"),  # what follows is no answer: the last number
        ("The answer is the sum of 3 and 4, which is 7.", "7"),
        ("The answer to this problem is 87 - 3 = 84, which is the sum of 87 and 3.", "84"),
        ("The answer to the question is 18. No. The answer is just 3. See step 2.", "3"),
        ("The initial answer to the problem is 2. But it must be 11.", "11"),
        ("The answer to the first part is 5. Then 5 + 3 = 8.", "8"),  # the answer to something else
        ("The answer to 5*3 is 15. Adding 2 gives 17.", "17"),
        ("The answer to how many are left is 5. No, it is 6.", "6"),
        ("#### 1. Add the numbers\n3 + 4 = 7", "3 + 4 = 7"),
        ("It takes 10-7 = 3 days, i.e. -3/4 of it", "-3/4"),
        ("\\[ x = 5 \\]", "x = 5"),
        ("7+8=15\nA: 15", "15"),  # a label, no ratio
        ("0-0=0 A:0", "0"),
        (r"**(B)** : \frac{3}{4}", r"\frac{3}{4}"),
        ("3:4", "3:4"),
        ("a:b", "a:b"),
        ("x : y : 3", "x : y : 3"),
        (r"\{ x : -1 < x \}", r"\{ x : -1 < x \}"),
        # what is in the last answer tag is the answer as a whole, as in a box
        (r"<answer> \frac{1}{2}\n</answer>".replace(r"\n", "\n"), r"\frac{1}{2}"),
        ("<answer>The answer is −5 degrees.</answer>", "-5"),
        ("<answer>New York</answer>", "New York"),
        ("<answer>**x+1**</answer> since 3 > 2", "x+1"),
        ("<answer>13</answer> no, <answer>12</answer>", "12"),
        ("<answer>13<answer>12</answer> is right</answer><answer>14", "12"),
        (r"\boxed{13} <answer>So \boxed{12}.</answer> \boxed{14}", "12"),
        ("<answer>3 + 4 = 7\n#### 7</answer>", "7"),
        ("<answer>The answer is 12.</answer>", "12"),
        ("<answer> </answer> 12", None),
        ("<answer>12", "12"),  # no pair: the text as it is
        ("</answer> 12 <answer>", "12"),
        ("It is <answer>12", "12"),
        # a thought is no part of the answer
        ("<think>So the answer is 5. Wait.</think>\n<answer>12</answer>", "12"),
        ("<think>So the answer is 5. Wait, no.</think>\n\n**12**", "12"),
        ("So the answer is 5. Wait, no.</think>\n\n**12**", "12"),  # the prompt has opened it
        (r"<think>\boxed{5}</think> She has 12 apples.", "12"),
        ("<think><answer>5</answer></think> She has 12 apples.", "12"),
        ("<think>5</think> 6 <think>7</think> It is 12.", "12"),
        ("<think>It is 12.</think>", None),
        ("<think>\nperhaps 12", None),  # cut off
        (r"<think>\boxed{12} <answer>12</answer>", None),
        ("<think>5</think> 12 <think>or 13", None),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so $\boxed 2$.", "2"),
        (r"so $x = \boxed 9$.", "9"),
        (r"so \boxed {17}.", "17"),
        (r"so \boxed 12.5.", "12.5"),
        (r"\fbox{17}", "17"),
        (r"$\boxed\frac{1}{2}$", r"\frac{1}{2}"),
        (r"$\boxed{\{1, 2\}}$", r"\{1, 2\}"),
        (r"\boxed{\boxed{5}}", "{5}"),
        (r"\boxed{2} and $\boxed{}$", "2"),
        (r"\boxed{18}\%", r"18\%"),
        (r"\boxed{}", None),
        (r"\boxed{\text{ }}", None),
        (r"in a \boxed and nowhere", None),
        (r"\boxed{never closed", None),
        ("none", None),
    ],
)
def test_boxed_answer(text, answer):
    assert boxed_answer(text) == answer


def test_boxes_gives_places_and_contents():
    assert boxes(r"so \boxed{\frac{1}{2}}, \boxed{3}") == [(3, 22, r"\frac{1}{2}"), (24, 33, "3")]
