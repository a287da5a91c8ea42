"""Small tokenizers in the form of the Hugging Face hub, made by its library."""

import json
import struct

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
# As Llama 3: a first token, contents without their outer spaces, and what ends no turn.
TRIMMED = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' ~ message.role ~ '\\n\\n' ~ message.content | trim ~ '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n\\n' }}{% endif %}")
# As Llama 2: turns in plain text, an answer ends with the text's end.
BRACKETS = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system message, please') }}"
    "{% endif %}{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
    "{{ '[INST] ' + message.content + ' [/INST]' }}{% else %}"
    "{{ ' ' + message.content + ' ' + eos_token }}{% endif %}{% endfor %}")
# As Qwen 3: the newest answer is preceded by a thought, which later turns leave out.
THINKING = (
    "{% for message in messages %}{% set thought = '<think>\\n\\n</think>\\n\\n' if loop.last and "
    "message.role == 'assistant' else '' %}"
    "{{ '<|im_start|>' + message.role + '\\n' + thought + message.content.split('</think>')[-1] "
    "+ '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")

TEXT = ["The cat sat on the mat; it's 12.5 metres. " * 4, "def f(x):\n    return x * 2\n",
        "größer 日本語 🌲 naïve", "user assistant system Be kind."]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level(vocab_size=330, specials=SPECIALS):
    """A byte-level BPE with special tokens, by default those of ChatML, as `tokenizer.json`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(TEXT, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(specials), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return made.to_str()


def sentence_piece():
    """The BPE of SentencePiece with bytes, as `tokenizer.json`: it puts `<s>` before a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)),
              *"▁abcdehijklmnorstuy.[]/INST", "▁t", "▁th", "▁the", "▁c", "▁ca", "▁cat", "in", "▁["]
    made = Tokenizer(models.BPE(
        {piece: i for i, piece in enumerate(pieces)},
        [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "c"), ("▁c", "a"), ("▁ca", "t"), ("i", "n"),
         ("▁", "[")], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                      decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return made.to_str()


def unigram():
    """As T5: no first token, and `</s>` is a piece that its model finds in text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0),
              *((piece, -2.0) for piece in "▁abcdefghijklmnopqrstuvwxyz</>"), ("▁the", -1.0)]
    made = Tokenizer(models.Unigram(pieces, unk_id=2))
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return made.to_str()


def word_piece():
    """As BERT, with truncation and padding switched on, which sentence encoders save."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz[].",
              *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"), "the", "cat", "##ing"]
    made = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)},
                                      unk_token="[UNK]"))
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    made.enable_truncation(4)
    made.enable_padding(length=4)
    return made.to_str()


def write_hub(folder, text, **files):
    """Writes a folder of the hub: `tokenizer.json`, and further JSON files by their stems."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(text)
    for name, contents in files.items():
        (folder / f"{name}.json").write_text(json.dumps(contents))
    return folder


def gguf_metadata(text, *, pre="gpt-2", **changes):
    """The metadata of a GGUF file of a byte-level `tokenizer.json`."""
    model = json.loads(text)["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    made = {"model": "gpt2", "pre": pre, "tokens": tokens,
            "merges": [" ".join(pair) for pair in model["merges"]],
            "token_type": [3 if token in SPECIALS else 1 for token in tokens],
            "bos_token_id": 1, "eos_token_id": 2, "add_bos_token": False} | changes
    return {f"tokenizer.ggml.{name}": value for name, value in made.items()} | {
        "tokenizer.chat_template": CHATML}


def write_gguf(file, metadata):
    """Writes a GGUF file without a tensor."""
    kinds = {bool: (7, "?"), int: (4, "I"), float: (6, "f"), str: (8, "")}

    def as_bytes(value):
        if isinstance(value, str):
            return struct.pack("<Q", len(value.encode())) + value.encode()
        return struct.pack(f"<{kinds[type(value)][1]}", value)

    written = b"GGUF" + struct.pack("<IQQ", 3, 0, len(metadata))
    for name, value in metadata.items():
        values = value if isinstance(value, list) else [value]
        kind = struct.pack("<I", kinds[type(values[0])][0])
        written += as_bytes(name) + (struct.pack("<I", 9) + kind + struct.pack("<Q", len(values))
                                     if isinstance(value, list) else kind)
        written += b"".join(map(as_bytes, values))
    file.write_bytes(written)
    return file
