"""Self-Instruct from a server on loopback: the loop, filters, similarity, resumption, cost."""

import json
import os
import random
from pathlib import Path

import pytest
from chat_server import serve
from ml_collections import ConfigDict

from align.self_instruct import Pool, build
from align.sources import open_conversations, open_seeds
from align.synthetic.similar import SimilarityIndex
from align.synthetic.tasks import format_task, judge_task, make_prompt, parse_tasks
from configs.self_instruct import get_config
from core.artifacts import read_jsonl, write_jsonl
from core.errors import UserError
from data.layouts.faults import Faults
from data.layouts.instructions import Instruction
from eval.measures.overlap import rouge_l

SEEDS = [Instruction("Name the capital of the given country.", "France", "Paris"),
         Instruction("Why is the sky blue during the day?", "", "Air scatters blue light most."),
         Instruction("Sort these numbers from low to high.", "3 1 2", "1 2 3")]
TEXT = ("amber brisk cedar delta ember frost grain heron ivory jolly kayak lemon mango noble "
        "ocean pearl quiet river stone tulip umbra vivid willow xenon yacht zebra")
WORDS = TEXT.split()


def make_task(number, num_words=8):
    """A task whose instruction shares few words with that of another number."""
    rng = random.Random(number)
    return Instruction(" ".join(rng.choices(WORDS, k=num_words)) + f" {number}?",
                       f"text {number}" if number % 2 else "", f"The answer is {number}.")


PEOPLES = [*SEEDS, *(make_task(10**7 + number) for number in range(12))]


def write_tasks(tasks, first=4):
    return "\n\n".join(format_task(task, number) for number, task in enumerate(tasks, start=first))


@pytest.fixture
def server(monkeypatch):
    yield from serve(monkeypatch, lambda prompt: write_tasks(
        [make_task(random.Random(prompt).randrange(10**6) + 7 * part) for part in range(3)]))


@pytest.fixture
def seeds(tmp_path):
    rows = [seed._asdict() for seed in PEOPLES]
    rows[2] = {"instruction": SEEDS[2].instruction, "id": "seed_2", "is_classification": False,
               "instances": [{"input": SEEDS[2].input, "output": SEEDS[2].output}]}
    write_jsonl(tmp_path / "seeds.jsonl", rows)
    return tmp_path / "seeds.jsonl"


def make_config(server, seeds, **changes):
    config = get_config()
    section = config.self_instruct
    section.update(inputs=str(seeds), endpoint=server.url, endpoint_model="tiny",
                   num_instructions=20, max_prompts=40, round_prompts=4, max_new_tokens=64)
    section.run.update(num_connections=3, max_retries=1, backoff_secs=0.001, prompt_price=0.5,
                       answer_price=2.0)
    section.filters.update(changes.pop("filters", {}))
    section.update(changes)
    return config


def run(config, folder):
    folder.mkdir(exist_ok=True)
    return build(config, {}, folder)


# --- the stage -------------------------------------------------------------------------------

def test_a_model_writes_instructions_that_training_can_read_beside_those_of_people(
        server, seeds, tmp_path):
    found = run(make_config(server, seeds), tmp_path / "out")
    rows = read_jsonl(tmp_path / "out" / "instructions.jsonl")
    assert found["instructions"] == len(rows) == 20 and found["seeds"] == 15
    assert found["prompts"] == len(server.requests) == 8, "two rounds of 4 prompts with 3 tasks"
    assert found["removed"] == {"beyond_target": 4}
    assert {row["source"] for row in rows} == {"self_instruct"}
    assert not (tmp_path / "out" / "work").exists()
    people = tmp_path / "people.jsonl"
    write_jsonl(people, [{"messages": [{"role": "user", "content": f"question {number}"},
                                       {"role": "assistant", "content": "answer"}]}
                         for number in range(10)])
    section = ConfigDict(dict(out="sft", tasks={}, layout="", seed=0, inputs=(
        f"{people},{tmp_path}/out/instructions.jsonl@0.5")))
    mixed = list(open_conversations(section, None, Faults("sft")))
    of_model = [one for one in mixed if one.meta["source"] == "instructions"]
    assert len(mixed) - len(of_model) == 10 and 4 <= len(of_model) <= 16
    row = next(row for row in rows if row["input"] and any(
        row["instruction"] in one.messages[0].content for one in of_model))
    assert f"{row['instruction']}\n\n{row['input']}" in {one.messages[0].content
                                                         for one in of_model}


