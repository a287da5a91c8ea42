"""The page of the report: tokenizers side by side, in one file that needs no server."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.page.charts import Line, Panel, draw_bar, draw_panel, draw_stack
from core.page.layout import headline, render_page, section, table
from core.page.markup import Markup, count, decimal, join, percent, size, tag
from core.progress import format_count
from data.vocabularies.compression import ALPHA
from data.vocabularies.views import Piece

STYLE = Path(__file__).with_name("page.css")
COLOURS = ("base", "sft", "dpo", "rl", "wood", "quiet")     # of the tokenizers, in their order
NUM_SHADES = 4              # of neighbouring tokens
NAME_CHARS = 11             # of a name beside a curve
NUM_CURVE_POINTS = 36       # fewer than get a running mean
# Languages whose premiums are drawn, by ISO 639-3 and, where files are named so, by 639-1.
DRAWN = ("deu de", "fra fr", "spa es", "por pt", "rus ru", "tur tr", "vie vi", "ind id", "swh sw",
         "arb ar", "heb he", "hin hi", "ben bn", "tam ta", "tha th", "kor ko", "jpn ja", "cmn zh",
         "amh am", "mya my", "khm km", "kat ka")
BREAK = "\u21b5"

Report = Mapping[str, Any]


#: The columns that decide: a title, and the cell of a tokenizer in a report.
DECIDING: Mapping[str, Callable[[Report, str], str]] = {
    "ids": lambda report, name: count(_of(report, name, "vocab_size")),
    "bytes/token": lambda report, name: decimal(_of(report, name, "together.bytes_per_token"), 2),
    "tokens/word": lambda report, name: decimal(_of(report, name, "together.tokens_per_word"), 2),
    "whole words": lambda report, name: _share(_of(report, name, "together.whole_words_frac")),
    "restored": lambda report, name: _share(_of(report, name, "together.round_trip_frac")),
    "unused": lambda report, name: _share(_of(report, name, "vocabulary.unused_frac")),
    "Rényi": lambda report, name: decimal(_of(report, name, "evenness.renyi_efficiency")),
    "median premium": lambda report, name: _premium(_of(report, name, "languages")),
    "head FLOPs/byte": lambda report, name: format_count(
        _of(report, name, "cost.head_flops_per_byte")),
    "tokens to first": lambda report, name: _times(_of(report, name, "cost.tokens_per_byte_ratio")),
    "encode MB/s": lambda report, name: decimal(report["speeds"][name]["encode_mb_per_sec"], 1)}


def _of(report: Report, name: str, path: str) -> Any:
    """A value of one tokenizer, by the names that lead to it."""
    value = report["tokenizers"][name]
    for part in path.split("."):
        value = value[part]
    return value


def _share(value: float | None, digits: int = 1) -> str:
    return "n/a" if value is None else percent(value, digits)


def _times(value: float) -> str:
    return f"{decimal(value, 2)} ×"


def _premium(languages: Report | None) -> str:
    return "n/a" if not languages or "worst" not in languages else _times(
        languages["median_premium"])


def render_report(report: Report) -> str:
    """The page as HTML.

    Args:
        report: see `data.tokenizer_report.make_report`.
    """
    names, texts = list(report["tokenizers"]), report["texts"]
    best = max(names, key=lambda name: _of(report, name, "together.bytes_per_token"))
    cheapest = min(names, key=lambda name: _of(report, name, "cost.head_flops_per_byte"))
    num_bytes = sum(text["bytes"] for text in texts.values())
    tiles = [("Tokenizers", count(len(names)), ", ".join(names)),
             ("Text", size(num_bytes), f"{count(len(texts))} domains, {count(report['languages'])} "
              "languages beside them"),
             ("Most bytes a token", decimal(_of(report, best, "together.bytes_per_token"), 2),
              best),
             ("Least FLOPs of the head", format_count(
                 _of(report, cheapest, "cost.head_flops_per_byte")),
              f"a byte, at width {report['width']}: {cheapest}")]
    return render_page(
        "Heartwood: tokenizers", headline(
            "Heartwood · tokenizers", "Tokenizers side by side", "The same texts through each. "
            "Fewer tokens make training and serving cheaper; a larger vocabulary makes the head "
            "dearer, and leaves more tokens rare.", tiles),
        section("What decides", "Over all domains together. Costs are relative to the first.",
                table(["tokenizer", *DECIDING], [[_name(names, name), *(
                    form(report, name) for form in DECIDING.values())] for name in names],
                    "numbers")),
        _compression(report), _languages(report), _vocabulary(report), _probes(report),
        _costs(report), _views(report), _terms(report), style=STYLE.read_text())


def _colour(names: Sequence[str], name: str) -> str:
    return COLOURS[names.index(name) % len(COLOURS)]


def _name(names: Sequence[str], name: str) -> Markup:
    return tag("span", tag("span", class_="swatch"), name, class_=f"tokenizer "
               f"{_colour(names, name)}")


def _legend(names: Sequence[str]) -> Markup:
    return tag("p", [join(_name(names, name), " ") for name in names], class_="legend")


def _bars(report: Report, titles: Mapping[str, str], value_of: Callable[[str, str], float],
          unit: str) -> Markup:
    """Bars of all tokenizers for each of several things.

    Args:
        titles: of the things, by their names.
        value_of: the value of a thing and a tokenizer.
        unit: after each value.
    """
    names = list(report["tokenizers"])
    longest = max(value_of(thing, name) for thing in titles for name in names)
    return tag("div", [tag("div", tag("div", title, class_="what"), tag("div", [
        draw_bar(value_of(thing, name), longest, f"{decimal(value_of(thing, name), 2)}{unit}",
                 _colour(names, name)) for name in names]), class_="bar-row")
        for thing, title in titles.items()], class_="groups")


def _compression(report: Report) -> Markup:
    names, texts = list(report["tokenizers"]), report["texts"]
    head = ["domain", "tokenizer", "bytes/token", "characters/token", "tokens/word",
            "whole words", "unknown tokens", "restored"]
    rows = []
    for domain in texts:
        for name in names:
            own = _of(report, name, "domains")[domain]
            rows.append([domain, _name(names, name), decimal(own["bytes_per_token"]),
                         decimal(own["characters_per_token"]), decimal(own["tokens_per_word"]),
                         _share(own["whole_words_frac"]), count(own["unknown_tokens"]),
                         _share(own["round_trip_frac"])])
    samples = [[domain, count(text["documents"]), size(text["bytes"]), size(text["read_bytes"]),
                count(text["words"]), text["fingerprint"]] for domain, text in texts.items()]
    return section(
        "Compression", "UTF-8 bytes that one token stands for, on average.", _legend(names),
        _bars(report, {domain: domain for domain in texts},
              lambda domain, name: _of(report, name, "domains")[domain]["bytes_per_token"], ""),
        tag("details", tag("summary", "All measures by domain"), table(head, rows, "numbers two")),
        tag("details", tag("summary", "The samples"),
            table(["domain", "documents", "sample", "chosen from", "words", "fingerprint"],
                  samples, "numbers")))


def _languages(report: Report) -> Markup | None:
    """Premiums over English; nothing where no translations were given."""
    names = [name for name in report["tokenizers"]
             if (_of(report, name, "languages") or {}).get("worst")]
    if not names:
        return None
    found = {name: _of(report, name, "languages") for name in names}
    languages = found[names[0]]["languages"]
    drawn = {known: known for pair in DRAWN for known in pair.split() if known in languages}
    rows = [[language, *(_times(found[name]["languages"][language]["premium"]) for name in names),
             *(decimal(found[name]["languages"][language]["tokens_per_word"], 2)
               for name in names)] for language in languages]
    summary = [[_name(names, name), _times(found[name]["median_premium"]),
                _times(found[name]["mean_premium"]), found[name]["worst"],
                _times(found[name]["worst_premium"])] for name in names]
    lines = [Line(_short(name), _quantiles([own["premium"] for own in
                                           found[name]["languages"].values()]),
                  _colour(names, name)) for name in names]
    return section(
        "Languages", "Tokens of a translation over those of the English text: what the same "
        "contents cost.", _legend(names),
        tag("div", draw_panel(Panel("Premium over English", "languages from the cheapest on", lines,
                                    (("English", 1.0),), x_name="share of languages, %")),
            table(["tokenizer", "median", "mean", "worst", "its premium"], summary, "numbers"),
            class_="panels"),
        _bars(report, drawn, lambda language, name: found[name]["languages"][language]["premium"],
              " ×") if drawn else None,
        tag("details", tag("summary", f"All {count(len(languages))} languages: premium, and "
                           "tokens a word"),
            table(["language", *names, *(f"{name}, tokens/word" for name in names)], rows,
                  "numbers")))


def _short(name: str) -> str:
    return name if len(name) <= NAME_CHARS else f"{name[:NAME_CHARS - 1]}…"


def _quantiles(values: Iterable[float]) -> list[tuple[float, float]]:
    """(share in percent, value), ascending, at no more than `NUM_CURVE_POINTS` shares."""
    ordered = sorted(values)
    last = len(ordered) - 1
    steps = min(NUM_CURVE_POINTS, len(ordered)) - 1
    places = [round(step * last / max(steps, 1)) for step in range(steps + 1)]
    return [(100 * place / max(last, 1), ordered[place]) for place in places]


def _vocabulary(report: Report) -> Markup:
    names = list(report["tokenizers"])
    own = {name: _of(report, name, "vocabulary") for name in names}
    lines = [Line(_short(name), [(math.log10(rank), math.log10(share))
                                 for rank, share in own[name]["ranks"]], _colour(names, name))
             for name in names]
    rows = [[_name(names, name), count(own[name]["ordinary"]), count(own[name]["specials"]),
             count(own[name]["empty"]), count(own[name]["used"]), count(own[name]["unused"]),
             count(own[name]["unreachable"]["tokens"]),
             *(decimal(_of(report, name, "evenness")[part]) for part in
               ("shannon_efficiency", "renyi_efficiency"))] for name in names]
    odd = list(own[names[0]]["odd"])
    odd_rows = [[_name(names, name), *(count(own[name]["odd"][reason]["tokens"])
                                       for reason in odd)] for name in names]
    return section(
        "Vocabulary", "How much of each vocabulary the sample uses, and what the rest is.",
        table(["tokenizer", "ordinary", "special", "without text", "used", "unused", "unreachable",
               "Shannon", "Rényi"], rows, "numbers"), _legend(names),
        tag("div", draw_panel(Panel("Use by rank", "log10 of a token's share of the sample", lines,
                                    x_name="log10 of its rank", x_digits=1)),
            tag("div", [tag("figure", tag("figcaption", tag("b", _name(names, name)), tag(
                "span", "share of the ordinary tokens by script")), draw_stack(
                    _scripts(own[name]["scripts"]), 1.0), _script_list(own[name]["scripts"]))
                        for name in names]), class_="panels"),
        tag("h3", "Odd tokens"), table(["tokenizer", *odd], odd_rows, "numbers"),
        [_examples(names, name, own[name]) for name in names])


def _scripts(scripts: Mapping[str, float]) -> list[tuple[str, float, str]]:
    return [(name, share, f"tint{min(place, 5)}")
            for place, (name, share) in enumerate(scripts.items())]


def _script_list(scripts: Mapping[str, float]) -> Markup:
    return tag("p", ", ".join(f"{name} {percent(share)}" for name, share in scripts.items()),
               class_="note")


def _examples(names: Sequence[str], name: str, own: Report) -> Markup:
    """Tokens to look at: the longest, the odd, and those that no text becomes."""
    groups = {"longest": own["longest"],
              **{reason: found["examples"] for reason, found in own["odd"].items()},
              "unreachable": own["unreachable"]["examples"]}
    return tag("details", tag("summary", "Tokens of ", _name(names, name)), [
        tag("p", tag("b", f"{title}: "), [join(tag(
            "code", _marked(text), class_="token", title=f"id {token}"), " ")
            for token, text in examples], class_="examples")
        for title, examples in groups.items() if examples],
        tag("p", tag("b", "special: "), [join(tag("code", text, class_="token"), " ")
                                         for text in own["special_names"]], class_="examples"))


def _marked(text: str) -> str:
    """A token's text with its white space made visible."""
    return text.replace(" ", "·").replace("\n", BREAK).replace("\t", "→")


