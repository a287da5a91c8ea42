"""How the server is installed: an image of a container, and a service of systemd."""

import contextlib
import http.client
import http.server
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from api_server import BYTES, CAPACITY, HELLO, make_model

from core import caches, entry
from core.artifacts import ROOT, make_lineage, write_json
from model.directory import save_model

FOLDER = ROOT / "scripts" / "launch" / "serve"
UNIT = (FOLDER / "heartwood-serve.service").read_text()
CONTAINER = (FOLDER / "Containerfile").read_text()
LAST_SECS = 5       # for connections to end: serve.api.server.LAST_SECS
STRANGER = 54321    # a user that owns nothing


@pytest.fixture(scope="module")
def flags():
    """Flags of the server and their defaults."""
    done = subprocess.run([sys.executable, "-m", "serve.run", "--help"], cwd=ROOT, check=True,
                          capture_output=True, text=True)
    return dict(re.findall(r"^  --(\w+):.*?(?: \[([^\]]*)\])?$", done.stdout, re.M))


def _instructions():
    """(instruction, its words) of the container file, and the text of its comments."""
    text = re.sub(r"^#.*\n", "", CONTAINER, flags=re.M).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line]


def _settings():
    """The values of each setting of the unit."""
    found = {}
    for line in UNIT.splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def _flag_names(words):
    return {word.partition("=")[0].removeprefix("--") for word in words if word.startswith("--")}


def test_an_image_starts_the_server_without_privileges(flags):
    found = _instructions()
    stage = found[max(place for place, (name, _) in enumerate(found) if name == "FROM"):]
    last = {name: words for name, words in stage}
    users = [words for name, words in stage if name == "USER"]
    assert users == ["10001"] and [name for name, _ in stage].index("USER") < \
        [name for name, _ in stage].index("ENTRYPOINT")
    assert last["STOPSIGNAL"] == "SIGTERM" and "ADD" not in dict(found)
    python, _, module, *words = json.loads(last["ENTRYPOINT"])
    assert module == "serve.run" and _flag_names(words) == {"host", "port", "api_keys"}
    assert _flag_names(words) <= {*flags}
    assert "--host=0.0.0.0" in words and python in last["HEALTHCHECK"]
    keys, = (word.partition("=")[2] for word in words if word.startswith("--api_keys"))
    assert f"--secret=heartwood_keys,target={keys}," in CONTAINER
    home = re.search(r"XDG_CACHE_HOME=(\S+)", last["ENV"])[1]
    assert last["VOLUME"] == f"{home}/heartwood"
    stop_secs = int(re.search(r"--stop-timeout=(\d+)", CONTAINER)[1])
    assert stop_secs > float(flags["shutdown_secs"]) + LAST_SECS


def test_an_image_gets_what_the_server_imports():
    copied = [words.split()[:-1] for name, words in _instructions()
              if name == "COPY" and "--from=" not in words]
    sources = {source for words in copied for source in words}
    assert all((ROOT / source).exists() for source in sources)
    assert {source for source in sources if (ROOT / source).is_dir()} == {
        "core", "data", "model", "eval", "serve"}, "what serve may import"
    assert {"setup.py", "pyproject.toml"} <= sources


@pytest.mark.parametrize("status", [200, 503, None])
def test_the_health_check_is_the_servers_answer(status):
    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    _, code = next(item for item in _instructions() if item[0] == "HEALTHCHECK")
    _, option, program = json.loads(code.partition("CMD ")[2])
    with http.server.HTTPServer(("127.0.0.1", 0), Health) as server:
        if status:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        else:
            server.server_close()
        asked = program.replace("8000", str(server.server_port))
        done = subprocess.run([sys.executable, option, asked], stderr=subprocess.DEVNULL)
        if status:
            server.shutdown()
    assert (done.returncode == 0) == (status == 200)