def test_prompts_show_seeds_and_from_the_second_round_on_own_tasks(server, seeds, tmp_path):
    run(make_config(server, seeds, round_prompts=2, num_instructions=12), tmp_path / "out")
    own = [row["instruction"] for row in read_jsonl(tmp_path / "out" / "instructions.jsonl")]
    shown = [([seed for seed in PEOPLES if seed.instruction in prompt],
              [task for task in own if task in prompt]) for prompt, _, _ in server.requests]
    sizes = [(len(seeds), len(tasks)) for seeds, tasks in sorted(shown, key=lambda s: len(s[1]))]
    assert sizes == [(3, 0)] * 2 + [(2, 1)] * 2


def test_a_run_that_was_ended_asks_for_nothing_again(server, seeds, tmp_path):
    config = make_config(server, seeds)
    run(config, tmp_path / "whole")
    answer, server.reply = server.reply, lambda prompt, number: (
        answer(prompt, number) if number <= 8 + 5 else (500, b"", {}))
    with pytest.raises(UserError, match="answers 500"):
        run(config, tmp_path / "ended")
    server.requests.clear()
    server.reply = answer
    run(config, tmp_path / "ended")
    assert len(server.requests) == 3
    for name in ("instructions.jsonl", "removed.jsonl"):
        assert (tmp_path / "ended" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_equal_prompts_of_a_round_are_asked_once(server, seeds, tmp_path):
    write_jsonl(seeds, [SEEDS[0]._asdict()])
    found = run(make_config(server, seeds, num_instructions=3), tmp_path / "out")
    assert found["prompts"] == len(server.requests) == 1 and found["removed"] == {}


def test_tokens_are_counted_and_cost_what_the_config_says(server, seeds, tmp_path):
    tasks = write_tasks([make_task(1)])
    server.reply = lambda prompt, number: server.completion(
        tasks, usage={"prompt_tokens": 1000, "completion_tokens": 300} if number > 1 else None)
    found = run(make_config(server, seeds, max_prompts=8), tmp_path / "out")
    assert found["usage"] == {"requests": 8, "prompt_tokens": 7000, "answer_tokens": 2100,
                              "uncounted": 1}
    assert found["cost"] == pytest.approx((7000 * 0.5 + 2100 * 2.0) / 1e6)
    assert found["instructions"] == 1 and found["removed"] == {"similar": 7}


def test_every_removal_is_counted_and_kept_with_its_reason(server, seeds, tmp_path):
    fresh = iter(range(100, 200))
    replies = {
        1: (write_tasks([make_task(1), SEEDS[1], make_task(2)._replace(output="I'm sorry, but I "
            "cannot help with that.")]), "stop"),
        2: (write_tasks([make_task(3), make_task(4)]), "length"),
        3: ("I like this game.", "stop"), 4: None}

    def reply(prompt, number):
        if number not in replies:
            return server.completion(write_tasks([make_task(next(fresh))]))
        return server.completion(*replies[number]) if replies[number] else (400, b"", {})
    server.reply = reply
    config = make_config(server, seeds, max_prompts=5, round_prompts=5)
    config.self_instruct.run.num_connections = 1
    found = run(config, tmp_path / "out")
    assert found["removed"] == {"similar": 1, "refusal": 1, "truncated": 1, "no_task": 1,
                                "rejected_400": 1}
    removed = read_jsonl(tmp_path / "out" / "removed.jsonl")
    assert {row["reason"]: row["score"] for row in removed}["similar"] == 1
    assert found["instructions"] == 3


@pytest.mark.parametrize("changes, line", [
    ({"endpoint": ""}, "exactly one of them"), ({"model": "sft"}, "exactly one of them"),
    ({"inputs": ""}, "names no seed tasks"),
    ({"max_shown_words": 3}, "none of its 15 tasks has at most 3 words"),
    ({"filters": {"max_similarity": 0.0}}, "max_similarity=0.0: must be a number, above 0"),
    ({"inputs": "nowhere.jsonl"}, "no such file or folder")])
def test_contradictory_configs_are_refused_at_once(server, seeds, tmp_path, changes, line):
    with pytest.raises(UserError, match=line) as caught:
        run(make_config(server, seeds, **changes), tmp_path / "out")
    assert server.requests == [] and "\n" not in str(caught.value)


def test_nothing_good_enough_is_an_error(server, seeds, tmp_path):
    server.reply = lambda prompt, number: server.completion("### Task 4\nInstruction: Why?")
    with pytest.raises(UserError, match=r"let no task pass: \{'malformed': 8\}"):
        run(make_config(server, seeds, max_prompts=8), tmp_path / "out")


def test_rows_that_are_no_seed_tasks_are_counted(tmp_path):
    write_jsonl(tmp_path / "seeds.jsonl", [
        SEEDS[0]._asdict(), {"prompt": "x", "completion": "y"},
        {"instruction": "Do it now.", "output": " "}, {"instruction": "Do it.", "instances": []}])
    faults = Faults("self_instruct")
    section = ConfigDict(dict(out="self_instruct", inputs=f"{tmp_path}/seeds.jsonl", seed=0))
    assert list(open_seeds(section, faults)) == SEEDS[:1]
    assert faults.counts.total() == 3 and faults.counts["several_instances"] == 1
    write_jsonl(tmp_path / "seeds.jsonl", [{"prompt": "x", "completion": "y"}])
    with pytest.raises(UserError, match=r"holds no instruction: write"):
        list(open_seeds(section, faults))


@pytest.mark.skipif("HEARTWOOD_DATASETS" not in os.environ, reason="needs the data sets")
def test_the_seed_tasks_of_self_instruct_are_read_and_no_two_are_similar():
    path = Path(os.environ["HEARTWOOD_DATASETS"]) / "stanford_alpaca" / "seed_tasks.jsonl"
    section = get_config().self_instruct
    section.inputs, faults = str(path), Faults("self_instruct")
    seeds = list(open_seeds(section, faults))
    assert len(seeds) == 175 and not faults.counts
    pool = Pool(seeds, section)
    assert len({task for number in range(200) for task in pool.draw(number)}) > 100
    for seed in seeds:
        (task,) = parse_tasks(format_task(seed, 1))
        assert task.instruction == " ".join(seed.instruction.split())


# --- similarity ------------------------------------------------------------------------------

def variants(num, rng):
    """Texts of few words, of which many are similar to an earlier one."""
    texts = []
    for _ in range(num):
        words = rng.choices(WORDS, k=rng.randint(1, 14)) if not texts or rng.random() < 0.4 \
            else rng.choice(texts).split()
        for _ in range(rng.randint(0, 3)):
            place = rng.randrange(len(words) + 1)
            words[place:place + rng.randint(0, 1)] = rng.choices(WORDS, k=rng.randint(0, 2))
        texts.append(" ".join(words))
    return texts


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 1.0])
def test_the_index_finds_what_comparing_with_all_finds(threshold):
    rng, index, added, found = random.Random(0), SimilarityIndex(threshold), [], 0
    for text in variants(120, rng):
        nearest = max((rouge_l(text, other).f1 for other in added), default=0.0)
        assert index.nearest(text) == (nearest if nearest >= threshold else 0.0)
        found += nearest >= threshold
        index.add(text)
        added.append(text)
    assert len(index) == 120 and 10 < found < 120