def _probes(report: Report) -> Markup:
    names = list(report["tokenizers"])
    probes = {name: _of(report, name, "probes") for name in names}
    first = probes[names[0]]
    places = [[place, *(decimal(probes[name]["places"][place], 2) for name in names)]
              for place in first["places"]]
    cases = [[f"{case} case", *(decimal(probes[name]["cases"][case], 2) for name in names)]
             for case in first["cases"]]
    contractions = [[f"contraction with {mark}", *(
        decimal(probes[name]["contractions"][mark], 2) for name in names)]
        for mark in first["contractions"]]
    typos = [[wrong, *(f"{right} → {misspelt}" for right, misspelt in (
        probes[name]["typos"]["words"][wrong] for name in names))]
        for wrong in first["typos"]["words"]]
    return section(
        "Probes", "Short texts that show what compression hides.",
        tag("div", [tag("div", tag("h3", title), tag("p", lede, class_="note"),
                        table(["", *names], rows, "numbers")) for title, lede, rows in (
            ("Numbers", "Tokens, and the commonest split with the share of numbers that have it. "
             "Below 100 %, digits of one place fall into different tokens.",
             [[f"{digits} digits" if digits != "1" else "1 digit",
               *(_split(probes[name]["numbers"][digits]) for name in names)]
              for digits in first["numbers"]]),
            ("Indents", "Tokens that an indent adds to a line of code.", _count_rows(
                probes, "indents")),
            ("Words", "Mean tokens of 16 common words, by what stands before them, by case, and of "
             "contractions with either apostrophe.", [*places, *cases, *contractions]),
            ("Typing errors", "Tokens of a word → of its misspelling.", [
                ["all together", *(_times(probes[name]["typos"]["ratio"]) for name in names)],
                *typos]),
            ("Emoji", "Tokens after a word.", _count_rows(probes, "emoji")),
            ("Rare scripts", "Tokens a character, of a greeting.", [
                [script, *(decimal(probes[name]["scripts"][script], 2) for name in names)]
                for script in first["scripts"]]))], class_="probes"))


