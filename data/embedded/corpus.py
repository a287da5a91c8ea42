"""The embedded corpus: web pages generated from the Python environment.

pydoc renders the modules of the standard library and of the installed packages to HTML pages;
with READMEs and licences they are written as WARC records (`pydoc://package/module`) and pass the
same stages as a web crawl. Source code is a second domain, and the first sentences of docstrings
become questions. The texts keep their own licences: they are generated on the user's machine and
never distributed. The same installed versions give the same bytes.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import io
import json
import os
import pkgutil
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from core.artifacts import ROOT, digest, write_json
from core.errors import UserError
from core.progress import Progress, log
from data.embedded import render_pages
from data.readers.pages import DOMAIN_FIELD

STDLIB = "stdlib"
OWN_DISTRIBUTION = "heartwood"
WARC_DATE = "2000-01-01T00:00:00Z"      # fixed, so that equal pages give equal bytes
WARC_BYTES = 10 << 20                   # of HTML in one file, so that files can be read in parallel
CODE_FILE_BYTES = 8 << 20
MAX_PAGE_BYTES = 3 << 20
MAX_SOURCE_BYTES, MIN_SOURCE_BYTES = 200_000, 200
MODULES_PER_JOB = 60
SECS_PER_MODULE = 20
MAX_SUMMARY_PACKAGES = 3        # a summary of more packages than this is boilerplate

# Modules with side effects on import, and programs.
SIDE_EFFECTS = {"antigravity", "this", "idlelib", "turtledemo", "turtle", "tkinter", "lib2to3",
                "distutils", "pip"}
TESTS = {"test", "tests", "testing", "conftest", "benchmarks", "examples", "example"}
# Tables, generated wrappers, and modules whose classes mostly inherit their documentation.
TABLES = {"pygments.lexers", "pygments.styles", "dateparser.data", "dateparser_scripts", "tzdata",
          "wcwidth", "encodings", "google.protobuf", "jaxlib", "fontTools", "markdown_it", "PIL",
          "mpl_toolkits", "matplotlib.backends"}
# Modules whose pages show random names, or the time.
RANDOM = {"daft.functions.hdf5", "daft.functions.video", "numpy.f2py.rules"}
LICENCE = re.compile(r"(?i)^(licen[cs]es?|copying|notice|authors)\b[\w.+-]*$")
QUESTION_SCHEMA = pa.schema([(name, pa.string()) for name in
                             ("name", "module", "package", "kind", "summary")])


@dataclasses.dataclass(frozen=True)
class Module:
    """A module and its source file, located without importing it."""

    name: str
    path: Path | None       # source file; None for extension modules and namespaces

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]


def build(folder: Path, *, packages: str, code_max_bytes: int, seed: int) -> list[Path]:
    """Writes the corpus of this Python environment into `folder`.

    Files: ``pages-NNN.warc.gz``, ``code-NNN.jsonl.zst``, ``questions.parquet`` (columns of
    `QUESTION_SCHEMA`) and ``sources.json`` (versions, counts, skipped modules and files by reason).

    Args:
        packages: comma-separated packages and modules, ``stdlib`` for the standard library;
            empty for the standard library and Heartwood's dependencies.
        code_max_bytes: size of the source-code domain, UTF-8 bytes.
        seed: of the sample of source files, when their size exceeds `code_max_bytes`.

    Returns:
        The WARC and code files, inputs for `data.readers`.

    Raises:
        UserError: a named package is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    skipped: Counter[str] = Counter()
    modules = list(_find_modules(_roots(packages), skipped))
    distributions = _distributions(packages)
    scrubs = local_paths()
    pages, questions, unrendered = _render(modules, scrubs)
    questions = _choose_questions(questions)
    texts = list(_metadata_records(distributions, scrubs))
    sources = _choose_sources(modules, scrubs, code_max_bytes, seed, skipped)
    num_code_bytes = sum(len(source["text"].encode()) for source in sources)
    warcs = _write_warcs(folder, [*_page_records(pages), *texts])
    codes = _write_code(folder, sources)
    pq.write_table(pa.Table.from_pylist(questions, schema=QUESTION_SCHEMA),
                   folder / "questions.parquet", compression="zstd")
    write_json(folder / "sources.json", fingerprint(packages) | {
        "versions": {dist.name: dist.version for dist in distributions},
        "pages": len(pages), "page_bytes": sum(len(page.encode()) for page in pages.values()),
        "readmes_and_licences": len(texts), "code_files": len(sources),
        "code_bytes": num_code_bytes, "questions": len(questions),
        "question_packages": len({question["package"] for question in questions}),
        "skipped": dict(sorted(skipped.items())), "unrendered": unrendered})
    log(f"embedded corpus: {len(pages)} pages, {len(texts)} readmes and licences, "
        f"{num_code_bytes / 1e6:.1f} MB of code, {len(questions)} questions; "
        f"{len(unrendered)} modules could not be rendered (see sources.json)")
    return sorted([*warcs, *codes])