def test_similar_texts_need_no_two_neighbouring_words_in_common():
    one = "a b c d e f g h i j"
    other = "a x b c y d e z f g"        # 7 of 10 words in their order
    index = SimilarityIndex(0.7)
    index.add(one)
    assert rouge_l(one, other).f1 == index.nearest(other) == 0.7
    assert index.nearest("") == index.nearest("j i h g f e d c b a") == 0


def test_few_texts_are_compared_though_all_share_their_frequent_words(monkeypatch):
    rng, index, compared = random.Random(1), SimilarityIndex(0.7), []
    for number in range(2000):
        rare = " ".join(f"{rng.choice(WORDS)}{rng.randrange(30)}" for _ in range(7))
        index.add(f"write a list of the {rare} {number}")
    monkeypatch.setattr("align.synthetic.similar.rouge_l",
                        lambda *texts: compared.append(texts) or rouge_l(*texts))
    for number in range(20):
        rare = " ".join(f"{rng.choice(WORDS)}{rng.randrange(30)}" for _ in range(7))
        index.nearest(f"write a list of the {rare} once more {number}")
    assert len(compared) < 20, "of 40,000 pairs"


# --- the form and the filters ----------------------------------------------------------------

@pytest.mark.parametrize("reply", [
    write_tasks(SEEDS), write_tasks(SEEDS).partition("\n")[2],
    write_tasks(SEEDS).replace("### ", "").replace("none", "N/A."),
    write_tasks(SEEDS).replace("### Task", "## Task").replace("Output:", "**Output:**"),
    "Here are the tasks.\n\n" + write_tasks(SEEDS).replace("Instruction:", "**Instruction**:"),
    "\n".join(line for line in write_tasks(SEEDS).splitlines() if "Task" not in line),
    write_tasks(SEEDS).replace("### Task 5", "**Task 5: The sky**")])