def _count_rows(probes: Mapping[str, Report], probe: str) -> list[list[str]]:
    every = list(probes.values())
    return [[thing, *(count(own[probe][thing]) for own in every)] for thing in every[0][probe]]


def _split(number: Report) -> Markup:
    shares = f" {percent(number['split_frac'], 0)}" if number["split_frac"] < 1 else ""
    return join(decimal(number["tokens"], 1), " ", tag("small", f"{number['split']}{shares}"))


def _costs(report: Report) -> Markup:
    names = list(report["tokenizers"])
    rows = []
    for name in names:
        cost, speed = _of(report, name, "cost"), report["speeds"][name]
        rows.append([_name(names, name), format_count(cost["embedding_params"]),
                     format_count(2 * cost["embedding_params"]),
                     format_count(cost["head_flops_per_byte"]),
                     _times(cost["head_flops_per_byte_ratio"]),
                     _times(cost["tokens_per_byte_ratio"]), decimal(speed["encode_mb_per_sec"], 1),
                     decimal(speed["decode_mb_per_sec"], 1)])
    return section(
        "Cost", f"Of a model of width {report['width']}. Tokens a byte, to the first tokenizer, "
        "is what all layers but the head cost. Speeds were measured on one core of the machine "
        "that wrote this page.",
        table(["tokenizer", "parameters, tied", "untied", "head FLOPs/byte", "to the first",
               "tokens/byte to the first", "encode MB/s", "decode MB/s"], rows, "numbers"))


