"""Removes the title and lines of the site's interface from extracted text.

Extractors often keep buttons, newsletter offers, links to other articles and, below the text, lists
of such links. These lines are recognised by their wording, mostly English. Code is not matched: it
is indented or ends in other punctuation.
"""

from __future__ import annotations

import html
import re

from data.extraction.paragraphs import is_prose, words

# The title is searched for in this first part of the text; shorter lines match it by chance.
HEAD_FRAC, HEAD_CHARS = 0.3, 2000
MIN_TITLE_CHARS = 10
# The headings of lists of other pages are searched for in this last part of the text.
TAIL_FRAC = 0.3

_TITLES = re.compile(r"<(title|h1)\b[^>]*>(.{0,1000}?)</\1", re.I | re.S)
_TAG = re.compile(r"<[^>]*>")
_BUTTONS = (
    r"share|tweet|print|close|menu|captions?|comments?|loading|save|e-?mail|pin it|reply|search|"
    r"subscribe|log ?in|sign (?:in|up)|view (?:results|gallery|comments|all)|"
    r"post (?:a )?comment|text size|order reprints|print article|back to top|"
    r"(?:read|see|learn|show|load) more|continue reading|next|previous|newsletter")
_OFFERS = r"newsletters?|inbox|e-?mails?|app|channel|mailing list|subscriptions?|updates"
_NETWORKS = r"twitter|facebook|instagram|linkedin|youtube"
_INTERFACE = re.compile(
    r"(?: {0,2}[•*–-] )?(?:"
    rf"(?:{_BUTTONS})"
    r"|advert(?:isement)?s?\b.{0,40}"
    r"|sponsored(?: links?| content| by .{0,60})?"
    r"|share (?:this|on|via|with)\b.{0,100}"
    r"|image \d+ of\b.{0,10}"
    r"|(?:related|see also|see more|read (?:more|also|next)|also read|recommended|must read|"
    r"don['’]t miss)\s?:.{0,150}"
    r"|(?:filed under|tags|categor(?:y|ies)|posted in|topics|labels)\s?:.{0,120}"
    rf"|(?:sign up|subscribe|click here|get (?:our|the|your|access))\b.{{0,150}}\b(?:{_OFFERS})\b"
    r".{0,60}"
    rf"|(?:follow|like|find) (?:us|me|him|her|them|@?\w+)\b.{{0,80}}\b(?:{_NETWORKS})\b.{{0,60}}"
    r"|.{0,80}\buses? cookies\b.*"
    r"|(?:copyright|©|\(c\)) .{0,100}(?:\d{4}|reserved).{0,60}"
    r"|(?:last|first) (?:updated|published|modified)\b.{0,60}"
    r"|have a (?:news )?tip\b.*"
    r")[\s:.!?…|»›>]*", re.I)
_OTHER_PAGES = re.compile(
    r"(?:related(?: (?:articles?|stories|posts|content|coverage|news|links|topics))?"
    r"|(?:most|popular) (?:popular|read|viewed|shared|categories|posts|articles)(?: .{0,30})?"
    r"|you (?:may|might|will) (?:also )?(?:like|enjoy)"
    r"|recommended(?: for you)?|trending(?: now)?|sponsored links|latest (?:news|stories|posts)"
    r"|more (?:stories|(?:from|in) .{0,40})|(?:read|up) next|don['’]t miss"
    r"|(?:\d+ )?comments?|leave a (?:comment|reply)|about the author"
    r")[\s:.!?…|»›>]*", re.I)


def drop_head(text: str, page: str) -> str:
    """The text without its title and what precedes it, such as sections, dates and authors.

    Args:
        text: extracted text.
        page: its HTML, which tells the title.
    """
    titles = [words(html.unescape(_TAG.sub("", title))) for _, title in _TITLES.findall(page)]
    lines, num_chars = text.split("\n"), 0
    for number, line in enumerate(lines):
        if num_chars > min(HEAD_FRAC * len(text), HEAD_CHARS):
            break
        key = words(line)
        if len(key) > MIN_TITLE_CHARS and any(title.startswith(key) for title in titles):
            head = [line for line in lines[:number] if is_prose(line)]
            return "\n".join(head + lines[number + 1:])
        num_chars += len(line) + 1
    return text


def drop_boilerplate(text: str) -> str:
    """The text without interface lines and without lists of other pages at its end."""
    kept, num_chars = [], 0
    for line in text.split("\n"):
        is_tail = num_chars > (1 - TAIL_FRAC) * len(text)
        if is_tail and _OTHER_PAGES.fullmatch(line):
            break
        num_chars += len(line) + 1
        if not _INTERFACE.fullmatch(line):
            kept.append(line)
    return "\n".join(kept)