def fingerprint(packages: str) -> dict[str, Any]:
    """Python's version and a hash of the chosen distributions' versions; imports none."""
    versions = sorted((dist.name, dist.version) for dist in _distributions(packages))
    return {"python": platform.python_version(), "packages": packages, "hash": digest(versions)}


# --- modules and distributions ------------------------------------------------------------------

def _distributions(packages: str) -> list[importlib.metadata.Distribution]:
    """Distinct distributions of the chosen packages, sorted by name, without Heartwood."""
    if not (names := _names(packages)):
        wanted = _dependencies()
    else:
        chosen = {name.partition(".")[0] for name in names}
        wanted = {canonicalize_name(dist)
                  for name, dists in importlib.metadata.packages_distributions().items()
                  for dist in dists if name in chosen}
    return [importlib.metadata.distribution(name)
            for name in sorted(wanted - {OWN_DISTRIBUTION})]


def _dependencies() -> set[str]:
    """Canonical names of Heartwood's direct and indirect dependencies, without extras.

    The default corpus is built from these, so installing other packages does not change it.
    """
    needed_names, todo = set(), [OWN_DISTRIBUTION]
    while todo:
        for text in importlib.metadata.requires(todo.pop()) or ():
            requirement = Requirement(text)
            name = canonicalize_name(requirement.name)
            needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if needed and name not in needed_names:
                needed_names.add(name)
                todo.append(name)
    return needed_names


def _names(packages: str) -> list[str]:
    return [name for name in (part.strip() for part in packages.split(",")) if name]


def _roots(packages: str) -> list[str]:
    """Top-level modules to walk: the named ones, or the standard library and dependencies."""
    stdlib = sorted(sys.stdlib_module_names)
    if not (names := _names(packages)):
        needed = _dependencies()
        third_party = {name for name, dists in importlib.metadata.packages_distributions().items()
                       if needed & set(map(canonicalize_name, dists)) and name.isidentifier()}
        return [*stdlib, *sorted(third_party - set(stdlib))]
    roots = []
    for name in names:
        if name != STDLIB and importlib.util.find_spec(name.partition(".")[0]) is None:
            raise UserError(f"curate.packages={name!r}", "is not installed",
                            "name installed packages or `stdlib`, or leave it empty")
        roots += stdlib if name == STDLIB else [name.partition(".")[0]]
    return roots


def _find_modules(roots: Iterable[str], skipped: Counter[str]) -> Iterator[Module]:
    """All modules below the roots, including private ones; counts skipped modules by reason."""
    for root in roots:
        if root in SIDE_EFFECTS or root in TESTS:
            skipped["acts on import, is a program or a test"] += 1
            continue
        try:
            spec = importlib.util.find_spec(root)
        except (ImportError, ValueError):
            spec = None
        if spec is None:
            skipped["no module of this name on this platform"] += 1
        else:
            yield Module(root, _source(spec.origin))
            yield from _walk(list(spec.submodule_search_locations or ()), f"{root}.", skipped)


def _walk(folders: Sequence[str], prefix: str, skipped: Counter[str]) -> Iterator[Module]:
    for info in sorted(pkgutil.iter_modules(folders, prefix), key=lambda info: info.name):
        last = info.name.rpartition(".")[2]
        base = Path(info.module_finder.path) / last
        if last in TESTS or last.startswith("test_") or last == "__main__":
            skipped["acts on import, is a program or a test"] += 1
        elif last in ("_vendor", "vendor"):
            skipped["copy of another package"] += 1
        else:
            source = base / "__init__.py" if info.ispkg else base.with_suffix(".py")
            yield Module(info.name, _source(source))
            if info.ispkg:
                yield from _walk([str(base)], f"{info.name}.", skipped)


def _source(path: str | Path | None) -> Path | None:
    return Path(path) if path and Path(path).suffix == ".py" and Path(path).is_file() else None


def _is_public(module: Module) -> bool:
    return not any(part.startswith("_") for part in module.name.split("."))


def _is_table(module: Module) -> bool:
    return any(f"{module.name}.".startswith(f"{table}.") for table in TABLES | RANDOM)


# --- pages and questions ------------------------------------------------------------------------