def _views(report: Report) -> Markup:
    """Each sample text as every tokenizer cuts it."""
    names = list(report["tokenizers"])
    samples = list(_of(report, names[0], "views"))
    return section(
        "Tokens", "Shades take turns with tokens; the id shows under the pointer. A token that "
        "completes no character is shown as hex digits, before the one that does. ↵ is a line "
        "break, → a tab.",
        [tag("div", tag("h3", sample), [tag("div", tag(
            "div", _name(names, name), tag("small", f" {count(len(pieces))} tokens"),
            class_="what"), tag("pre", [_draw_piece(place, piece)
                                        for place, piece in enumerate(pieces)], class_="tokens"),
            class_="view") for name in names for pieces in [_of(report, name, "views")[sample]]])
         for sample in samples])


def _draw_piece(place: int, piece: Piece) -> Markup:
    text = piece.text.replace("\n", f"{BREAK}\n").replace("\t", "→\t")
    return tag("span", piece.part or text, class_=f"token shade{place % NUM_SHADES}"
               f"{' part' if piece.part else ''}", title=f"id {piece.token}")


def _terms(report: Report) -> Markup:
    terms = {
        "bytes/token": "UTF-8 bytes of the sample over its tokens; so with characters.",
        "tokens/word": "Tokens over words between white space; in scripts without spaces, words "
                       "are counted from their units.",
        "whole words": "Share of the words of letters, as often as they occur, that are one token "
                       "after a space.",
        "restored": "Share of documents that decoding gives back exactly.",
        "unused": "Share of the ordinary tokens that the sample never uses. A larger sample uses "
                  "more of them.",
        "unreachable": "Unused tokens whose own text is encoded as other tokens, alone and after "
                       "a line break. Tokens that are not UTF-8 alone are not tested.",
        "Shannon, Rényi": f"Entropy of the sample's tokens (for Rényi with alpha {ALPHA}) over the "
                          "logarithm of the number of ordinary tokens (arXiv 2306.16842).",
        "premium": "Tokens of a translation over those of the English text (arXiv 2305.15425).",
        "head FLOPs/byte": f"2 V D over bytes/token, for V ids and width D = {report['width']}.",
        "encode MB/s": "Megabytes of text per second of CPU time, one document after the other: "
                       "the median of three rounds, on this machine."}
    return section("Terms", "What is measured, and how.", tag(
        "dl", [join(tag("dt", name), tag("dd", text)) for name, text in terms.items()],
        class_="terms"))
