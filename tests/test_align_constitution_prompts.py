"""Constitutional AI without a model: principles, prompts, what is read from answers, both orders.
"""

import json
import os
from pathlib import Path

import pytest

from align.synthetic.choices import TwoAnswers, prefer
from align.synthetic.constitution import (
    choice_prompt,
    critique_prompt,
    draw,
    fault_of,
    read_letter,
    read_text,
    revision_prompt,
)
from align.synthetic.critics import RuleCritic, Vote, softmax_first
from align.synthetic.outcomes import Outcomes
from align.synthetic.principles import OWN, Example, Principle, read_constitution
from align.synthetic.revisions import Revised, revise
from align.synthetic.rules import Length, WordList, make_rule
from core.errors import UserError
from data.chat import Conversation, Message, ask
from data.preferences import Preference
from eval.respond.responder import Reply

DATASETS = os.environ.get("HEARTWOOD_DATASETS")
PRINCIPLE = Principle("p", "What is wrong?", "Write it anew.")
EXAMPLE = Example((Message("user", "q0"), Message("assistant", "a0")), "Is it bad?", "Yes.",
                  "Mend it.", "a1")
CHOICE = Preference(ask("q0"), ("bad0", "good0"), (2, 1))
BARE = " Write the new answer only, as the person who asked shall read it."
RULES = dict(unanswered="drop", empty="drop", truncated="drop", unchanged="keep", refusal="keep",
             no_letter="drop")


def turns(conversation):
    return [(message.role[0], message.content) for message in conversation.messages]


def test_critique_and_revision_are_further_turns_behind_the_system_message_and_the_examples():
    prompt = Conversation((Message("system", "Be kind."), Message("user", "q1"),
                           Message("assistant", "a"), Message("user", "q2")))
    asked = [("s", "Be kind."), ("u", "q0"), ("a", "a0"), ("u", "Is it bad?"), ("a", "Yes."),
             ("u", f"Mend it.{BARE}"), ("a", "a1"), ("u", "q1"), ("a", "a"), ("u", "q2"),
             ("a", "draft"), ("u", "What is wrong?")]
    assert turns(critique_prompt(prompt, "draft", PRINCIPLE, [EXAMPLE])) == asked
    assert turns(revision_prompt(prompt, "draft", PRINCIPLE, "All.", [EXAMPLE])) == [
        *asked, ("a", "All."), ("u", f"Write it anew.{BARE}")]
    assert turns(critique_prompt(ask("q"), "draft", PRINCIPLE, [])) == [
        ("u", "q"), ("a", "draft"), ("u", "What is wrong?")]


def test_a_choice_is_a_question_with_two_options_and_examples_prefer_each_letter_in_turn():
    found = choice_prompt(ask("q1"), ("one", "two"), "Which is kinder?", [CHOICE, CHOICE])
    assert [message.content for message in found.messages[1::2]] == ["(A)", "(B)"]
    assert found.messages[-1].content == (
        "Below is a conversation between a human and an assistant, and two answers with which the "
        "assistant could go on.\n\nHuman: q1\n\nWhich is kinder?\n\nOptions:\n\n(A) one\n\n(B) two"
        "\n\nReply with (A) or (B), and nothing else.")
    shown = [message.content for message in found.messages[:4:2]]
    assert "(A) good0\n\n(B) bad0" in shown[0] and "(A) bad0\n\n(B) good0" in shown[1]


@pytest.mark.parametrize("text, letter", [
    ("(A)", 0), (" (B) is better.", 1), ("A", 0), ("B.", 1), ("**B**", 1), ("A\nbecause ...", 0),
    ("The answer is: B", 1), ("Answer: (A)", 0), ("Option B", 1), ("my choice is A.", 0),
    ("(A) is kinder than (B). The answer is (A)", 0), ("", None), ("Neither.", None),
    ("A good answer is hard to find", None), ("Both (A) and (B) are fine.", None),
    ("Be careful", None), ("(C)", None), ("a", None)])
def test_letters(text, letter):
    assert read_letter(text) == letter


