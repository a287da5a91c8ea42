"""The data card: one self-contained page about a finished corpus, made from its own records."""

from __future__ import annotations

from pathlib import Path

from core.page.layout import headline, render_page, section
from core.page.markup import Markup, count, join, percent, size, tag
from core.progress import format_count
from data.card import sections
from data.card.funnel import NUM_SAMPLES, domain_table, draw_funnel, reasons, trim_note
from data.corpus import Corpus

STYLE = Path(__file__).with_name("card.css")


def write_card(folder: Path) -> None:
    """Writes `report.html` into a corpus; the same corpus gives the same bytes.

    Args:
        folder: output of `python -m data.curate`, complete but for the card.

    Raises:
        UserError: the manifest or a Parquet part is missing or damaged.
    """
    page = render_card(Corpus(folder))
    (folder / "report.html").write_text(page, encoding="utf-8")


def render_card(corpus: Corpus) -> str:
    """The whole page as HTML."""
    return render_page(
        "Heartwood: data card", _headline(corpus), sections.alarms(corpus), tag(
            "main", _funnel(corpus), sections.signals(corpus), sections.duplicates(corpus),
            sections.languages_and_domains(corpus), sections.privacy(corpus),
            sections.contamination(corpus), sections.classifiers(corpus),
            sections.speed(corpus), sections.unread(corpus), sections.origin(corpus)),
        style=STYLE.read_text())


def _headline(corpus: Corpus) -> Markup:
    manifest = corpus.manifest
    removed = sum(manifest.get("removed", {}).values())
    kept = manifest["documents"] / max(manifest["documents_in"], 1)
    tokens = manifest.get("tokens")
    clusters = manifest.get("near_dedup", {}).get("clusters")
    tiles = [
        ("Documents", count(manifest["documents"]), f"of {count(manifest['documents_in'])} read"),
        ("Text", size(manifest["bytes"]), f"of {size(manifest['bytes_in'])} read"),
        ("Tokens", format_count(tokens) if tokens else "n/a", "estimated" if tokens
         else "not counted"),
        ("Kept", percent(kept), f"{percent(manifest['bytes'] / max(manifest['bytes_in'], 1))} of "
         "the text"),
        ("Removed", count(removed), f"for {len(manifest.get('removed', {}))} reasons"),
        ("Near duplicates", "n/a" if clusters is None else f"{count(clusters)} clusters",
         "each pair verified"),
        ("Held out", count(manifest.get("heldout_documents", 0)),
         size(manifest.get("heldout_bytes", 0))),
        ("Redacted", count(sum(manifest.get("redacted", {}).values())), "spans of personal data")]
    return headline(
        "Heartwood · data card", "What is in the corpus, and what is not",
        f"{count(manifest['documents_in'])} documents were read, {count(manifest['documents'])} "
        "are kept for training. Every removal has a reason, and every reason is on this page.",
        tiles)


def _funnel(corpus: Corpus) -> Markup:
    per_token = corpus.bytes_per_token()
    tokens = f" Tokens are estimated at {per_token:.2f} bytes each." if per_token else ""
    return section(
        "The funnel", "Bars count documents, tints are domains, hatched is what the stage "
        f"removed; the thin line below is the remaining text.{tokens}",
        draw_funnel(corpus), domain_table(corpus), tag("p", trim_note(corpus), class_="note"),
        join(tag("h3", "Why documents were removed"),
             tag("p", f"Open a reason to read up to {NUM_SAMPLES} of its documents, those of the "
                 "smallest content hash.", class_="note"), reasons(corpus)))
