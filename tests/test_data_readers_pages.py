"""Archived responses: what the bytes are counts for more than what the headers say."""

import gzip
import io
import zlib

import brotli
import pyarrow as pa
import pytest

from data.readers.formats import MAGICS, begins_as_html, is_text, name_format
from data.readers.pages import Response, may_be_text, read_page, unpack
from data.readers.records import Corrupt, RawRecord, Skipped

HTML = b"<!DOCTYPE html><html><body><p>A page of text.</p></body></html>"
TEXT = b"A page of text, as a crawler stored it, in plain words."


def judge(content, declared="", identified="", **options):
    """The media type under which a body is read, or the reason why it is not."""
    response = Response("http://a/", declared, identified, **options)
    if not may_be_text(response):
        return "closed"
    item = read_page(response, io.BytesIO(content), "warc", len(content))
    return item.content_type if isinstance(item, RawRecord) else item.reason


@pytest.mark.parametrize(("content", "declared", "identified", "expected"), [
    (HTML, "text/html; charset=utf-8", "", "text/html"),
    (HTML, "application/octet-stream", "", "text/html"),
    (HTML, "application/octet-stream", "text/html", "text/html"),
    (TEXT, "application/octet-stream", "text/html", "text/html"),
    (TEXT, "application/octet-stream", "text/plain", "text/plain"),
    (TEXT, "application/octet-stream", "", "warc: content is not text"),
    (TEXT, "application/octet-stream", "application/octet-stream", "warc: content is not text"),
    (TEXT, "", "", "text/html"),
    (TEXT, "", "text/plain", "text/plain"),
    (HTML, "text/plain", "", "text/html"),
    (TEXT, "text/plain", "", "text/plain"),
    (b"<a href='x'>in text</a>", "text/plain", "", "text/plain"),
    (b"\xef\xbb\xbf\n <!-- made by hand -->\n<HTML>", "text/plain", "", "text/html"),
    (b"<?xml version='1.0'?>\n<!doctype html>", "application/xhtml+xml", "",
     "application/xhtml+xml"),
    (b"<?xml version='1.0'?><rss/>", "application/xml", "", "application/xml"),
    (HTML, "application/pdf", "text/html", "text/html"),
    (HTML, "image/png", "image/png", "closed"),
    (HTML, "application/pdf", "", "closed"),
    (TEXT, "text/dns", "", "closed"),
    (b"\r\n%PDF-1.7\n1 0 obj", "text/html", "", "content is PDF"),
    (b"{\\rtf1\\ansi text}", "text/html", "text/html", "content is RTF"),
    (b"PK\x03\x04word/document.xml", "text/plain", "", "content is ZIP or Office"),
    (b"\x89PNG\r\n\x1a\n", "application/octet-stream", "", "content is an image"),
])
def test_bytes_decide_then_the_crawler_then_the_server(content, declared, identified, expected):
    assert judge(content, declared, identified) == expected


def test_converted_text_stays_text():
    assert judge(HTML, "text/plain", is_converted=True) == "text/plain"
    assert judge(b"%PDF-1.4", "text/plain", is_converted=True) == "content is PDF"


