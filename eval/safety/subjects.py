"""The models of a safety report: loaded ones, and one behind an endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.errors import UserError
from core.pairs import parse_pairs
from data.chat import Conversation
from eval.respond.endpoint import EndpointResponder, Retries
from eval.respond.loaded import keeping, load_model
from eval.respond.local import FAULTS, complete, make_prompts
from eval.respond.responder import Reply
from eval.safety.probe import Subject
from model.execution import Execution
from model.generation.sampling import Sampling

NUM_CONNECTIONS = 8
RETRIES = Retries(timeout_secs=120.0, max_retries=2, backoff_secs=1.0, fails=False)
NEXT_QUESTION = "\nQuestion:"       # which a base model goes on with after its answer


def name_models(entries: Sequence[str]) -> dict[str, Path]:
    """The folders of models by name: of `NAME=DIR`, or of `DIR` with its own name.

    Raises:
        UserError: a name comes twice, or names no folder.
    """
    words = [word for entry in entries for word in entry.split(",") if word]
    return parse_pairs("model", [word if "=" in word else f"{Path(word).resolve().name}={word}"
                                 for word in words], Path)


def open_folder(name: str, folder: Path, batch_size: int, known: Path) -> Subject:
    """A loaded model, which answers with its likeliest tokens unless a temperature is given.

    A base model is shown conversations as questions and answers, and its answer ends where it
    writes the next question.

    Args:
        known: a folder that keeps answers and likelihoods, for a run that was ended.

    Raises:
        UserError: see `load_model`.
    """
    model = keeping(load_model(folder, Execution()), known)
    stops = () if model.chat else (NEXT_QUESTION,)

    def respond(conversations: Sequence[Conversation], max_new_tokens: int, seed: int = 0,
                temperature: float = 0.0, top_p: float = 1.0) -> list[Reply]:
        prompts = make_prompts(model, conversations)
        completions = complete(model, prompts, Sampling(max_new_tokens, temperature, top_p=top_p),
                               seed=seed, batch_size=batch_size, stop_texts=stops)
        return [Reply((one.text or "").strip(), FAULTS.get(one.finish, ""),
                      (len(prompt), len(one.tokens)))
                for prompt, one in zip(prompts, completions, strict=True)]
    return Subject(name, respond, model, model.chat)


def open_endpoint(url: str, name: str, key_variable: str, retries: Retries = RETRIES) -> Subject:
    """A model behind a chat endpoint; a request that fails is a fault of its reply.

    Raises:
        UserError: the URL is invalid; later, the server refuses the key or the name.
    """
    if not name:
        raise UserError("--endpoint_model", "is missing", "write the server's name of the model")

    def respond(conversations: Sequence[Conversation], max_new_tokens: int, seed: int = 0,
                temperature: float = 0.0, top_p: float = 1.0) -> list[Reply]:
        responder = EndpointResponder(
            url, name, Sampling(max_new_tokens, temperature, top_p=top_p),
            key_variable=key_variable, num_connections=NUM_CONNECTIONS, retries=retries)
        return responder.respond(conversations, seed)
    respond([], 1)      # refuses a bad URL before anything is loaded
    return Subject(name, respond, None, True)