@pytest.mark.parametrize("text, found", [
    ("Revision: Better.", "Better."), ("Assistant: Better.", "Better."),
    (" Here is the new answer:\nBetter.\n", "Better."),
    ("Better.\n\nHuman: and now?\n\nAssistant: no", "Better."),
    ("Critique: It lies.\n\nRevisionRequest: mend it", "It lies."), ("\n\nHuman:", ""),
    ("Two\n\nparagraphs: yes", "Two\n\nparagraphs: yes")])
def test_labels_prefaces_and_invented_turns_are_cut_off(text, found):
    assert read_text(text) == found


@pytest.mark.parametrize("reply, before, fault", [
    (Reply("x", "prompt_too_long"), None, "unanswered"),
    (Reply("", "rejected_400"), "", "unanswered"),
    (Reply(" \n"), "a", "empty"), (Reply("", "truncated"), "a", "empty"),
    (Reply("a b", "truncated"), "a b c", "truncated"), (Reply("a  b\n"), "a b", "unchanged"),
    (Reply("I'm sorry, I cannot help with that."), "a", "refusal"), (Reply("fine"), "a", "")],
    ids=repr)
def test_faults_of_replies(reply, before, fault):
    assert fault_of(reply, reply.text, before) == fault


def test_draws_depend_on_seed_content_and_number_and_reach_every_option():
    drawn = [draw(range(5), 0, f"prompt {number}", 0) for number in range(100)]
    assert drawn == [draw(range(5), 0, f"prompt {number}", 0) for number in range(100)]
    assert set(drawn) == set(range(5))
    assert drawn != [draw(range(5), 1, f"prompt {number}", 0) for number in range(100)]
    assert drawn != [draw(range(5), 0, f"prompt {number}", 1) for number in range(100)]


# --- files of principles --------------------------------------------------------------------

def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_our_own_principles_and_both_layouts_are_read(tmp_path):
    own = read_constitution([OWN])
    assert (len(own.principles), len(own.preferences), len(own.examples),
            len(own.choices)) == (7, 5, 2, 2)
    lines = write(tmp_path / "a.jsonl", {"critique": " c ", "revision": "r"}, {"preference": "p"})
    published = write(tmp_path / "b.json", {"harm": {
        "prompt": ["\n\nCritiqueRequest: What harms?\n\nCritique:"],
        "edit_request": "\n\nRevisionRequest: Mend it.\n\nRevision:"}})
    choices = write(tmp_path / "c.json", ["\nWhich harms less? Options:"])
    shown = write(tmp_path / "d.json", [
        "\n\nHuman: q\n\nAssistant: a\n\nCritiqueRequest: cr\n\nCritique: c\n\nRevisionRequest: rr"
        "\n\nRevision: r\n\nHuman:"])
    solved = write(tmp_path / "e.json", [
        {"prompt": "\n\nHuman: q\n\nAssistant:", "corrects": ["good"], "incorrects": ["bad"]}])
    found = read_constitution([lines, published, choices, shown, solved])
    assert found.principles == (Principle("line 1", "c", "r"),
                                Principle("harm", "What harms?", "Mend it."))
    assert found.preferences == ("p", "Which harms less?")
    assert found.examples == (Example((Message("user", "q"), Message("assistant", "a")),
                                      "cr", "c", "rr", "r"),)
    assert found.choices[0].responses == ("good", "bad")
    assert found.with_examples(0).examples == found.with_examples(0).choices == ()


@pytest.mark.parametrize("content, message", [
    ('{"critique": "c", "revision": "r"}\n{"critique": "c"}', r"line 2: has no 'revision'"),
    ('{"critique": "c", "revision": "r"}\n{"revision": "r"}', r"line 2: has no 'critique'"),
    ('[{"critique": "c", "revision": " \\n"}]', r"row 1: its 'revision' is empty"),
    ('["p", ""]', r"row 2: its 'preference' is empty"), ('["Options:"]', r"row 1: .* is empty"),
    ('{"preference": 7}', r"row 1: its 'preference' is no text"), ("[7]", "row 1: is neither"),
    ('{"a": {"prompt": [], "edit_request": "e"}}', r"row 1 \(a\): has no list `prompt`"),
    ('{"a": {"prompt": ["c"]}}', r"row 1 \(a\): has no 'edit_request'"),
    ('{"a": {"prompt": ["CritiqueRequest: \\n\\nCritique:"], "edit_request": "e"}}',
     r"row 1 \(a\): its 'prompt' is empty"),
    ('["\\n\\nHuman: q\\n\\nAssistant: a\\n\\nCritique: c"]', "row 1: holds Critique where"),
    ('[{"messages": [{"role": "user", "content": "q"}], "critique_request": "c", "critique": "c", '
     '"revision_request": "r", "revision": "r"}]', "row 1: does not end with an answer"),
    ('[{"prompt": "q", "corrects": ["a"], "incorrects": []}]', "row 1: "),
    ('[{"prompt": "q"}]', r"row 1: holds neither a principle nor an example \(fields: prompt\)"),
    ("{}", r"holds neither .*\(fields: none\)"), ('{"critique": "c",\n', "line 1: is not valid")])