def test_formats_are_named_by_their_first_bytes():
    samples = {
        "PDF": [b"%PDF-1.4"], "RTF": [b"{\\rtf1"], "PostScript": [b"%!PS-Adobe-3.0"],
        "ZIP or Office": [b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"],
        "an image": [b"GIF89a", b"\xff\xd8\xff\xe0", b"RIFF\1\2\3\4WEBP", b"II*\0",
                     b"BM\1\2\3\4\0\0\0\0"],
        "audio or video": [b"ID3\x03\0", b"\0\0\0\x20ftypmp42", b"OggS\0", b"FWS\x0a\1\2\3\0",
                           b"RIFF\1\2\3\4WAVE"],
        "a font": [b"wOF2", b"OTTO\0", b"\0\1\0\0\0"],
        "an executable": [b"\x7fELF", b"MZ\x90\0\3\0", b"\0asm"],
        "an archive": [b"Rar!\x1a\x07", b"7z\xbc\xaf\x27\x1c", b"\x1f\x8b\x08", b"BZh91AY&SY",
                       b"x" * 257 + b"ustar"],
        "a database": [b"SQLite format 3\0", b"PAR1\x15"]}
    assert samples.keys() == MAGICS.keys()
    for name, heads in samples.items():
        for head in heads:
            assert name_format(head + b" and more") == f"content is {name}", head
    for text in (b"BMW builds cars.", b"MZ is a mark.", b"PK and others", b"OTTO builds cars",
                 b"CWS\nand others", b"The ftyp box", b"Rarely", b"ID3 tags", b"PAR1, a format",
                 b"PDF-1.4", b"Read %PDF-1.4", b"IIII", b"{rtf}", "яы тон".encode("cp1251"), b""):
        assert name_format(text) is None, text


def test_html_is_known_by_its_frame():
    for page in (b"<html>", b"<!doctype HTML>", b" \n<head lang=en>", b"<body\n>",
                 b"<!-- a --><html>"):
        assert begins_as_html(page), page
    for text in (b"<htmlx>", b"<p>", b"text <html>", b"<header>", b"<?xml version='1.0'?><a/>",
                 b""):
        assert not begins_as_html(text), text
    assert is_text("a\tж\r\n\f\x1b".encode()) and is_text("ж".encode("utf-16"))
    assert not is_text(b"a\1b")


GZIP = gzip.compress(TEXT, mtime=0)
CHUNKED = b"5;name=x\r\n" + TEXT[:5] + b"\r\n" + b"%X\r\n" % (len(TEXT) - 5) + TEXT[5:] + (
    b"\r\n0\r\nTrailer: a\r\n\r\n")


@pytest.mark.parametrize(("body", "content_encoding", "transfer_encoding"), [
    (TEXT, "gzip", ""), (TEXT, "br", ""), (TEXT, "deflate", ""), (TEXT, "zstd", ""),
    (TEXT, "gzip, br", ""), (GZIP, "", ""), (GZIP, "gzip, gzip", ""), (GZIP, "br", ""),
    (gzip.compress(GZIP, mtime=0), "gzip", ""), (gzip.compress(GZIP, mtime=0), "", ""),
    (GZIP, "identity", ""),
    (zlib.compress(TEXT), "deflate", ""), (brotli.compress(TEXT), "br", ""),
    (pa.compress(TEXT, "zstd", asbytes=True), "zstd", ""), (brotli.compress(GZIP), "gzip, br", ""),
    (CHUNKED, "", "chunked"), (TEXT, "", "chunked"), (TEXT, "gzip", "Chunked"),
    (CHUNKED.replace(b"\r\n", b"\n"), "", "gzip, chunked"),
    (CHUNKED[:-9 - len(b"Trailer: a")], "", "chunked"),
    (b"%x\r\n" % len(GZIP) + GZIP + b"\r\n0\r\n\r\n", "gzip", "chunked"),
    (gzip.compress(CHUNKED, mtime=0), "gzip", "")])
def test_encodings_are_undone_where_the_bytes_have_them(body, content_encoding, transfer_encoding):
    expected = CHUNKED if body == gzip.compress(CHUNKED, mtime=0) else TEXT
    assert unpack(body, content_encoding, transfer_encoding) == expected


def test_a_raw_deflate_stream_is_undone():
    packer = zlib.compressobj(wbits=-15)
    assert unpack(packer.compress(TEXT) + packer.flush(), "deflate") == TEXT


def test_a_body_that_is_neither_encoded_nor_text_is_damaged(monkeypatch):
    noise = bytes(range(1, 256)) * 3
    for encoding in ("gzip", "br", "zstd", "deflate"):
        item = read_page(Response("u", "text/html", content_encoding=encoding), io.BytesIO(noise),
                         "warc")
        assert item == Corrupt("u", "warc: record is damaged"), encoding
    item = read_page(Response("u", "text/html"), io.BytesIO(TEXT), "warc", len(TEXT) + 1)
    assert item == Corrupt("u", "warc: record is cut off")
    monkeypatch.setattr("data.readers.pages.MAX_RECORD_BYTES", 20)
    item = read_page(Response("u", "text/html"), io.BytesIO(TEXT), "warc")
    assert item == Corrupt("u", "warc: record is too large")


def test_a_skipped_response_says_why():
    item = read_page(Response("u", "", "application/pdf"), io.BytesIO(TEXT), "arc")
    assert item == Skipped("u", "arc: content is not text")