def _render(modules: Sequence[Module], scrubs: list[tuple[str, str]]
            ) -> tuple[dict[str, str], list[dict[str, str]], dict[str, str]]:
    """HTML by module, questions, and the modules without a page by reason."""
    results, unrendered = {}, {}
    jobs = _jobs(modules)
    with (tempfile.TemporaryDirectory() as scratch, Progress("render", len(jobs), "jobs") as bar,
          concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool):
        scrubs = [(scratch, "tmp"), *scrubs]
        runs = [pool.submit(_run_job, job, Path(scratch) / str(i), scrubs)
                for i, job in enumerate(jobs)]
        for done, run in enumerate(concurrent.futures.as_completed(runs), 1):
            results |= run.result()
            bar.update(done)
    pages, questions = {}, []
    for name, result in sorted(results.items()):
        questions += result.get("questions", ())
        if "html" in result and len(result["html"]) <= MAX_PAGE_BYTES:
            pages[name] = result["html"]
        else:
            unrendered[name] = result.get("reason", f"page is above {MAX_PAGE_BYTES} bytes")
    return pages, questions, unrendered


def _jobs(modules: Sequence[Module]) -> list[list[str]]:
    """Modules per process, of one package where possible, so that it is imported once.

    A page may depend on what its process has imported before, so the split is a function of the
    modules alone.
    """
    groups: dict[str, list[str]] = {}
    for module in modules:
        if _is_public(module) and not _is_table(module):
            group = STDLIB if module.package in sys.stdlib_module_names else module.package
            groups.setdefault(group, []).append(module.name)
    jobs: list[list[str]] = []
    small: list[str] = []
    for names in groups.values():
        if len(names) < MODULES_PER_JOB // 2:
            small += names
        else:
            jobs += [list(part) for part in _parts(names, MODULES_PER_JOB)]
    jobs += [list(part) for part in _parts(small, MODULES_PER_JOB)]
    return sorted(jobs, key=len, reverse=True)


def _run_job(names: list[str], scratch: Path, scrubs: list[tuple[str, str]]) -> dict[str, dict]:
    """Renders modules in a subprocess, which is restarted after a module that ends it."""
    scratch.mkdir()
    results: dict[str, dict] = {}
    while left := [name for name in names if name not in results]:
        output, job = scratch / f"{len(results)}.jsonl", scratch / "job.json"
        output.touch()
        job.write_text(json.dumps({"modules": left, "scrub": scrubs, "results": str(output),
                                   "secs_per_module": SECS_PER_MODULE}))
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run([sys.executable, "-m", "data.embedded.render_pages", job], check=False,
                           cwd=scratch, env=_environment(scratch), stdin=subprocess.DEVNULL,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                           timeout=SECS_PER_MODULE * (len(left) + 1))
        text = output.read_text()
        lines = [json.loads(line) for line in text[:text.rfind("\n") + 1].splitlines()]
        results |= {line.pop("module"): line for line in lines if "module" in line}
        last = lines[-1].get("begin") if lines else left[0]
        if last:
            results[last] = {"reason": f"crashed, or ran above {SECS_PER_MODULE} s"}
    return results