def test_a_bad_row_is_one_line_with_the_file_and_the_number(tmp_path, content, message):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_constitution([path])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(not DATASETS, reason="needs the folder HEARTWOOD_DATASETS")
def test_the_published_files_are_read():
    folder = Path(DATASETS or "") / "constitutional_ai"
    found = read_constitution([folder / f"{name}.json" for name in (
        "CritiqueRevisionInstructions", "RLMadisonInstructions", "CritiqueRevisionFewShotPrompts",
        "RLMadisonFewShotPrompts")])
    assert [len(part) for part in (found.principles, found.preferences, found.examples,
                                   found.choices)] == [16, 16, 5, 5]
    texts = [text for one in found.principles for text in (one.critique, one.revision)]
    texts += [*found.preferences, *(part for one in found.examples for part in (
        one.critique_request, one.critique, one.revision_request, one.revision))]
    assert not any(word in text for text in texts for word in ("Request:", "Options:", "Human:"))
    with pytest.raises(UserError, match=r"RLMadisonPrecogFewShotPrompts\.json, row 1: "):
        read_constitution([folder / "RLMadisonPrecogFewShotPrompts.json"])


# --- rules ----------------------------------------------------------------------------------

def test_rules_criticise_revise_and_score():
    length = Length({"max_words": 5})
    assert length.critique("one two") == "The answer has 2 words; 5 are allowed."
    assert length.revise("one two") == "one two"
    assert length.revise("One two. Three four five. Six seven!") == "One two. Three four five."
    assert length.revise("a b c d e f g") == "a b c d e"
    assert length.score("a b") > length.score("a b c")
    words = WordList({"words": ("knife", "c++")})
    assert words.critique("A Knife, a KNIFE.") == "The answer holds knife."
    assert words.critique("Knifes are fine.") == "The answer is in order."
    assert words.revise("Take a knife. Or a spoon.\nNo knife?") == "Or a spoon."
    assert words.revise("knife and fork") == "and fork"
    assert words.critique("C++, my c++") == "The answer holds c++."
    assert words.score("knife knife") < words.score("knife") < words.score("spoon") == 0


def test_rules_are_found_by_name_and_what_is_none_is_refused():
    assert isinstance(make_rule("length", {"max_words": 3}), Length)
    assert isinstance(make_rule("align.synthetic.rules.Length", {"max_words": 3}), Length)
    with pytest.raises(UserError, match="critic_rule='short': is none of length, word_list"):
        make_rule("short", {})
    with pytest.raises(UserError, match="cannot be imported"):
        make_rule("no_module.Rule", {})
    with pytest.raises(UserError, match=r"rule\.words: names no word"):
        make_rule("word_list", {"words": ()})


def test_a_round_reads_the_answer_of_the_one_before():
    class Shorten:
        def critique(self, answer):
            return f"{len(answer.split())} words"

        def revise(self, answer):
            return " ".join(answer.split()[:-1] or ["one"])

    outcomes = Outcomes(RULES)
    found = revise([Revised(ask("q"), "a b c", "a b c"), Revised(ask("r"), "one", "one")],
                   RuleCritic("shorten", Shorten()), (), outcomes, num_rounds=2, seed=0)
    assert [one.answer for one in found] == ["a", "one"]
    assert [part["critique"] for part in found[0].rounds] == ["3 words", "2 words"]
    assert found[0].initial == "a b c" and outcomes.counts == {"revision": {"unchanged": 2}}
    row = found[0].to_dict("m", "c")
    assert row["messages"] == [{"role": "user", "content": "q"},
                               {"role": "assistant", "content": "a"}]


