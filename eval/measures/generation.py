"""Generated answers, scored by their tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data.chat import Conversation
from eval.respond.loaded import LoadedModel
from eval.respond.local import answer, make_prompts
from eval.tasks.task import Task, question_of
from model.generation.sampling import Sampling

NUM_EXAMPLES = 4  # solved examples in the prompt of a base model


def answer_and_score(model: LoadedModel, tasks: Sequence[Task], solved: Sequence[Conversation],
                     sampling: Sampling, *, seed: int, batch_size: int) -> list[dict[str, Any]]:
    """Answers the questions of solved conversations and scores each by its own task.

    Args:
        tasks: the tasks of the conversations; a base model's prompt has solved examples of them.

    Returns:
        One row per conversation: messages up to the question, question, reference, literal prompt,
        completion, how it ended (`finish`, see `Completion`), its tokens and their log-probability
        in nats, score.
    """
    by_name = {task.name: task for task in tasks}
    examples = [c for task in tasks for c in task.conversations("train", NUM_EXAMPLES, 0)]
    prompts = make_prompts(model, [question_of(c) for c in solved], examples[-NUM_EXAMPLES:])
    completions = answer(model, prompts, sampling, seed=seed, batch_size=batch_size)
    return [{"task": c.meta["task"], "family": c.meta["family"],
             "messages": question_of(c).to_dict()["messages"],
             "question": c.messages[-2].content, "reference": c.messages[-1].content,
             "prompt": model.tokenizer.decode(prompt), "completion": completion.text,
             "finish": completion.finish, "num_tokens": len(completion.tokens),
             "logp_nats": sum(completion.logps),
             "score": by_name[c.meta["task"]].score(c, completion.text)}
            for c, prompt, completion in zip(solved, prompts, completions)]