def test_tasks_are_parsed_in_all_forms(reply):
    assert parse_tasks(reply) == SEEDS


def test_an_output_may_hold_the_words_of_the_form():
    task = Instruction("Write two examples of a test.", "", 
                       "Input: 1\nOutput: 2\n\nTask 1 is easy.")
    assert parse_tasks(write_tasks([task, SEEDS[0]])) == [task, SEEDS[0]]
    assert parse_tasks("### Task 4\nInstruction: Do it.\nOutput:") == [
        Instruction("Do it.", "", "")]
    assert parse_tasks("Nothing.") == []


def test_a_prompt_says_how_many_tasks_it_shows_and_asks_for():
    prompt = make_prompt(SEEDS, 8)
    assert "Below are 3 tasks" in prompt and "Write 8 more" in prompt
    assert "heading of task 4" in prompt and "{" not in prompt
    assert parse_tasks(prompt.partition("\n\n### ")[1] + prompt.partition("\n\n### ")[2]) == SEEDS


BOUNDS = get_config().self_instruct.filters.to_dict() | {"max_output_words": 40}


@pytest.mark.parametrize("changes, reason", [
    ({}, ""), ({"instruction": ""}, "malformed"), ({"output": ""}, "malformed"),
    ({"instruction": "Name a city"}, "too_short"), ({"instruction": "word " * 151}, "too_long"),
    ({"instruction": "Describe the Image below in words."}, "blocked_word"),
    ({"instruction": "Imagine a photograph of a city."}, ""),
    ({"instruction": "- name the capital of it"}, "bad_start"),
    ({"instruction": "Опишите этот город своими словами."}, ""),
    ({"instruction": "\"Paris\" is where in France?"}, ""),
    ({"input": "Paris"}, "echo"), ({"output": SEEDS[0].instruction}, "echo"),
    ({"output": "As an AI language model, I cannot."}, "refusal"),
    ({"output": " ".join(map(str, range(41)))}, "output_too_long"),
    ({"output": " ".join(map(str, range(40)))}, ""),
    ({"output": "no no no no no no no no no no"}, "repetition")])
def test_filters(changes, reason):
    assert judge_task(SEEDS[0]._replace(**changes), BOUNDS).reason == reason


def test_the_rows_are_plain_json(server, seeds, tmp_path):
    run(make_config(server, seeds, num_instructions=1, round_prompts=1), tmp_path / "out")
    (line,) = (tmp_path / "out" / "instructions.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert list(row) == ["instruction", "input", "output", "source", "meta"]
    assert row["meta"]["model"] == "tiny" and row["meta"]["prompt"] == 0