# --- both orders ----------------------------------------------------------------------------

class Judge:
    """A critic whose vote for a pair is a function of the answers as they are shown."""

    name = "judge"

    def __init__(self, vote):
        self._vote = vote

    def choose(self, pairs, seed):
        return [self._vote(*pair.answers) for pair in pairs]


TWO = TwoAnswers(ask("q"), ("good", "bad"), ("stop", "length"))
BY_TEXT = Judge(lambda first, second: Vote(float(first == "good")))
FIRST = Judge(lambda first, second: Vote(1.0))
LEANING = Judge(lambda first, second: Vote(0.9 if first == "good" else 0.6))


def decide(judge, disagreement="drop", one=TWO, rules=RULES):
    outcomes = Outcomes(rules)
    pairs, counts = prefer([one], judge, ["kinder?"], outcomes, disagreement=disagreement, seed=0)
    return pairs, counts, {step: dict(found) for step, found in outcomes.counts.items()}


@pytest.mark.parametrize("one", [TWO, TwoAnswers(TWO.prompt, TWO.answers[::-1],
                                                 TWO.finishes[::-1])], ids=["as is", "swapped"])
def test_a_judge_of_texts_prefers_the_same_answer_in_whichever_order(one):
    (pair,), counts, _ = decide(BY_TEXT, one=one)
    assert (pair.responses, pair.ranks, pair.scores) == (("good", "bad"), (1, 2), (1.0, 0.0))
    assert pair.finishes == ("stop", "length") and pair.source == "judge"
    assert (counts["first_frac"], counts["disagreements"]) == (0.5, 0)


def test_a_judge_of_places_disagrees_with_itself_and_the_rule_decides():
    pairs, counts, faults = decide(FIRST)
    assert pairs == [] and faults == {"choice": {"disagreement": 1}}
    assert counts["disagreement_frac"] == counts["first_frac"] == 1.0
    for rule in ("tie", "soft"):
        (pair,), counts, _ = decide(FIRST, rule)
        assert (pair.ranks, pair.scores, counts["ties"]) == ((1, 1), (0.5, 0.5), 1)
    with pytest.raises(UserError, match="depends on their order"):
        decide(FIRST, "fail")


def test_probabilities_of_both_orders_are_averaged():
    (pair,), counts, _ = decide(LEANING, "soft")
    assert pair.responses == ("good", "bad") and pair.ranks == (1, 2)
    assert pair.scores == pytest.approx((0.65, 0.35)), "(0.9 + (1 - 0.6)) / 2"
    assert counts["disagreements"] == 1 and counts["first_frac"] == pytest.approx(0.75)
    (pair,), _, _ = decide(LEANING, "tie")
    assert pair.ranks == (1, 1)
    assert softmax_first(-1.0, -2.0) == pytest.approx(0.7310585786300049)
    assert softmax_first(-2.0, -1.0) + softmax_first(-1.0, -2.0) == pytest.approx(1.0)
    assert softmax_first(0.0, -2000.0) == 1.0 and softmax_first(-2000.0, 0.0) == 0.0


def test_a_vote_that_is_missing_is_counted_and_by_rule_the_other_decides():
    def vote(first, second):
        return Vote(1.0) if first == "good" else Vote(None, "no_letter")
    pairs, _, faults = decide(Judge(vote))
    assert pairs == [] and faults == {"choice": {"no_letter": 1}}
    (pair,), counts, faults = decide(Judge(vote), rules=RULES | {"no_letter": "keep"})
    assert pair.responses == ("good", "bad") and faults == {"choice": {"no_letter": 1}}
    assert pair.meta["p_first_by_order"] == [1.0, None] and counts["disagreement_frac"] == 0
    with pytest.raises(UserError, match="its choice names neither option, or both"):
        decide(Judge(vote), rules=RULES | {"no_letter": "fail"})
    none = Judge(lambda first, second: Vote(None, "no_letter"))
    pairs, counts, faults = decide(none, rules=RULES | {"no_letter": "keep"})
    assert pairs == [] and faults == {"choice": {"no_letter": 2, "no_vote": 1}}
    assert counts["first_frac"] is None


def test_a_rule_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match=r"rules\.empty='skip': is none of drop, keep, fail"):
        Outcomes({"empty": "skip"})