def test_a_service_is_confined_and_ends_in_time(flags):
    found = _settings()
    python, _, module, *words = shlex.split(found["ExecStart"][0])
    assert module == "serve.run" and _flag_names(words) <= {*flags}
    assert Path(python).is_relative_to(found["WorkingDirectory"][0])
    credential = found["LoadCredential"][0].partition(":")[0]
    assert f"--api_keys=${{CREDENTIALS_DIRECTORY}}/{credential}" in words
    limit, = (float(word.partition("=")[2]) for word in words if "shutdown_secs" in word)
    assert limit == float(flags["shutdown_secs"])
    assert float(found["TimeoutStopSec"][0]) > limit + LAST_SECS
    assert found["KillSignal"] == ["SIGTERM"] and found["Restart"] == ["on-failure"]
    assert found["RestartPreventExitStatus"] == [str(entry.EXIT_USER_ERROR)]
    assert "XDG_CACHE_HOME=%C" in found["Environment"][0].split()
    assert found["CacheDirectory"] == ["heartwood"]
    confined = {"DynamicUser": "yes", "NoNewPrivileges": "yes", "CapabilityBoundingSet": "",
                "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes",
                "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX"}
    assert {name: found[name] for name in confined} == {
        name: [value] for name, value in confined.items()}
    assert found["MemoryDenyWriteExecute"] == ["no"], "XLA compiles into memory"


def test_the_cache_of_a_service_is_where_it_may_write(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert caches.cache_folders()[-1] == Path("/var/cache/heartwood")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="without systemd")
def test_systemd_accepts_the_service(tmp_path):
    python = shlex.split(_settings()["ExecStart"][0])[0]
    path = tmp_path / "heartwood-serve.service"
    path.write_text(UNIT.replace(python, sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(path)],
                          capture_output=True, text=True)
    assert done.returncode == 0 and path.name not in done.stderr, done.stderr
    done = subprocess.run(["systemd-analyze", "security", "--offline=yes", "--threshold=20",
                           str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def _open_folder():
    """A folder whose parents everybody may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def _owned_files(folder):
    """What the stranger owns: in places where everybody may write, and anywhere in a folder."""
    places = ["/tmp", "/var/tmp", "/dev/shm", "/run/lock", str(ROOT)]
    found = [Path(place) / name for place in places if os.path.isdir(place)
             for name in os.listdir(place)]
    return {path for path in [*found, *folder.rglob("*")]
            if os.path.lexists(path) and path.lstat().st_uid == STRANGER}


def _ask(port, path, body=None, key=""):
    """Status and body of a response."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST" if body else "GET", path, body and json.dumps(body),
                           {"Authorization": f"Bearer {key}"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


@pytest.mark.full
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root")
def test_the_services_command_runs_as_a_user_without_a_home(config, execution):
    """The user may read what root may, as the environment can lie in root's home, and write what
    everybody may."""
    pytest.importorskip("uvicorn")
    with _open_folder() as folder:
        made = make_model(config, execution)
        BYTES.save(folder / "source")
        (folder / "model").mkdir()
        save_model(folder / "model", made.params, made.config, folder / "source", chat=True,
                   context_tokens=CAPACITY)
        write_json(folder / "model" / "lineage.json",
                   make_lineage(stage="x", config={}, inputs={}, code=""))
        (folder / "keys").write_text("the-key\n")
        (folder / "cache").mkdir()
        os.chown(folder / "cache", STRANGER, STRANGER)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        _, *words = shlex.split(
            _settings()["ExecStart"][0].replace("8000", str(port))
            .replace("/srv/heartwood/model", str(folder / "model"))
            .replace("${CREDENTIALS_DIRECTORY}", str(folder)))
        rights = "-all,+dac_read_search"
        shared = {name: value for name, value in os.environ.items()
                  if name.startswith(("JAX_", "XLA_")) and name != "JAX_COMPILATION_CACHE_DIR"}
        process = subprocess.Popen(
            ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups",
             f"--inh-caps={rights}", f"--ambient-caps={rights}", f"--bounding-set={rights}",
             "--no-new-privs", sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
            env={**shared, "PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(folder / "cache"),
                 "PYTHONDONTWRITEBYTECODE": "1"})
        try:
            lines = []
            while "ready after" not in (line := process.stderr.readline()):
                assert line, lines
                lines.append(line)
            assert _ask(port, "/health") == (200, {"status": "ok"})
            body = {"model": "model", "messages": HELLO, "max_tokens": 4}
            assert _ask(port, "/v1/chat/completions", body)[0] == 401
            status, answer = _ask(port, "/v1/chat/completions", body, "the-key")
            assert status == 200 and answer["usage"]["completion_tokens"] > 0
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
        finally:
            process.kill()
            process.communicate()
        programs = folder / "cache" / "heartwood" / "jax"
        assert any(programs.iterdir()) and programs.stat().st_mode & 0o77 == 0
        assert {path for path in _owned_files(folder)
                if not path.is_relative_to(folder / "cache")} == set()