def _environment(scratch: Path) -> dict[str, str]:
    """Minimal environment variables: the page of `os` shows them."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return kept | {"PATH": os.defpath, "HOME": str(scratch), "PYTHONPATH": str(ROOT),
                   "PYTHONHASHSEED": "0", "JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg",
                   "LANG": "C.UTF-8", "DO_NOT_TRACK": "1"}


def local_paths() -> list[tuple[str, str]]:
    """Local paths and their replacements in the corpus, longest first."""
    paths = sysconfig.get_paths()
    named = {paths["purelib"]: "site-packages", paths["platlib"]: "site-packages",
             paths["stdlib"]: "lib/python", sys.prefix: "python", sys.base_prefix: "python",
             os.getcwd(): "cwd", str(ROOT): "checkout", str(Path.home()): "~",
             tempfile.gettempdir(): "tmp"}
    named |= {os.path.realpath(path): public for path, public in named.items()}
    shared = {"/", "/usr", "/usr/local", "/opt", "/tmp", "/var/tmp", "/home"}
    local = {path: public for path, public in named.items() if path not in shared}
    return sorted(local.items(), key=lambda pair: (-len(pair[0]), pair[0]))


def _choose_questions(questions: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """One question per package and summary, of the shortest name; drops common summaries."""
    best: dict[tuple[str, str], Mapping[str, str]] = {}
    for question in questions:
        key = question["package"], question["summary"]
        best[key] = min(best.get(key, question), question,
                        key=lambda q: (len(q["name"]), q["name"]))
    packages = Counter(summary for _, summary in best)
    chosen = {q["name"]: q for q in best.values() if packages[q["summary"]] <= MAX_SUMMARY_PACKAGES}
    return [question for _, question in sorted(chosen.items())]


# --- files --------------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Page:
    """Contents of one WARC record."""

    uri: str
    content: bytes
    content_type: str
    domain: str


def _page_records(pages: Mapping[str, str]) -> Iterator[Page]:
    for name, html in sorted(pages.items()):
        yield Page(f"pydoc://{name.partition('.')[0]}/{name}", html.encode("utf-8", "replace"),
                   "text/html; charset=utf-8", "pages")


def _metadata_records(distributions: Iterable[importlib.metadata.Distribution],
                      scrubs: list[tuple[str, str]]) -> Iterator[Page]:
    """READMEs and licence files."""
    for dist in distributions:
        readme = dist.metadata.get_payload() or dist.metadata.get("Description") or ""
        if readme.strip():
            yield _text_page(f"readme://{dist.name}", readme, "readme", scrubs)
        for file in sorted(dist.files or (), key=str):
            path = Path(dist.locate_file(file))
            if ".dist-info" in str(file) and LICENCE.match(file.name) and path.is_file():
                yield _text_page(f"licence://{dist.name}/{file.name}",
                                 path.read_text("utf-8", errors="replace"), "licence", scrubs)


def _text_page(uri: str, text: str, domain: str, scrubs: list[tuple[str, str]]) -> Page:
    return Page(uri, render_pages.scrub(text, scrubs).encode("utf-8", "replace"),
                "text/plain; charset=utf-8", domain)


def _write_warcs(folder: Path, records: Sequence[Page]) -> list[Path]:
    parts = list(_parts(records, WARC_BYTES, lambda page: len(page.content)))
    paths = [folder / f"pages-{i:03d}.warc.gz" for i in range(len(parts))]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_write_warc, paths, parts))       # zlib works outside the GIL
    return paths


def _write_warc(path: Path, records: Iterable[Page]) -> None:
    with open(path, "wb") as file:
        writer = WARCWriter(file, gzip=True)
        for page in records:
            http = StatusAndHeaders("200 OK", [("Content-Type", page.content_type),
                                               ("Content-Length", str(len(page.content)))],
                                    "HTTP/1.1")
            mark = xxhash.xxh3_128(page.uri.encode() + page.content).digest()
            writer.write_record(writer.create_warc_record(
                page.uri, "response", payload=io.BytesIO(page.content),
                length=len(page.content), http_headers=http,
                warc_headers_dict={"WARC-Date": WARC_DATE, DOMAIN_FIELD: page.domain,
                                   "WARC-Record-ID": f"<urn:uuid:{uuid.UUID(bytes=mark)}>"}))


def _choose_sources(modules: Iterable[Module], scrubs: list[tuple[str, str]], max_bytes: int,
                    seed: int, skipped: Counter[str]) -> list[dict[str, str]]:
    """A random sample of source files of at most `max_bytes`, sorted by name."""
    chosen, num_bytes = [], 0
    candidates = [module for module in modules if module.path and not _is_table(module)]
    for module in sorted(candidates, key=lambda m: xxhash.xxh3_64_digest(m.name.encode(), seed)):
        size = module.path.stat().st_size
        if not MIN_SOURCE_BYTES <= size <= MAX_SOURCE_BYTES:
            skipped["source file is tiny or a table"] += 1
            continue
        if num_bytes + size > max_bytes:
            skipped["source file is above code_max_bytes"] += 1
            continue
        try:
            text = render_pages.scrub(module.path.read_text("utf-8"), scrubs)
        except UnicodeDecodeError:
            skipped["source file is not UTF-8"] += 1
            continue
        path = module.name.replace(".", "/") + ".py"
        chosen.append({"text": text, "source": f"code://{path}", "domain": "code"})
        num_bytes += len(text.encode())
    return sorted(chosen, key=lambda source: source["source"])


def _write_code(folder: Path, sources: Iterable[Mapping[str, str]]) -> list[Path]:
    paths = []
    for part in _parts(sources, CODE_FILE_BYTES, lambda source: len(source["text"])):
        paths.append(folder / f"code-{len(paths):03d}.jsonl.zst")
        with pa.CompressedOutputStream(str(paths[-1]), "zstd") as file:
            for source in part:
                file.write(json.dumps(source).encode() + b"\n")
    return paths


def _parts(items: Iterable[Any], max_size: int,
           size_of: Callable[[Any], int] = lambda item: 1) -> Iterator[list[Any]]:
    """Splits items into lists of at most `max_size`; a larger item has its own list."""
    part, held = [], 0
    for item in items:
        if part and held + size_of(item) > max_size:
            yield part
            part, held = [], 0
        part.append(item)
        held += size_of(item)
    if part:
        yield part
