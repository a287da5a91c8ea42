"""The compile cache: where it lies, and that a command runs without one."""

import json
import os
import subprocess
import sys

from core import caches
from core.artifacts import ROOT


def test_the_compile_cache_is_on_although_a_stage_imports_jax_first(tmp_path):
    code = ("import jax\nfrom core import entry\n"
            "entry.run(lambda: {'cache': jax.config.jax_compilation_cache_dir})")
    clean = {name: value for name, value in os.environ.items()
             if name != "JAX_COMPILATION_CACHE_DIR"}
    for given, expected in ({}, str(ROOT / ".cache" / "jax")), (
            {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}, str(tmp_path)):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean | given, check=True,
                              capture_output=True, text=True)
        assert json.loads(done.stdout) == {"cache": expected}


def test_a_compile_cache_lies_where_this_user_may_write(tmp_path, monkeypatch):
    (tmp_path / "checkout").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr(caches, "ROOT", tmp_path / "checkout")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    users, own = tmp_path / "users" / "heartwood" / "jax", tmp_path / "checkout" / ".cache" / "jax"
    assert caches.find_cache("jax") == users, "an installed package has none of its own"
    assert users.stat().st_mode & 0o77 == 0, "what lies in it is executed"
    (tmp_path / "checkout" / "pyproject.toml").touch()
    assert caches.find_cache("jax") == own
    own.rmdir()
    own.symlink_to(tmp_path / "file")       # cannot be written: root may write to any folder
    assert caches.find_cache("jax") == users
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert caches.find_cache("jax") is None


def test_without_a_place_for_a_compile_cache_a_command_runs_and_says_so(tmp_path):
    code = ("import os\nfrom core import caches, entry\ncaches.cache_folders = "
            "entry.cache_folders = lambda: []\n"
            "entry.run(lambda: {'cache': os.environ.get('JAX_COMPILATION_CACHE_DIR')})")
    clean = {name: value for name, value in os.environ.items()
             if name != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True,
                          text=True)
    assert done.returncode == 0 and json.loads(done.stdout) == {"cache": None}
    assert "JAX_COMPILATION_CACHE_DIR names another" in done.stderr
    assert "Traceback" not in done.stderr
